//! The program as a user meets it: exit status, one line of error, and runs that are killed, stopped, or out of disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use vcycle::checkpoint::{Checkpoint, Store};
use vcycle::train::log::{self, Line};

/// Ten epochs of 12 short steps.
const TINY: &str = "
TRAIN: {DATASET: moving_shapes, BATCH_SIZE: 4, EVAL_PERIOD: 5, CHECKPOINT_PERIOD: 2}
TEST: {ENABLE: False, BATCH_SIZE: 4}
DATA: {NUM_FRAMES: 8, SAMPLING_RATE: 2, TRAIN_CROP_SIZE: 32, TRAIN_JITTER_SCALES: [36, 40], RANDOM_FLIP: False}
SLOWFAST: {ALPHA: 4, BETA_INV: 4}
RESNET:
  DEPTH: 18
  WIDTH_PER_GROUP: 8
  NUM_BLOCK_TEMP_KERNEL: [[2, 2], [2, 2], [2, 2], [2, 2]]
  SPATIAL_STRIDES: [[1, 1], [2, 2], [2, 2], [2, 2]]
  SPATIAL_DILATIONS: [[1, 1], [1, 1], [1, 1], [1, 1]]
MODEL: {NUM_CLASSES: 4, DROPOUT_RATE: 0.2}
SOLVER: {BASE_LR: 0.01, LR_POLICY: steps_with_relative_lrs, STEPS: [0, 8], LRS: [1, 0.1], MAX_EPOCH: 10}
VCYCLE: {CHECKPOINT_MINUTES: 0.002, MOVING_SHAPES: {NUM_TRAIN_CLIPS: 48, NUM_VAL_CLIPS: 8, SIZE_PX: 40, FRAMES: 20}}
";

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tiny.yaml"), TINY).unwrap();
        Place { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `vcycle train --cfg tiny.yaml ARGUMENTS`, in this folder.
    fn train(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vcycle"));
        command.current_dir(self.folder.path()).args(["train", "--cfg", "tiny.yaml", "--device", "cpu"]);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// What the run in `name` says about each step and epoch, without times.
    fn losses(&self, name: &str) -> Vec<String> {
        let lines = log::read(&self.path(name).join("log.jsonl")).unwrap();
        let essence = |line| match line {
            Line::Iteration(s) => Some(format!("{} {:?} {}", s.iteration, s.loss, s.lr)),
            Line::Epoch(e) => Some(format!("{} {:?} {:?} {:?}", e.epoch, e.train_loss, e.val_top1, e.val_loss)),
            _ => None,
        };
        lines.into_iter().filter_map(essence).collect()
    }

    fn checkpoints(&self, name: &str) -> Vec<Checkpoint> {
        let store = Store::open(&self.path(name).join("checkpoints"), 3).unwrap();
        store.list().unwrap().iter().map(|path| Checkpoint::load(path).unwrap()).collect()
    }
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap()
}

/// Exit status 1 and one line on stderr, which is returned.
fn refusal(command: &mut Command) -> String {
    let output = output(command);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "expected one line, got: {stderr}");
    assert!(output.stdout.is_empty());
    stderr.trim_end().to_string()
}

fn finish(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Waits until the run has logged `iterations` steps.
fn wait_for(log: &Path, iterations: usize) {
    let start = Instant::now();
    let logged = || fs::read_to_string(log).map_or(0, |text| text.matches("\"kind\":\"iteration\"").count());
    while logged() < iterations {
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "{iterations} iterations do not appear in {}",
            log.display()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn errors_are_one_line_and_exit_status_1() {
    let place = Place::new();
    let train = |arguments: &[&str]| refusal(&mut place.train(arguments));
    let contains = |message: String, parts: &[&str]| {
        assert!(parts.iter().all(|p| message.contains(p)), "{message}");
    };
    let vcycle = |arguments: &[&str]| refusal(Command::new(env!("CARGO_BIN_EXE_vcycle")).args(arguments));
    contains(vcycle(&["train", "--cfg", "none.yaml"]), &["none.yaml", "No such file"]);
    contains(vcycle(&["train"]), &["required", "--cfg <FILE>"]);
    contains(
        vcycle(&[]),
        &[
            "expected a command: train, test, predict, schedule, info, profile, verify, pack, resample, convert or devices",
        ],
    );
    contains(train(&["--threads", "0"]), &["--threads: expected 1 to"]);
    contains(train(&["SOLVER.MAX_EPOCH", "-3"]), &["SOLVER.MAX_EPOCH: expected an integer >= 0, got -3"]);
    contains(train(&["SOLVER.LRS", &"[".repeat(100_000)]), &["SOLVER.LRS: expected a list of numbers, got", "…"]);
    contains(train(&["SOLVER.BASE_LRR", "1"]), &["unknown key SOLVER.BASE_LRR", "SOLVER.BASE_LR"]);
    contains(train(&["SOLVER.BASE_LR"]), &["SOLVER.BASE_LR", "KEY VALUE"]);
    contains(train(&["SOLVER.BASE_LR", "-1"]), &["SOLVER.BASE_LR", "got -1"]);
    contains(train(&["--nonsense"]), &["unexpected argument '--nonsense'"]);
    for (device, expected) in [("cuda:77", "usable device"), ("gpu", "expected auto")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vcycle"));
        let yaml = place.path("tiny.yaml");
        contains(refusal(command.arg("train").arg("--cfg").arg(yaml).args(["--device", device])), &[expected]);
    }
    fs::write(place.path("file"), "").unwrap();
    contains(train(&["OUTPUT_DIR", "file/run"]), &["file/run"]);
    fs::create_dir(place.path("full")).unwrap();
    fs::write(place.path("full/notes"), "").unwrap();
    contains(train(&["OUTPUT_DIR", "full"]), &["full is not empty", "--resume"]);
    contains(train(&["OUTPUT_DIR", "full", "--resume"]), &["full holds something else than a run"]);
    assert!(!place.path("runs").exists(), "a refused run leaves nothing");
}

#[test]
fn bad_list_files_are_named_with_their_line() {
    let place = Place::new();
    let folder = place.path("data");
    let folder_name = folder.display().to_string();
    let data = ["TRAIN.DATASET", "kinetics", "DATA.PATH_TO_DATA_DIR", &folder_name, "DATA.RANDOM_FLIP", "True"];
    let message = || refusal(&mut place.train(&data));
    assert!(message().contains("train.csv: No such file"), "{}", message());
    assert!(message().contains("DATA.PATH_TO_DATA_DIR must name the folder"), "{}", message());
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a.mp4"), "no video").unwrap();
    for (list, expected) in [
        ("a.mp4 0\nb.mp4\n", "train.csv:2: expected `path label`"),
        ("a.mp4 0\nb.mp4 1\na.mp4 x\n", "train.csv:3: `x` is no label"),
        ("\u{feff}a.mp4 0\r\na.mp4 x\r\n", "train.csv:2: `x` is no label"),
        ("a.mp4 0\na.mp4 4\n", "train.csv:2: label 4 is out of range: MODEL.NUM_CLASSES is 4"),
        ("\n", "lists no video"),
        ("b.mp4 0\n", "none of 1 listed files exists"),
    ] {
        fs::write(folder.join("train.csv"), list).unwrap();
        assert!(message().contains(expected), "{}", message());
    }
    fs::write(folder.join("train.csv"), "a.mp4 0\n").unwrap();
    assert!(message().contains("val.csv: No such file"), "{}", message());
    fs::write(folder.join("val.csv"), "a.mp4 0\n").unwrap();
    let output = output(&mut place.train(&data));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.lines().last().unwrap().contains("none of the 1 clips can be decoded"), "{stderr}");
}

#[cfg(unix)]
#[test]
fn a_named_pipe_is_no_video() {
    let place = Place::new();
    assert!(Command::new("mkfifo").arg(place.path("pipe.mp4")).status().unwrap().success());
    let mut command = Command::new(env!("CARGO_BIN_EXE_vcycle"));
    command.arg("resample").arg(place.path("pipe.mp4")).args(["--grid", "2,16", "--out", "/dev/null"]);
    assert!(refusal(&mut command).contains("not a regular file"));
}

/// Readers that have gone, and outputs that take nothing.
#[cfg(target_os = "linux")]
#[test]
fn nobody_needs_to_read_what_it_says() {
    let place = Place::new();
    let program = env!("CARGO_BIN_EXE_vcycle");
    let status = |script: &str| {
        let script = script.replace("vcycle", &format!("'{program}'"));
        let mut shell = Command::new("bash");
        let output = output(shell.current_dir(place.folder.path()).args(["-c", &format!("set -o pipefail; {script}")]));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!stderr.contains("panicked"), "{script}: {stderr}");
        (output.status.code(), stderr)
    };
    let schedule = "vcycle schedule --cfg tiny.yaml";
    for command in ["vcycle devices", "vcycle --help", schedule, "vcycle schedule --cfg tiny.yaml --json"] {
        // `head -0` may be gone before anything is written, or after.
        assert_eq!(status(&format!("{command} | head -0")).0, Some(0), "{command}");
        assert_eq!(status(&format!("{command} | (exec <&-; sleep 0.2)")).0, Some(0), "{command}");
        let (code, stderr) = status(&format!("{command} > /dev/full"));
        assert_eq!((code, stderr.lines().count()), (Some(1), 1), "{command}: {stderr}");
        assert!(stderr.contains("stdout: No space left"), "{stderr}");
    }
    assert_eq!(status("vcycle nonsense 2> /dev/full").0, Some(1));
    let train = "vcycle train --cfg tiny.yaml --device cpu SOLVER.MAX_EPOCH 9";
    assert_eq!(status(&format!("{train} OUTPUT_DIR a 2>&1 | head -0")).0, Some(0));
    assert_eq!(status(&format!("{train} OUTPUT_DIR b 2> /dev/full")).0, Some(0));
    assert!(place.losses("a").len() == 117 && place.losses("a") == place.losses("b"));
}

/// Training must not be lost because there is nothing to validate on.
#[test]
fn when_the_clips_give_out_what_was_trained_is_saved() {
    let Some(data) = std::env::var_os("VCYCLE_TEST_DATA").map(PathBuf::from) else {
        return println!("SKIPPED: VCYCLE_TEST_DATA is not set");
    };
    let place = Place::new();
    let list = fs::read_to_string(data.join("train.csv")).unwrap();
    let first: Vec<&str> = list.lines().filter(|l| !l.ends_with([' ', '4', '5'])).take(8).collect();
    fs::write(place.path("train.csv"), first.join("\n")).unwrap();
    fs::write(place.path("empty.mp4"), "").unwrap();
    fs::write(place.path("val.csv"), place.path("empty.mp4").display().to_string() + " 0\n").unwrap();
    let prefix = data.display().to_string();
    let keys = ["TRAIN.DATASET", "kinetics", "DATA.PATH_TO_DATA_DIR", ".", "DATA.PATH_PREFIX", &prefix];
    let more = ["TRAIN.EVAL_PERIOD", "1", "VCYCLE.CHECKPOINT_MINUTES", "100", "OUTPUT_DIR", "run"];
    let arguments = [&keys[..], &more].concat();
    for resume in [vec![], vec!["--resume"]] {
        let output = output(&mut place.train(&[&arguments[..], &resume].concat()));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("bad clip, left out") && !stderr.contains('\x1b'), "{stderr}");
        assert!(stderr.ends_with("none of the validation clips can be decoded\n"), "{stderr}");
        let iterations: Vec<u64> = place.checkpoints("run").iter().map(|c| c.state.iteration).collect();
        assert_eq!(iterations, [2], "{stderr}");
    }
}

#[test]
fn two_runs_do_not_share_a_folder() {
    let place = Place::new();
    let mut child = place.train(&["OUTPUT_DIR", "run"]).stderr(Stdio::null()).spawn().unwrap();
    wait_for(&place.path("run/log.jsonl"), 5);
    let message = refusal(&mut place.train(&["OUTPUT_DIR", "run", "--resume"]));
    assert!(message.contains("another run is writing there"), "{message}");
    child.kill().unwrap();
    child.wait().unwrap();
    let (code, stderr) = finish(place.train(&["OUTPUT_DIR", "run", "--resume"]).spawn().unwrap());
    assert_eq!(code, Some(0), "{stderr}");
}

#[test]
fn says_what_it_chose() {
    let place = Place::new();
    let output = output(&mut place.train(&["SOLVER.MAX_EPOCH", "9", "NUM_GPUS", "2", "--threads", "1"]));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    for part in [
        "device: cpu, 1 of",
        "clips: moving_shapes",
        "resample: trilinear",
        "NUM_GPUS 2, devices used 1",
        "4x8x32 (clips x frames x crop), 2 batch-norm splits",
        "runs/tiny",
        "val loss",
        "clips/s",
        "ETA",
    ] {
        assert!(stderr.contains(part), "{part} is not in:\n{stderr}");
    }
    for file in ["config.yaml", "log.jsonl", "summary.json", "checkpoints"] {
        assert!(place.path("runs/tiny").join(file).exists(), "{file}");
    }
}

/// How often to kill: a few times, or as often as `VCYCLE_KILLS` says (scripts/kill_series.sh).
fn num_kills() -> u64 {
    std::env::var("VCYCLE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(3)
}

#[test]
fn killed_at_random_moments_it_goes_on_with_the_same_losses() {
    let place = Place::new();
    let start = Instant::now();
    assert!(output(&mut place.train(&["OUTPUT_DIR", "whole"])).status.success());
    let whole = start.elapsed();
    let expected = place.losses("whole");
    assert_eq!(expected.len(), 120 + 10);
    let mut kills_that_hit = 0;
    for kill in 0..num_kills() {
        let name = format!("killed_{kill}");
        // Spread over the whole run, start and end included, and different every time.
        let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
        let moment = whole.mul_f64((kill as f64 + f64::from(nanos % 1000) / 1000.0) / num_kills() as f64);
        let mut child = place.train(&["OUTPUT_DIR", &name]).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(moment);
        child.kill().unwrap();
        child.wait().unwrap();
        let log = place.path(&name).join("log.jsonl");
        let logged = fs::read_to_string(&log).map_or(0, |text| text.matches("\"kind\":\"iteration\"").count());
        let saved: Vec<u64> = match log.exists() {
            true => place.checkpoints(&name).iter().map(|c| c.state.iteration).collect(),
            false => vec![],
        };
        kills_that_hit += u64::from(logged < 120);
        let (code, stderr) = finish(place.train(&["OUTPUT_DIR", &name, "--resume"]).spawn().unwrap());
        assert_eq!(code, Some(0), "{stderr}");
        assert_eq!(place.losses(&name), expected, "killed after {moment:?} at iteration {logged}");
        println!(
            "kill {kill}: after {:.2} s, {logged} iterations logged, checkpoints at {saved:?}, resumed: same losses",
            moment.as_secs_f64()
        );
    }
    assert!(kills_that_hit > 0, "every kill came after the end of the run");
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_exits() {
    let place = Place::new();
    assert!(output(&mut place.train(&["OUTPUT_DIR", "whole"])).status.success());
    for (signal, steps) in [("-INT", 5), ("-TERM", 30)] {
        let child =
            place.train(&["OUTPUT_DIR", "stopped", "--resume", "VCYCLE.CHECKPOINT_MINUTES", "100"]).spawn().unwrap();
        wait_for(&place.path("stopped/log.jsonl"), steps);
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let (code, stderr) = finish(child);
        assert_eq!(code, Some(130), "{stderr}");
        assert!(stderr.contains("saved, go on with --resume"), "{stderr}");
        assert!(!fs::read_to_string(place.path("stopped/summary.json")).unwrap().contains("\"finished\": true"));
    }
    let (code, stderr) = finish(place.train(&["OUTPUT_DIR", "stopped", "--resume"]).spawn().unwrap());
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(place.losses("stopped"), place.losses("whole"));
}

/// The shell's limit on the size of a file stands for a full disk: a write fails in the middle of a checkpoint.
#[cfg(unix)]
#[test]
fn a_full_disk_is_one_error_and_what_was_saved_stays() {
    let place = Place::new();
    assert!(output(&mut place.train(&["OUTPUT_DIR", "whole"])).status.success());
    let child = place.train(&["OUTPUT_DIR", "run"]).spawn().unwrap();
    wait_for(&place.path("run/log.jsonl"), 40);
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(finish(child).0, Some(130));
    let saved = place.checkpoints("run");

    let program = env!("CARGO_BIN_EXE_vcycle");
    let script = format!(
        "trap '' XFSZ; ulimit -f 200; exec '{program}' train --cfg tiny.yaml --device cpu OUTPUT_DIR run --resume"
    );
    let mut limited = Command::new("sh");
    limited.current_dir(place.folder.path()).args(["-c", &script]);
    let output = output(&mut limited);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let last = stderr.lines().last().unwrap();
    assert!(last.contains("cannot save") && last.contains("is complete and can be resumed"), "{stderr}");
    assert!(place.checkpoints("run") == saved, "the checkpoints of before are all there");

    let (code, stderr) = finish(place.train(&["OUTPUT_DIR", "run", "--resume"]).spawn().unwrap());
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(place.losses("run"), place.losses("whole"));
}

/// TRAIN.AUTO_RESUME is True by default, as PySlowFast has it.
#[test]
fn a_second_run_goes_on_where_the_first_saved() {
    let place = Place::new();
    let one = ["OUTPUT_DIR", "auto", "SOLVER.MAX_EPOCH", "1", "SOLVER.STEPS", "[0]", "SOLVER.LRS", "[1]"];
    let said = |arguments: &[&str]| {
        let output = output(&mut place.train(arguments));
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, stderr) = said(&one);
    assert_eq!(status, Some(0), "{stderr}");
    assert!(!stderr.contains("resumed"), "{stderr}");
    let (status, stderr) = said(&one);
    assert_eq!(status, Some(0), "{stderr}");
    assert!(stderr.contains("resumed at iteration 12, epoch 1"), "{stderr}");
    let refused = refusal(&mut place.train(&[&one[..], &["TRAIN.AUTO_RESUME", "False"]].concat()));
    assert!(refused.contains("auto is not empty"), "{refused}");
}
