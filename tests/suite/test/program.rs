//! `vcycle train` with its test, `vcycle test` and `vcycle predict` as a user meets them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::decoder::made::Mp4;

/// One epoch of 4 short steps, then a test of 2 x 3 views.
const TINY: &str = "
TRAIN: {DATASET: moving_shapes, BATCH_SIZE: 4, EVAL_PERIOD: 1}
TEST: {ENABLE: True, DATASET: moving_shapes, BATCH_SIZE: 8, NUM_ENSEMBLE_VIEWS: 2, NUM_SPATIAL_CROPS: 3, SAVE_RESULTS_PATH: scores.pkl}
DATA: {NUM_FRAMES: 4, SAMPLING_RATE: 2, TRAIN_CROP_SIZE: 32, TRAIN_JITTER_SCALES: [36, 40], TEST_CROP_SIZE: 36,
       INPUT_CHANNEL_NUM: [3], RANDOM_FLIP: False}
RESNET: {DEPTH: 18, WIDTH_PER_GROUP: 4, NUM_BLOCK_TEMP_KERNEL: [[2], [2], [2], [2]]}
MODEL: {ARCH: slow, MODEL_NAME: ResNet, NUM_CLASSES: 6}
SOLVER: {MAX_EPOCH: 1, STEPS: [0], LRS: [1], LR_POLICY: steps_with_relative_lrs, BASE_LR: 0.01}
LOG_PERIOD: 2
OUTPUT_DIR: run
VCYCLE: {MOVING_SHAPES: {NUM_TRAIN_CLIPS: 16, NUM_VAL_CLIPS: 6, SIZE_PX: 40, FRAMES: 20}}
";

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tiny.yaml"), TINY).unwrap();
        Place(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn vcycle(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vcycle"));
        command.current_dir(self.0.path()).args(arguments).args(["--cfg", "tiny.yaml", "--device", "cpu"]);
        command.output().unwrap()
    }

    fn refusal(&self, arguments: &[&str]) -> String {
        let output = self.vcycle(arguments);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        text(&output.stderr).lines().last().unwrap_or_default().to_string()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn success(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn a_run_is_trained_tested_tested_again_and_used() {
    let place = Place::new();
    let line = success(&place.vcycle(&["train"]));
    assert!(line.starts_with("json_stats: {\"split\": \"test_final\", \"top1_acc\": \""), "{line}");
    let stats = fs::read_to_string(place.path("run/json_stats.log")).unwrap();
    let kinds = ["train_iter_", "train_iter_", "train_epoch", "val_epoch", "test_final"];
    assert_eq!(stats.lines().count(), kinds.len(), "{stats}");
    assert!(stats.lines().zip(kinds).all(|(line, kind)| line.contains(&format!("\"{kind}\""))), "{stats}");
    assert_eq!(stats.lines().last(), line.lines().last());
    let test = json(&place.path("run/test_2x3.json"));
    assert_eq!((&test["videos"], &test["crop_px"]), (&6.into(), &36.into()));
    assert_eq!(test["classes"].as_array().unwrap().len(), 6);
    let confusion = json(&place.path("run/confusion_2x3.json"));
    let counts = confusion["counts"].as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap());
    assert_eq!(counts.map(|n| n.as_u64().unwrap()).sum::<u64>(), 6);
    assert!(fs::read(place.path("run/confusion_2x3.png")).unwrap().starts_with(b"\x89PNG"));
    let scores = fs::read(place.path("run/scores.safetensors")).unwrap();
    assert_eq!(json(&place.path("run/scores.json"))["names"].as_array().unwrap().len(), 6);

    // The same weights again give the same bytes; a list of view counts gives a test each.
    assert_eq!(success(&place.vcycle(&["test"])), line);
    assert_eq!(fs::read(place.path("run/scores.safetensors")).unwrap(), scores);
    let lines = success(&place.vcycle(&["test", "TEST.NUM_TEMPORAL_CLIPS", "[1, 2]", "--checkpoint", "run"]));
    assert_eq!((lines.lines().count(), lines.lines().last()), (2, line.lines().last()));
    assert!(place.path("run/test_1x3.json").is_file() && place.path("run/scores_1x3.safetensors").is_file());
    assert_eq!(fs::read(place.path("run/scores_2x3.safetensors")).unwrap(), scores);
    predicts(&place);
}

/// Three files, one of them no video: the others are answered for, in order.
fn predicts(place: &Place) {
    fs::write(place.path("a.mp4"), Mp4 { frames: 9, ..Mp4::default() }.bytes()).unwrap();
    fs::write(place.path("b.mp4"), Mp4 { frames: 5, rotation: 90, ..Mp4::default() }.bytes()).unwrap();
    fs::write(place.path("classes.json"), "{\"f\": 5, \"e\": 4, \"d\": 3, \"c\": 2, \"b\": 1, \"a\": 0}").unwrap();
    let small = ["--set", "DATA.TEST_CROP_SIZE", "32"];
    let predict = |files: &[&str], more: &[&str]| place.vcycle(&[&["predict"], files, &small, more].concat());
    let lines = success(&predict(&["a.mp4", "b.mp4"], &["--json", "--top", "6", "--classes", "classes.json"]));
    let answers: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((answers.len(), &answers[0]["file"], &answers[1]["file"]), (2, &"a.mp4".into(), &"b.mp4".into()));
    for answer in &answers {
        let all = answer["predictions"].as_array().unwrap();
        let score = |p: &serde_json::Value| p["score"].as_f64().unwrap();
        assert!((all.iter().map(score).sum::<f64>() - 1.0).abs() < 1e-5, "{answer}");
        assert!(all.windows(2).all(|pair| score(&pair[0]) >= score(&pair[1])), "{answer}");
        let names = |p: &serde_json::Value| p["name"].as_str().unwrap().as_bytes()[0] - b'a';
        assert!(all.iter().all(|p| u64::from(names(p)) == p["class"].as_u64().unwrap()), "{answer}");
    }
    let output = predict(&["a.mp4", "classes.json", "b.mp4"], &["--top", "1"]);
    assert_eq!(output.status.code(), Some(1));
    let answers = text(&output.stdout);
    let named: Vec<&str> = answers.lines().filter(|line| !line.starts_with(' ')).collect();
    assert_eq!((named, answers.lines().count()), (vec!["a.mp4", "b.mp4"], 4), "{answers}");
    assert!(text(&output.stderr).contains("classes.json"), "{}", text(&output.stderr));
}

#[test]
fn wrong_input_is_refused_with_a_line() {
    let place = Place::new();
    let contains = |message: String, words: &str| assert!(message.contains(words), "{message}");
    contains(place.refusal(&["test"]), "no weights to test: run holds no checkpoint; set TEST.CHECKPOINT_FILE_PATH");
    contains(place.refusal(&["test", "--checkpoint", "nowhere"]), "nowhere");
    contains(place.refusal(&["test", "TEST.NUM_SPATIAL_CROPS", "5"]), "TEST.NUM_SPATIAL_CROPS: expected 1 to 3");
    contains(
        place.refusal(&["test", "DATA.ENSEMBLE_METHOD", "mean"]),
        "DATA.ENSEMBLE_METHOD: expected one of sum, max",
    );
    fs::write(place.path("names.txt"), "a\nb\n").unwrap();
    contains(place.refusal(&["test", "--classes", "names.txt"]), "2 names, but there are 6 classes");
    contains(place.refusal(&["predict", "a.mp4", "--top", "0"]), "--top: expected at least 1, got 0");
    contains(place.refusal(&["predict", "a.mp4"]), "no weights to test");
}
