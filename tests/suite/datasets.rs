//! Data sets in PySlowFast's formats: what their lists say, which frames are read, and a run on each.

pub mod jpeg;
pub mod made;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use vcycle::Result;
use vcycle::clip::{ClipSource, FaultKind, ListConfig, ListFormat, Split, VideoList, Views};
use vcycle::config::Config;
use vcycle::device::Device;
use vcycle::test::{Tester, Weights};
use vcycle::train::log::{self, Epoch, Line};
use vcycle::train::{Outcome, Progress, Start, StepReport, Trainer, setup};

fn config(folder: &Path, format: ListFormat) -> ListConfig {
    ListConfig { format, path_prefix: folder.join("frames"), ..ListConfig::kinetics(folder, 3) }
}

/// The first pixel of each of some frames.
fn first_pixels(source: &VideoList, idx: usize, indices: &[u32]) -> Vec<[u8; 3]> {
    let frames = source.frames(idx, &mut |_| indices.to_vec()).expect("frames");
    assert_eq!((frames.height_px, frames.width_px, frames.indices.as_slice()), (16, 32, indices));
    frames.bytes.chunks_exact(16 * 32 * 3).map(|f| [f[0], f[1], f[2]]).collect()
}

#[test]
fn pictures_are_decoded_to_the_byte() {
    let folder = tempfile::tempdir().expect("folder");
    made::charades(folder.path(), 3);
    let source = VideoList::open(&config(folder.path(), ListFormat::Charades), Split::Train).expect("list");
    // Ids 1, 2, 3: the first has red on the left.
    assert_eq!(first_pixels(&source, 1, &[0, 3, 3, 19]), [45u8, 60, 60, 140].map(|light| [light; 3]));
    let red = first_pixels(&source, 0, &[0])[0];
    // R = Y + 1.402 (Cr - 128), G = Y - 0.714 (Cr - 128), cut off at 0.
    assert_eq!(red, [146, 0, 45]);
    // Only frames that are asked for are read.
    fs::remove_file(folder.path().join("frames/2/2_000008.jpg")).expect("remove");
    assert_eq!(first_pixels(&source, 1, &[5, 6, 8]).len(), 3);
    let error = source.frames(1, &mut |_| vec![7]).expect_err("missing").to_string();
    assert!(error.contains("2_000008.jpg"), "{error}");
}

#[test]
fn faulty_pictures_are_named() {
    let folder = tempfile::tempdir().expect("folder");
    made::charades(folder.path(), 1);
    let source = VideoList::open(&config(folder.path(), ListFormat::Charades), Split::Train).expect("list");
    let path = folder.path().join("frames/1/1_000003.jpg");
    let whole = fs::read(&path).expect("read");
    let odd = jpeg::grey(40, 16, 9);
    for (bytes, what) in [
        (&whole[..whole.len() - 9], "jpeg"),
        (&whole[..100], "jpeg"),
        (b"", "0 bytes"),
        (b"no picture", "jpeg"),
        (&odd, "40x16 pixels, but the video's first frame has 32x16"),
    ] {
        fs::write(&path, bytes).expect("write");
        let error = source.frames(0, &mut |_| vec![2]).expect_err(what).to_string();
        assert!(error.contains("1_000003.jpg") && error.contains(what), "{what}: {error}");
        assert!(source.frames(0, &mut |_| vec![1, 3]).is_ok());
    }
}

#[test]
fn ssv2_is_read_as_pyslowfast_reads_it() {
    let folder = tempfile::tempdir().expect("folder");
    made::ssv2(folder.path(), 6);
    let frames = config(folder.path(), ListFormat::Ssv2);
    let files = ListConfig { ssv2_videos: "mp4".into(), path_prefix: folder.path().join("videos"), ..frames.clone() };
    for config in [&frames, &files] {
        let train = VideoList::open(config, Split::Train).expect("lists");
        assert_eq!((train.len(), train.is_multi_label(), train.num_classes()), (6, false, 3));
        assert_eq!((0..6).map(|idx| train.label(idx)).collect::<Vec<_>>(), [1, 2, 0, 1, 2, 0]);
        assert_eq!((train.id(0), train.id(5)), ("1", "6"));
        // Validation and test take the same videos.
        for split in [Split::Val, Split::Test] {
            let val = VideoList::open(config, split).expect("lists");
            assert_eq!((val.len(), val.id(0), val.label(0)), (4, "7", 1));
        }
        let mut num_frames = 0;
        first_pixels(&train, 1, &[0, 19]);
        train
            .frames(1, &mut |info| {
                num_frames = info.num_frames;
                vec![]
            })
            .expect("frames");
        assert_eq!(num_frames, made::FRAMES);
    }
}

#[test]
fn charades_labels_follow_the_frames() {
    let folder = tempfile::tempdir().expect("folder");
    made::charades(folder.path(), 3);
    let list = VideoList::open(&config(folder.path(), ListFormat::Charades), Split::Train).expect("list");
    assert!(list.is_multi_label());
    // Id 1: class 1 in frames 0 to 9, class 2 in 8 to 19.
    for (frames, expected) in [
        (Some((0, 7)), vec![1]),
        (Some((3, 8)), vec![1, 2]),
        (Some((9, 9)), vec![1, 2]),
        (Some((10, 19)), vec![2]),
        (None, vec![1, 2]),
    ] {
        assert_eq!(list.label_set(0, frames), expected, "{frames:?}");
    }
    // Id 3: class 0, then 2; id 2: class 2 alone.
    assert_eq!((list.label_set(2, None), list.label_set(1, None)), (vec![0, 2], vec![2]));
}

/// Every fault of a list is found, and the first is what stops a run.
#[test]
fn faults_of_lists_are_named() {
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name);
    made::ssv2(folder.path(), 2);
    let ssv2 = config(folder.path(), ListFormat::Ssv2);
    let kinds = |config: &ListConfig| -> Vec<(FaultKind, String)> {
        let list = VideoList::read(config, Split::Train).expect("readable");
        list.faults().iter().map(|fault| (fault.kind, fault.place.clone())).collect()
    };
    assert_eq!(kinds(&ssv2), []);
    // One id without frames, one with an unknown template, one twice, one label out of range, and frames without an id.
    let entry = |id: &str, template: &str| serde_json::json!({"id": id, "template": template});
    let entries = [
        entry("1", "Holding [something]"),
        entry("1", "Holding [something]"),
        entry("5", "Holding [something]"),
        entry("6", "Eating [something]"),
        entry("7", "Turning [something] upside down"),
    ];
    fs::write(path("something-something-v2-train.json"), serde_json::Value::from(entries.to_vec()).to_string())
        .expect("write");
    let two_classes = ListConfig { num_classes: 2, ..ssv2.clone() };
    let found = kinds(&two_classes);
    let expected = [
        (FaultKind::Duplicate, "entry 2 (id 1)"),
        (FaultKind::Missing, "entry 3 (id 5)"),
        (FaultKind::BadLine, "entry 4 (id 6)"),
        (FaultKind::LabelOutOfRange, "entry 5 (id 7)"),
        (FaultKind::BadLine, "train.csv"),
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((kind, place), (want, part)) in found.iter().zip(expected) {
        assert!(*kind == want && place.contains(part), "{found:?}");
    }
    let error = VideoList::open(&two_classes, Split::Train).err().expect("refused").to_string();
    assert!(error.contains("entry 3 (id 5)") && error.contains("no frame"), "{error}");
    fs::write(path("something-something-v2-labels.json"), "[1, 2]").expect("write");
    let error = VideoList::read(&ssv2, Split::Train).err().expect("refused").to_string();
    assert!(error.contains("labels.json: expected an object"), "{error}");

    let list = "original_vido_id video_id frame_id path labels\n\
                A 0 0 a/1.jpg \"0\"\nA 0 1 a/2.jpg 0,x\nA 0 2 a/3.jpg \"0,3\"\nA 0 3 a/1.jpg \"\"\nA 0 a/4.jpg 1\n";
    fs::write(path("train.csv"), list).expect("write");
    let charades = config(folder.path(), ListFormat::Charades);
    let lines: Vec<(FaultKind, String)> = kinds(&charades)
        .into_iter()
        .map(|(kind, place)| (kind, place.rsplit(':').next().expect("line").to_string()))
        .collect();
    let expected = [
        (FaultKind::BadLine, "3"),
        (FaultKind::LabelOutOfRange, "4"),
        (FaultKind::Duplicate, "5"),
        (FaultKind::BadLine, "6"),
    ];
    assert_eq!(lines, expected.map(|(kind, line)| (kind, line.to_string())));
    fs::write(path("train.csv"), "a.mp4 1\n").expect("write");
    let error = VideoList::open(&charades, Split::Train).err().expect("refused").to_string();
    assert!(error.contains("train.csv") && error.contains("original_vido_id"), "{error}");
}

/// A network so small that a run takes a second.
pub fn run_config(folder: &Path, overrides: &[&str]) -> Config {
    let folder = folder.display();
    let yaml = format!(
        "TRAIN: {{BATCH_SIZE: 4, EVAL_PERIOD: 1, CHECKPOINT_PERIOD: 1}}\nTEST: {{ENABLE: False, BATCH_SIZE: 3}}\n\
         DATA: {{PATH_TO_DATA_DIR: '{folder}', NUM_FRAMES: 4, SAMPLING_RATE: 2, TRAIN_CROP_SIZE: 16, TEST_CROP_SIZE: 16, \
         TRAIN_JITTER_SCALES: [16, 20], INPUT_CHANNEL_NUM: [3]}}\n\
         RESNET: {{DEPTH: 18, WIDTH_PER_GROUP: 4, NUM_BLOCK_TEMP_KERNEL: [[2], [2], [2], [2]]}}\n\
         MODEL: {{ARCH: slow, MODEL_NAME: ResNet, NUM_CLASSES: 3}}\n\
         SOLVER: {{BASE_LR: 0.02, LR_POLICY: cosine, MAX_EPOCH: 4}}\n"
    );
    let overrides: Vec<String> = overrides.iter().map(|word| word.to_string()).collect();
    Config::parse(&yaml, "test", &overrides).expect("config")
}

pub const SSV2: [&str; 6] = ["TRAIN.DATASET", "ssv2", "TEST.DATASET", "ssv2", "DATA.REVERSE_INPUT_CHANNEL", "True"];
pub const CHARADES: [&str; 10] = [
    "TRAIN.DATASET",
    "charades",
    "TEST.DATASET",
    "charades",
    "DATA.MULTI_LABEL",
    "True",
    "MODEL.LOSS_FUNC",
    "bce_logit",
    "MODEL.HEAD_ACT",
    "sigmoid",
];

pub fn trainer(config: &Config, folder: &Path, start: Start) -> Result<Trainer> {
    let (train, val) = setup::sources(config)?;
    Trainer::new(config, &Device::Cpu, train, val, folder, start)
}

/// Sets the flag after some iterations.
struct StopAfter<'a>(u64, &'a AtomicBool);

impl Progress for StopAfter<'_> {
    fn message(&mut self, _: &str) {}

    fn step(&mut self, report: &StepReport<'_>) {
        if report.step.iteration == self.0 {
            self.1.store(true, Ordering::Relaxed);
        }
    }

    fn epoch(&mut self, _: &Epoch, _: u64) {}
}

pub fn run(mut trainer: Trainer, stop_after: u64) -> Outcome {
    let stop = AtomicBool::new(false);
    trainer.run(&mut StopAfter(stop_after, &stop), &stop).expect("run")
}

pub fn losses(folder: &Path) -> Vec<String> {
    let essence = |line| match line {
        Line::Iteration(s) => Some(format!("{} {:?}", s.iteration, s.loss)),
        Line::Epoch(e) => {
            Some(format!("{} {:?} {:?} {:?} {:?}", e.epoch, e.train_loss, e.val_top1, e.val_map, e.val_loss))
        }
        _ => None,
    };
    log::read(&folder.join("log.jsonl")).expect("log").into_iter().filter_map(essence).collect()
}

/// Trains, is stopped and goes on, on each format: the same numbers as without the stop. Then every test video is scored.
#[test]
fn every_format_is_trained_resumed_and_tested() {
    let data = tempfile::tempdir().expect("folder");
    for (name, make) in
        [("kinetics", made::kinetics as fn(&Path, usize)), ("ssv2", made::ssv2), ("charades", made::charades)]
    {
        fs::create_dir(data.path().join(name)).expect("folder");
        make(&data.path().join(name), 12);
    }
    let path = |name: &str| data.path().join(name).display().to_string();
    let frames = |name: &str| ["DATA.PATH_PREFIX".to_string(), path(&format!("{name}/frames"))];
    let (ssv2_frames, charades_frames, ssv2_videos) = (frames("ssv2"), frames("charades"), path("ssv2/videos"));
    let with = |keys: &[&str], frames: &[String]| -> Vec<String> {
        keys.iter().map(|key| key.to_string()).chain(frames.iter().cloned()).collect()
    };
    let videos = ["DATA.PATH_PREFIX", &ssv2_videos, "VCYCLE.SSV2_VIDEOS", "mp4"].map(String::from);
    for (name, folder, overrides) in [
        ("kinetics", "kinetics", vec![]),
        ("ssv2", "ssv2", with(&SSV2, &ssv2_frames)),
        ("ssv2 videos", "ssv2", with(&SSV2, &videos)),
        ("charades", "charades", with(&CHARADES, &charades_frames)),
    ] {
        let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
        let config = run_config(&data.path().join(folder), &overrides);
        let (whole, parts) = (data.path().join(format!("{name} whole")), data.path().join(format!("{name} parts")));
        let outcome = run(trainer(&config, &whole, Start::New).expect(name), u64::MAX);
        assert!(outcome.finished && outcome.summary.bad_clips == 0, "{name}: {:?}", outcome.summary);
        assert_eq!((outcome.summary.iterations, outcome.summary.clips), (12, 48), "{name}");
        let is_multi_label = name == "charades";
        assert_eq!(outcome.summary.val_map.is_some(), is_multi_label, "{name}");
        assert_eq!(outcome.summary.val_top1.is_some(), !is_multi_label, "{name}");
        assert!(!run(trainer(&config, &parts, Start::New).expect(name), 5).finished);
        assert!(run(trainer(&config, &parts, Start::Resume).expect(name), u64::MAX).finished);
        assert_eq!(losses(&parts), losses(&whole), "{name}");
        test(&config, &whole, is_multi_label, name);
    }
}

/// The last weights of the run in `folder` on two clips by three crops of every test video.
fn test(config: &Config, folder: &Path, is_multi_label: bool, name: &str) {
    let mut tester = Tester::new(config, &Device::Cpu, setup::test_source(config).expect(name)).expect(name);
    Weights::find(config, folder).and_then(|weights| weights.load_into(tester.network())).expect(name);
    let (views, stop) = (Views { num_clips: 2, num_crops: 3 }, AtomicBool::new(false));
    let results = tester.run(views, &mut StopAfter(0, &stop), &stop).expect(name).expect("not stopped");
    assert_eq!((results.names.len(), results.scores.len(), results.bad.len()), (4, 12, 0), "{name}");
    let metrics = results.metrics().expect(name);
    assert_eq!((metrics.map.is_some(), metrics.top1.is_some()), (is_multi_label, !is_multi_label), "{name}");
}

#[test]
fn labels_and_loss_must_fit() {
    let folder = tempfile::tempdir().expect("folder");
    made::kinetics(folder.path(), 3);
    let config = run_config(folder.path(), &["DATA.MULTI_LABEL", "True", "MODEL.LOSS_FUNC", "bce_logit"]);
    let error = trainer(&config, &folder.path().join("run"), Start::New).err().expect("refused").to_string();
    assert!(error.contains("DATA.MULTI_LABEL: expected false"), "{error}");
    let config = run_config(folder.path(), &["DATA.MULTI_LABEL", "True"]);
    let error = trainer(&config, &folder.path().join("run"), Start::New).err().expect("refused").to_string();
    assert!(error.contains("bce_logit"), "{error}");
}

/// A run goes on with the data that it began with, wherever it lies, and with no other.
#[test]
fn changed_data_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    made::kinetics(folder.path(), 12);
    let (config, output) = (run_config(folder.path(), &[]), folder.path().join("run"));
    assert!(!run(trainer(&config, &output, Start::New).expect("new"), 2).finished);
    let clip = folder.path().join("v3.mp4");
    let bytes = fs::read(&clip).expect("read");
    fs::write(&clip, &bytes[..bytes.len() - 1]).expect("write");
    let error = trainer(&config, &output, Start::Resume).err().expect("refused").to_string();
    assert!(error.contains("fingerprint of the training clips") && error.contains("vcycle verify"), "{error}");
    fs::write(&clip, &bytes).expect("write");
    let moved = tempfile::tempdir().expect("folder");
    made::kinetics(moved.path(), 12);
    assert!(trainer(&run_config(moved.path(), &[]), &output, Start::Resume).is_ok());
}
