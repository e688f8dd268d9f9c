//! `vcycle verify`: every planted fault is found, in every format, and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use vcycle::clip::decode::find_ffmpeg;
use vcycle::clip::verify::{Report, verify};
use vcycle::clip::{ClipSource, FaultKind, ListConfig, ListFormat, Split, VideoList};

use crate::datasets::made;

fn report(config: &ListConfig, all: bool) -> Report {
    let read = |split| (split, VideoList::read(config, split).expect("lists"));
    verify(&[Split::Train, Split::Val].map(read), all, &|_, _| {})
}

fn counts(report: &Report) -> Vec<(FaultKind, usize)> {
    report.fault_counts().into_iter().collect()
}

fn config(folder: &Path, format: ListFormat) -> ListConfig {
    ListConfig { format, path_prefix: folder.join("frames"), ..ListConfig::kinetics(folder, 3) }
}

/// Writes over the pictures' bytes, which stand at the end, and keeps the lengths before them.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).expect("read");
    let index = bytes.len() - 20 * 700;
    bytes[index..].iter_mut().for_each(|b| *b = 0xFF);
    fs::write(path, bytes).expect("write");
}

#[test]
fn planted_faults_of_videos_are_found() {
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name);
    made::kinetics(folder.path(), 8);
    let config = ListConfig::kinetics(folder.path(), 3);
    let whole = report(&config, true);
    assert!(whole.is_clean(), "{whole}");
    assert_eq!((whole.splits[0].clips, whole.splits[0].class_counts.as_slice()), (8, &[3, 3, 2][..]));
    let frames = whole.splits[0].frames.expect("frames");
    assert_eq!((frames.min, frames.max), (20.0, 20.0));
    assert_eq!(whole.splits[0].decoders, BTreeMap::from([("built-in h264".to_string(), 8)]));

    fs::remove_file(path("v1.mp4")).expect("remove");
    let bytes = fs::read(path("v2.mp4")).expect("read");
    fs::write(path("v2.mp4"), &bytes[..bytes.len() - 5000]).expect("write");
    fs::write(path("v3.mp4"), "").expect("write");
    damage(&path("v4.mp4"));
    let list = fs::read_to_string(path("train.csv")).expect("read");
    fs::write(path("train.csv"), list + "v5.mp4 3\nv6.mp4 0\nv7.mp4\nv8.mp4 2\n").expect("write");
    let found = report(&config, false);
    assert_eq!(
        counts(&found),
        [
            (FaultKind::BadLine, 1),
            (FaultKind::LabelOutOfRange, 1),
            (FaultKind::Duplicate, 1),
            (FaultKind::TrainAndVal, 1),
            (FaultKind::Missing, 1),
            (FaultKind::Truncated, 1),
            (FaultKind::Undecodable, 2)
        ],
        "{found}"
    );
    let text = found.to_string();
    for part in
        ["v1.mp4", "v2.mp4: 6 of 20 frames lie beyond", "v3.mp4: the file is empty", "v4.mp4", "train.csv:9: label 3"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.ends_with("undecodable\n") && text.contains("8 faults"), "{text}");
}

#[test]
fn planted_faults_of_frames_are_found() {
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name);
    made::ssv2(folder.path(), 4);
    let ssv2 = config(folder.path(), ListFormat::Ssv2);
    assert!(report(&ssv2, true).is_clean());
    let videos = ListConfig { ssv2_videos: "mp4".into(), path_prefix: path("videos"), ..ssv2.clone() };
    assert!(report(&videos, true).is_clean());
    fs::remove_file(path("frames/1/1_000004.jpg")).expect("remove");
    fs::remove_file(path("frames/1/1_000009.jpg")).expect("remove");
    // The last frame is looked at always, one in the middle only with all frames.
    for frame in ["frames/2/2_000020.jpg", "frames/3/3_000007.jpg"] {
        let bytes = fs::read(path(frame)).expect("read");
        fs::write(path(frame), &bytes[..bytes.len() / 2]).expect("write");
    }
    let list = fs::read_to_string(path("train.csv")).expect("read");
    let line = list.lines().nth(70).expect("line").to_string();
    fs::write(path("train.csv"), list + &line + "\n").expect("write");
    for (all, undecodable) in [(false, 1), (true, 2)] {
        let found = report(&ssv2, all);
        let expected = [(FaultKind::Duplicate, 1), (FaultKind::Missing, 1), (FaultKind::Undecodable, undecodable)];
        assert_eq!(counts(&found), expected, "{found}");
        assert!(found.to_string().contains("2 of 20 frames are not there, the first is"), "{found}");
    }
    let other = tempfile::tempdir().expect("folder");
    made::charades(other.path(), 4);
    let charades = report(&config(other.path(), ListFormat::Charades), true);
    assert!(charades.is_clean(), "{charades}");
    // Ids 1 to 4: 1 and 4 have classes 1 and 2, 2 has 2, 3 has 0 and 2.
    assert_eq!(charades.splits[0].class_counts, [1, 2, 4]);
}

#[test]
fn the_fingerprint_tells_changed_data_and_not_another_place() {
    let make = || {
        let folder = tempfile::tempdir().expect("folder");
        made::charades(folder.path(), 3);
        folder
    };
    let (folder, elsewhere) = (make(), make());
    let of = |folder: &Path| {
        VideoList::open(&config(folder, ListFormat::Charades), Split::Train)
            .expect("list")
            .fingerprint()
            .expect("files")
    };
    let before = of(folder.path());
    assert_eq!((before.len(), &of(elsewhere.path())), (16, &before));
    let list = fs::read_to_string(folder.path().join("train.csv")).expect("read");
    fs::write(folder.path().join("train.csv"), list.replacen("\"1\"", "\"0\"", 1)).expect("write");
    assert_ne!(of(folder.path()), before);
    let frame = elsewhere.path().join("frames/2/2_000001.jpg");
    fs::write(&frame, [fs::read(&frame).expect("read"), vec![0]].concat()).expect("write");
    assert_ne!(of(elsewhere.path()), before);
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vcycle"));
    command.current_dir(folder).args(["verify", "--cfg", "data.yaml"]).args(arguments).output().expect("runs")
}

#[test]
fn the_program_ends_with_a_status() {
    let folder = tempfile::tempdir().expect("folder");
    made::kinetics(folder.path(), 4);
    fs::write(folder.path().join("data.yaml"), "DATA: {PATH_TO_DATA_DIR: .}\nMODEL: {NUM_CLASSES: 3}\n")
        .expect("write");
    let good = run(folder.path(), &[]);
    let text = String::from_utf8_lossy(&good.stdout).into_owned();
    assert!(
        good.status.success() && text.ends_with("no fault found\n"),
        "{text}{}",
        String::from_utf8_lossy(&good.stderr)
    );
    let bad = run(folder.path(), &["--json", "MODEL.NUM_CLASSES", "2"]);
    assert_eq!(bad.status.code(), Some(1));
    let json: Value = serde_json::from_slice(&bad.stdout).expect("json");
    let splits = json["splits"].as_array().expect("splits");
    assert_eq!(
        splits.iter().map(|s| s["split"].as_str()).collect::<Vec<_>>(),
        [Some("train"), Some("val"), Some("test")]
    );
    let faults = splits[0]["faults"].as_array().expect("faults");
    assert_eq!((faults.len(), faults[0]["kind"].as_str()), (1, Some("label_out_of_range")), "{json}");
    let made = run(folder.path(), &["TRAIN.DATASET", "moving_shapes"]);
    assert!(made.status.success() && String::from_utf8_lossy(&made.stdout).contains("nothing to verify"));
    let nowhere = run(folder.path(), &["DATA.PATH_TO_DATA_DIR", "nowhere"]);
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("DATA.PATH_TO_DATA_DIR"));
}

/// Files of containers that ffmpeg reads, cut off: known by their headers.
#[test]
fn truncated_containers_are_found() {
    let Some(data) = crate::decoder::test_data() else { return };
    if find_ffmpeg().is_none() {
        return eprintln!("SKIPPED: containers other than MP4, because there is no ffmpeg on PATH");
    }
    let folder = tempfile::tempdir().expect("folder");
    let files = ["k400_flipping_a_pancake.mkv", "odd_213x119_vp9.webm", "mmaction_test.avi"];
    for file in files {
        let bytes = fs::read(data.join("decoder_clips").join(file)).expect("read");
        fs::write(folder.path().join(file), &bytes[..bytes.len() / 2]).expect("write");
    }
    fs::write(folder.path().join("train.csv"), files.map(|file| format!("{file} 0")).join("\n")).expect("write");
    let list = VideoList::read(&ListConfig::kinetics(folder.path(), 1), Split::Train).expect("list");
    let found = verify(&[(Split::Train, list)], false, &|_, _| {});
    assert_eq!(counts(&found), [(FaultKind::Truncated, 3)], "{found}");
    let config = ListConfig { path_prefix: data.join("decoder_clips"), ..ListConfig::kinetics(folder.path(), 1) };
    let whole = VideoList::read(&config, Split::Train).expect("list");
    assert!(verify(&[(Split::Train, whole)], true, &|_, _| {}).is_clean());
}

/// A damaged copy of real clips: missing, truncated, out of range, listed twice.
#[test]
fn planted_faults_of_real_clips_are_found() {
    let Some(data) = crate::decoder::test_data() else { return };
    let config = |folder: &Path| ListConfig { path_prefix: data.clone(), ..ListConfig::kinetics(folder, 6) };
    let real = report(&config(&data), false);
    assert!(real.is_clean(), "{real}");
    assert_eq!((real.splits[0].clips, real.splits[1].clips), (83, 37));
    let folder = tempfile::tempdir().expect("folder");
    let lines: Vec<String> =
        fs::read_to_string(data.join("train.csv")).expect("list").lines().take(8).map(String::from).collect();
    let copy = |line: &str| {
        let file = line.rsplit_once(' ').expect("line").0;
        let to = folder.path().join(file);
        fs::create_dir_all(to.parent().expect("folder")).expect("folder");
        fs::copy(data.join(file), &to).expect("copy");
        to
    };
    let files: Vec<_> = lines.iter().map(|line| copy(line)).collect();
    fs::write(folder.path().join("val.csv"), &lines[7]).expect("write");
    let clean = ListConfig::kinetics(folder.path(), 6);
    fs::write(folder.path().join("train.csv"), lines[..7].join("\n")).expect("write");
    assert!(report(&clean, true).is_clean());
    fs::remove_file(&files[0]).expect("remove");
    let bytes = fs::read(&files[1]).expect("read");
    fs::write(&files[1], &bytes[..bytes.len() / 2]).expect("write");
    let out_of_range = format!("{} 6", lines[2].rsplit_once(' ').expect("line").0);
    let list = [lines[..2].to_vec(), vec![out_of_range], lines[3..].to_vec(), vec![lines[4].clone()]].concat();
    fs::write(folder.path().join("train.csv"), list.join("\n")).expect("write");
    let found = report(&clean, false);
    let truncated = found.fault_counts().remove(&FaultKind::Truncated).unwrap_or(0)
        + found.fault_counts().remove(&FaultKind::Undecodable).unwrap_or(0);
    let of = |kind| found.fault_counts().get(&kind).copied();
    assert_eq!((of(FaultKind::Missing), truncated), (Some(1), 1), "{found}");
    assert_eq!((of(FaultKind::LabelOutOfRange), of(FaultKind::Duplicate)), (Some(1), Some(1)), "{found}");
    assert_eq!(of(FaultKind::TrainAndVal), Some(1), "{found}");
}
