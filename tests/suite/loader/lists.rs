//! Lists of videos under the loader: what is read, what is refused, and which files are replaced.

use std::sync::Arc;

use vcycle::Result;
use vcycle::clip::decode::{Backend, DecodeOptions};
use vcycle::clip::{Cached, ClipSource, ListConfig, Loader, Sampling, Split, VideoList};
use vcycle::shape::StepShape;

use super::{config, sampling};
use crate::decoder::made::Mp4;

fn kinetics(folder: &std::path::Path, list: &str, separator: &str) -> Result<VideoList> {
    std::fs::write(folder.join("train.csv"), list).expect("write");
    std::fs::write(folder.join("a clip.mp4"), "no video").expect("write");
    VideoList::open(&ListConfig { separator: separator.into(), ..ListConfig::kinetics(folder, 3) }, Split::Train)
}

#[test]
fn lists_are_read_as_pyslowfast_writes_them() {
    let folder = tempfile::tempdir().expect("folder");
    let source = kinetics(folder.path(), "a clip.mp4 2\r\n\nmissing.mp4 0\na clip.mp4 1", " ").expect("valid");
    assert_eq!((source.len(), source.num_classes(), source.faults().len()), (3, 3, 1));
    assert_eq!([source.label(0), source.label(1), source.label(2)], [2, 0, 1]);
    assert_eq!(source.name(0), folder.path().join("a clip.mp4").display().to_string());
    assert_eq!(kinetics(folder.path(), "a clip.mp4,1\n", ",").expect("valid").label(0), 1);
    // A prefix of its own takes the place of the list's folder.
    let config =
        ListConfig { path_prefix: "/nowhere".into(), separator: ",".into(), ..ListConfig::kinetics(folder.path(), 3) };
    let error = VideoList::open(&config, Split::Train).err().expect("no such prefix").to_string();
    assert!(error.contains("PATH_PREFIX") && error.contains("/nowhere"), "{error}");
    let error = VideoList::open(&config, Split::Val).err().expect("no such list").to_string();
    assert!(error.contains("val.csv") && error.contains("DATA.PATH_TO_DATA_DIR"), "{error}");
}

#[test]
fn bad_lines_are_named_by_file_and_number() {
    let folder = tempfile::tempdir().expect("folder");
    for (list, line, what) in [
        ("a clip.mp4 1\nalone\n", 2, "expected `path label`"),
        ("a clip.mp4 1\n\n 2\n", 3, "expected `path label`"),
        ("a clip.mp4 one\n", 1, "`one` is no label"),
        ("a clip.mp4 -1\n", 1, "`-1` is no label"),
        ("a clip.mp4 0\na clip.mp4 3\n", 2, "out of range"),
    ] {
        let error = kinetics(folder.path(), list, " ").err().expect(list).to_string();
        assert!(error.contains(&format!("train.csv:{line}: ")) && error.contains(what), "{list:?}: {error}");
    }
    let error = kinetics(folder.path(), "\n\n", " ").err().expect("empty").to_string();
    assert!(error.contains("lists no video"), "{error}");
}

#[test]
fn bad_files_of_a_list_are_replaced_and_reported() {
    let folder = tempfile::tempdir().expect("folder");
    let good = Mp4 { frames: 20, ..Default::default() }.bytes();
    let mut broken = good.clone();
    // The pictures stand at the end: their lengths no longer fit.
    let index = good.len() - 20 * 700;
    broken[index..].iter_mut().for_each(|b| *b = 0xFF);
    for (name, bytes) in [("a.mp4", &good[..]), ("b.mp4", b""), ("c.mp4", &good[..]), ("d.mp4", &broken[..])] {
        std::fs::write(folder.path().join(name), bytes).expect("write");
    }
    std::fs::write(folder.path().join("train.csv"), "a.mp4 0\nb.mp4 1\nc.mp4 2\nd.mp4 1\nmissing.mp4 1\n")
        .expect("write");
    let decode = DecodeOptions { backend: Backend::BuiltIn, ..Default::default() };
    let list = ListConfig { decode, ..ListConfig::kinetics(folder.path(), 3) };
    let open = || VideoList::open(&list, Split::Train).expect("list");
    for source in [Arc::new(open()) as Arc<dyn ClipSource>, Arc::new(Cached::new(Arc::new(open()), 1 << 20))] {
        let small = Sampling { jitter_scales_px: (16, 20), eval_scale_px: 16, multigrid_base: None, ..sampling() };
        let loader = Loader::new(source, small, &config(2)).expect("loader");
        let steps = [StepShape::square(5, 4, 16, 1)];
        for epoch in 0..2 {
            let batch = loader.train_epoch(epoch, &steps, 0).next().expect("batch").expect("good");
            assert_eq!(batch.clips.len(), 5);
            assert!((0..5).all(|i| [[0], [2]].iter().any(|l| batch.labels.of(i) == l)), "{:?}", batch.names);
        }
        let bad = loader.bad_clips();
        let names: Vec<&str> = bad.iter().map(|b| b.name.rsplit('/').next().expect("name")).collect();
        assert_eq!(names, ["b.mp4", "d.mp4", "missing.mp4"]);
        assert_eq!(bad.iter().map(|b| b.quarantined).collect::<Vec<_>>(), [true, false, true]);
        assert!(bad[0].message.contains("0 bytes") && bad[1].message.contains("NAL unit"), "{bad:?}");
    }
}
