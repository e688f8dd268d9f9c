//! Tiny data sets in each format, made of generated frames and videos.

use std::fs;
use std::path::Path;

use super::jpeg;
use crate::decoder::made::Mp4;

/// Frames of every video.
pub const FRAMES: usize = 20;

/// `videos` for training and 4 for validation; the class of video k is k % 3.
pub fn kinetics(folder: &Path, videos: usize) {
    fs::write(folder.join("a.mp4"), Mp4 { frames: FRAMES, ..Default::default() }.bytes()).expect("write");
    for (list, first, count) in [("train.csv", 0, videos), ("val.csv", videos, 4), ("test.csv", videos, 4)] {
        let line = |k: usize| {
            fs::copy(folder.join("a.mp4"), folder.join(format!("v{k}.mp4"))).expect("copy");
            format!("v{k}.mp4 {}\n", k % 3)
        };
        fs::write(folder.join(list), (first..first + count).map(line).collect::<String>()).expect("write");
    }
    fs::remove_file(folder.join("a.mp4")).expect("remove");
}

/// Writes the frames of video `id`: 32x16 pixels, frame k (from 1) of light 40 + 5 k, the left half red in class 1.
fn frames(folder: &Path, id: usize) {
    fs::create_dir_all(folder.join(format!("frames/{id}"))).expect("folder");
    for k in 1..=FRAMES {
        let red = |column: usize| if id % 3 == 1 && column < 2 { 200 } else { 128 };
        let picture = jpeg::jpeg(32, 16, |column, _| [40 + 5 * k as u8, 128, red(column)]);
        fs::write(folder.join(format!("frames/{id}/{id}_{k:06}.jpg")), picture).expect("write");
    }
}

/// The frame list of videos `ids`; `labels` of a video and a frame from 0.
fn frame_list(ids: std::ops::Range<usize>, labels: impl Fn(usize, usize) -> String) -> String {
    let mut list = "original_vido_id video_id frame_id path labels\n".to_string();
    for (video, id) in ids.enumerate() {
        for k in 0..FRAMES {
            let labels = labels(id, k);
            list += &format!("{id} {video} {k} {id}/{id}_{:06}.jpg \"{labels}\"\n", k + 1);
        }
    }
    list
}

/// `videos` for training (ids from 1) and 4 for validation; the class of id k is k % 3. Frames lie in `frames`, the same
/// videos as files in `videos`.
pub fn ssv2(folder: &Path, videos: usize) {
    let names = ["Holding something", "Dropping something next to something", "Turning something upside down"];
    let templates =
        ["Holding [something]", "Dropping [something] next to [something]", "Turning [something] upside down"];
    let labels: serde_json::Map<_, _> =
        names.iter().enumerate().map(|(k, n)| (n.to_string(), k.to_string().into())).collect();
    let write = |name: &str, value: serde_json::Value| {
        fs::write(folder.join(format!("something-something-v2-{name}.json")), value.to_string()).expect("write");
    };
    write("labels", labels.into());
    fs::create_dir(folder.join("videos")).expect("folder");
    for (json, csv, ids) in [("train", "train.csv", 1..videos + 1), ("validation", "val.csv", videos + 1..videos + 5)] {
        let entry = |id: usize| {
            frames(folder, id);
            let video = Mp4 { frames: FRAMES, ..Default::default() }.bytes();
            fs::write(folder.join(format!("videos/{id}.mp4")), video).expect("write");
            serde_json::json!({"id": id.to_string(), "label": "holding a cup", "template": templates[id % 3], "placeholders": []})
        };
        write(json, ids.clone().map(entry).collect());
        fs::write(folder.join(csv), frame_list(ids, |_, _| String::new())).expect("write");
    }
}

/// `videos` for training (ids from 1) and 4 for validation; frame k of id i has class i % 3 up to frame 9 and class 2 from
/// frame 8 on.
pub fn charades(folder: &Path, videos: usize) {
    for (csv, ids) in [("train.csv", 1..videos + 1), ("val.csv", videos + 1..videos + 5)] {
        ids.clone().for_each(|id| frames(folder, id));
        let labels = |id: usize, k: usize| {
            let classes = [(id % 3, k < 10), (2, k >= 8)];
            let seen: Vec<String> = classes.iter().filter(|c| c.1).map(|c| c.0.to_string()).collect();
            seen.join(",")
        };
        fs::write(folder.join(csv), frame_list(ids, labels)).expect("write");
    }
}
