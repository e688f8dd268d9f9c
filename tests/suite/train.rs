//! The training loop end to end, on networks and clips so small that a run takes a second.

mod begin;
mod elsewhere;
mod micro_batches;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vcycle::checkpoint::{Checkpoint, Store};
use vcycle::clip::{ClipSource, Frames, VideoInfo};
use vcycle::config::Config;
use vcycle::device::{Buffer, Device};
use vcycle::model::Mode;
use vcycle::shape::StepShape;
use vcycle::train::log::{self, Epoch, Line};
use vcycle::train::{Outcome, Progress, Start, StepReport, Trainer};
use vcycle::{Error, Result};

use crate::executors;

const SOLVER: &str = "SOLVER: {BASE_LR: 0.02, LR_POLICY: steps_with_relative_lrs, STEPS: [0, 4, 6], LRS: [1, 0.1, 0.01], \
                      MAX_EPOCH: 8, WARMUP_EPOCHS: 1.0, WARMUP_START_LR: 0.002}";
const CLIPS: &str = "DATA: {NUM_FRAMES: 4, SAMPLING_RATE: 2, TRAIN_CROP_SIZE: 32, TRAIN_JITTER_SCALES: [36, 40], \
                     INPUT_CHANNEL_NUM: [3], RANDOM_FLIP: False}";
const SLOW: &str = "{ARCH: slow, MODEL_NAME: ResNet, NUM_CLASSES: 3, DROPOUT_RATE: 0.5}";

/// A ResNet of one pathway with 18 layers and 4 channels in the stem.
fn yaml(more: &str) -> String {
    format!(
        "TRAIN: {{DATASET: moving_shapes, BATCH_SIZE: 4, EVAL_PERIOD: 2, CHECKPOINT_PERIOD: 3}}\n\
         TEST: {{ENABLE: False, BATCH_SIZE: 4}}\n{CLIPS}\nRESNET: {{DEPTH: 18, WIDTH_PER_GROUP: 4, \
         NUM_BLOCK_TEMP_KERNEL: [[2], [2], [2], [2]]}}\nMODEL: {SLOW}\n{SOLVER}\n{more}\n"
    )
}

fn config(more: &str, overrides: &[&str]) -> Config {
    let overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
    Config::parse(&yaml(more), "test", &overrides).unwrap()
}

/// Both cycles: 4x4x32 becomes 16x2x22 and more.
fn multigrid_config(overrides: &[&str]) -> Config {
    config("MULTIGRID: {LONG_CYCLE: True, SHORT_CYCLE: True, EPOCH_FACTOR: 4, BN_BASE_SIZE: 4}", overrides)
}

/// Clips whose label is their colour; some may be broken. Notes how many frames were asked for.
struct Colours {
    num_clips: usize,
    broken: BTreeSet<usize>,
    frames_asked: Mutex<BTreeSet<usize>>,
}

impl Colours {
    fn new(num_clips: usize) -> Arc<Colours> {
        Colours::with_broken(num_clips, [])
    }

    fn with_broken(num_clips: usize, broken: impl IntoIterator<Item = usize>) -> Arc<Colours> {
        Arc::new(Colours { num_clips, broken: broken.into_iter().collect(), frames_asked: Mutex::default() })
    }
}

impl ClipSource for Colours {
    fn len(&self) -> usize {
        self.num_clips
    }

    fn num_classes(&self) -> usize {
        3
    }

    fn label(&self, idx: usize) -> u32 {
        (idx % 3) as u32
    }

    fn name(&self, idx: usize) -> String {
        format!("clip {idx}")
    }

    fn frames(&self, idx: usize, choose: &mut dyn FnMut(&VideoInfo) -> Vec<u32>) -> Result<Frames> {
        if self.broken.contains(&idx) {
            return Err(Error::Decode { path: self.name(idx), message: "broken on purpose".into() });
        }
        let (width_px, height_px) = (44, 40);
        let info =
            VideoInfo { codec: "none".into(), decoder: "test".into(), num_frames: 16, fps: 30.0, width_px, height_px };
        let indices = choose(&info);
        self.frames_asked.lock().unwrap().insert(indices.len());
        let byte = |frame: u32, p: usize, c: usize| match c == idx % 3 {
            true => 200 - (frame as usize * 3 + p % 7) as u8,
            false => (idx * 5 % 60 + p % 11) as u8,
        };
        let pixels = width_px * height_px;
        let bytes = indices.iter().flat_map(|&f| (0..pixels * 3).map(move |i| byte(f, i / 3, i % 3))).collect();
        Ok(Frames { bytes, indices, height_px, width_px })
    }
}

/// Does something after every step; sets the stop flag where it is told to.
struct Watch<'a> {
    after_step: Box<dyn FnMut(u64) + Send + 'a>,
    messages: Vec<String>,
}

impl<'a> Watch<'a> {
    fn new(after_step: impl FnMut(u64) + Send + 'a) -> Watch<'a> {
        Watch { after_step: Box::new(after_step), messages: vec![] }
    }

    fn nothing() -> Watch<'a> {
        Watch::new(|_| {})
    }
}

impl Progress for Watch<'_> {
    fn message(&mut self, text: &str) {
        self.messages.push(text.to_string());
    }

    fn step(&mut self, report: &StepReport<'_>) {
        (self.after_step)(report.step.iteration);
    }

    fn epoch(&mut self, _: &Epoch, _: u64) {}
}

fn trainer(config: &Config, train: Arc<Colours>, folder: &Path, start: Start) -> Result<Trainer> {
    Trainer::new(config, &Device::Cpu, train, Colours::new(9), folder, start)
}

/// Losses of all steps and of the evaluation after the first epoch on `device`.
fn losses_of_an_epoch(device: &Device) -> Vec<f64> {
    let folder = tempfile::tempdir().unwrap();
    let overrides = "TRAIN.EVAL_PERIOD 1 SOLVER.MAX_EPOCH 1 SOLVER.STEPS [0] SOLVER.LRS [1] MODEL.DROPOUT_RATE 0.0";
    let config = config("", &overrides.split(' ').collect::<Vec<_>>());
    let (train, val) = (Colours::new(12), Colours::new(8));
    let mut trainer = Trainer::new(&config, device, train, val, folder.path(), Start::New).unwrap();
    let outcome = trainer.run(&mut Watch::nothing(), &AtomicBool::new(false)).unwrap();
    assert!(outcome.finished);
    let lines = log::read(&folder.path().join("log.jsonl")).unwrap().into_iter();
    let losses = lines.filter_map(|line| match line {
        Line::Iteration(step) => step.loss,
        Line::Epoch(epoch) => epoch.val_loss,
        _ => None,
    });
    losses.collect()
}

/// Decoded clips to validation, in 16 bits. Only the first loss is near that in f32: how three steps on four clips each go on
/// depends on the last digits in f32 too.
#[test]
fn an_epoch_on_kernels_begins_as_one_in_f32() {
    for device in &executors::with_kernels() {
        let (losses, expected) = (losses_of_an_epoch(device), losses_of_an_epoch(&Device::Cpu));
        assert_eq!((losses.len(), expected.len()), (4, 4), "{losses:?}");
        assert!((losses[0] - expected[0]).abs() < 0.02 * expected[0], "{device}: {losses:?}; in f32 {expected:?}");
        assert!(losses.iter().all(|l| l.is_finite()), "{losses:?}");
        assert_eq!(losses, losses_of_an_epoch(device));
    }
}

fn run(config: &Config, folder: &Path, start: Start, watch: &mut Watch<'_>) -> Result<Outcome> {
    trainer(config, Colours::new(24), folder, start)?.run(watch, &AtomicBool::new(false))
}

/// What two runs of the same training must agree on: all lines but for times, and the final network.
fn essence(folder: &Path) -> (Vec<String>, Checkpoint) {
    let lines = log::read(&folder.join("log.jsonl")).unwrap().into_iter().filter_map(|line| match line {
        Line::Iteration(s) => {
            Some(format!("{} {} {:?} {} {:?} {}", s.iteration, s.epoch, s.shape, s.splits, s.loss, s.lr))
        }
        Line::Epoch(e) => {
            Some(format!("{} {:?} {:?} {:?} {:?}", e.epoch, e.train_loss, e.train_top1, e.val_top1, e.val_loss))
        }
        _ => None,
    });
    let newest = Store::open(&folder.join("checkpoints"), 3).unwrap().newest().unwrap().unwrap();
    let mut checkpoint = Checkpoint::load(&newest).unwrap();
    (checkpoint.state.wall_s, checkpoint.state.cpu_s) = (0.0, 0.0);
    (lines.collect(), checkpoint)
}

fn epochs(folder: &Path) -> Vec<Epoch> {
    let lines = log::read(&folder.join("log.jsonl")).unwrap();
    lines.into_iter().filter_map(|l| if let Line::Epoch(e) = l { Some(e) } else { None }).collect()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

#[test]
fn learns_a_few_clips() {
    let folder = tempfile::tempdir().unwrap();
    let config = config("", &["SOLVER.STEPS", "[0, 20, 23]", "SOLVER.MAX_EPOCH", "24", "MODEL.DROPOUT_RATE", "0"]);
    let outcome = run(&config, folder.path(), Start::New, &mut Watch::nothing()).unwrap();
    assert!(outcome.finished);
    let summary = outcome.summary;
    assert_eq!((summary.iterations, summary.clips, summary.skipped_steps, summary.bad_clips), (144, 576, 0, 0));
    let epochs = epochs(folder.path());
    let (first, last) = (epochs[0].train_loss.unwrap(), epochs[23].train_loss.unwrap());
    assert!(last < 0.5 * first, "train loss {first} -> {last}");
    assert_eq!(summary.val_top1, epochs[23].val_top1);
    assert!(summary.val_top1.unwrap() > 80.0, "{:?}", summary.val_top1);
    // EVAL_PERIOD 2.
    assert_eq!(epochs.iter().map(|e| e.val_top1.is_some()).collect::<Vec<_>>(), [false, true].repeat(12));
    let text = fs::read_to_string(folder.path().join("summary.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    for key in ["val_top1", "wall_s", "cpu_s", "clips", "iterations", "skipped_steps", "bad_clips"] {
        assert!(json[key].is_number(), "{key}: {json}");
    }
    assert_eq!(json["device"], "cpu");
    let again = Config::load(folder.path().join("config.yaml"), &[]).unwrap();
    assert_eq!(again.entries(), config.entries(), "config.yaml is the configuration as run");
}

/// A copy of the folder after a step is what a kill at that moment leaves.
#[test]
fn a_run_killed_anywhere_goes_on_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, killed_at) = (folder.path().join("whole"), [1, 7, 12, 13, 20, 31]);
    let config = multigrid_config(&[
        "BN.USE_PRECISE_STATS",
        "True",
        "BN.NUM_BATCHES_PRECISE",
        "3",
        "VCYCLE.PRECISE_BN_SHAPE",
        "long_cycle",
        "SOLVER.CLIP_GRAD_L2NORM",
        "0.5",
        "MIXUP.ENABLE",
        "True",
    ]);
    let copy_of = |iteration: u64| folder.path().join(iteration.to_string());
    let mut watch = Watch::new(|iteration| {
        if killed_at.contains(&iteration) {
            copy_folder(&whole, &copy_of(iteration));
        }
    });
    let outcome = run(&config, &whole, Start::New, &mut watch).unwrap();
    drop(watch);
    assert!(outcome.summary.iterations > 31, "{} iterations", outcome.summary.iterations);
    let expected = essence(&whole);
    for iteration in killed_at {
        let killed = copy_of(iteration);
        let log_file = killed.join("log.jsonl");
        let mut log = fs::read(&log_file).unwrap();
        log.extend_from_slice(b"{\"kind\":\"iteration\",\"iter");
        fs::write(&log_file, log).unwrap();
        run(&config, &killed, Start::Resume, &mut Watch::nothing()).unwrap();
        let got = essence(&killed);
        assert_eq!(got.0, expected.0, "log after a kill at iteration {iteration}");
        assert!(got.1 == expected.1, "checkpoint after a kill at iteration {iteration}");
    }
}

/// At the default shape, or where the long cycle stands: the first evaluation comes at the coarsest shape.
#[test]
fn precise_statistics_are_measured_where_the_key_says() {
    let val_losses = |shape: &str| -> Vec<f64> {
        let folder = tempfile::tempdir().unwrap();
        let precise = ["BN.USE_PRECISE_STATS", "True", "BN.NUM_BATCHES_PRECISE", "2", "VCYCLE.PRECISE_BN_SHAPE", shape];
        let config = multigrid_config(&precise);
        let stop = AtomicBool::new(false);
        let mut trainer = trainer(&config, Colours::new(24), folder.path(), Start::New).unwrap();
        let mut watch = Watch::new(|iteration| stop.store(iteration >= 12, Ordering::Relaxed));
        trainer.run(&mut watch, &stop).unwrap();
        epochs(folder.path()).iter().filter_map(|epoch| epoch.val_loss).collect()
    };
    let (default, long_cycle) = (val_losses("default"), val_losses("long_cycle"));
    assert!(!default.is_empty() && default.len() == long_cycle.len(), "{default:?} {long_cycle:?}");
    assert_ne!(default[0], long_cycle[0]);
}

#[test]
fn a_stopped_run_goes_on_with_the_same_bits_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, stopped) = (folder.path().join("whole"), folder.path().join("stopped"));
    let config = multigrid_config(&[]);
    run(&config, &whole, Start::New, &mut Watch::nothing()).unwrap();
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let mut start = Start::New;
    for last in [1, 2, 15, u64::MAX] {
        let stop = AtomicBool::new(false);
        let mut watch = Watch::new(|iteration| stop.store(iteration >= last, Ordering::Relaxed));
        let mut trainer = trainer(&config, Colours::new(24), &stopped, start).unwrap();
        let outcome = match last {
            2 => one_thread.install(|| trainer.run(&mut watch, &stop)).unwrap(),
            _ => trainer.run(&mut watch, &stop).unwrap(),
        };
        assert_eq!(outcome.finished, last == u64::MAX);
        start = Start::Resume;
    }
    let (got, expected) = (essence(&stopped), essence(&whole));
    assert_eq!(got.0, expected.0);
    assert!(got.1 == expected.1, "final checkpoints differ");
    let again = run(&config, &stopped, Start::Resume, &mut Watch::nothing()).unwrap();
    assert!(again.finished, "a finished run has nothing left to do");
    assert_eq!(essence(&stopped).0, expected.0);
}

#[test]
fn validates_at_the_default_shape_and_switches_shapes_without_allocating() {
    let folder = tempfile::tempdir().unwrap();
    let config = multigrid_config(&[]);
    let (train, val) = (Colours::new(24), Colours::new(9));
    let mut trainer =
        Trainer::new(&config, &Device::Cpu, train.clone(), val.clone(), folder.path(), Start::New).unwrap();
    let made = Mutex::new(vec![]);
    let mut watch = Watch::new(|_| made.lock().unwrap().push(Buffer::count_made_on_this_thread()));
    trainer.run(&mut watch, &AtomicBool::new(false)).unwrap();
    drop(watch);

    let shapes = trainer.schedule().step_shapes();
    assert!(shapes.len() >= 4, "{shapes:?}");
    let frames: BTreeSet<usize> = shapes.iter().map(|s| s.frames).collect();
    assert_eq!(frames.len(), 3, "T/4, T/2 and T were trained");
    // At a sampling rate of 2 one source frame is decoded for each frame of the clip.
    assert_eq!(*val.frames_asked.lock().unwrap(), BTreeSet::from([4]), "validation asks for T frames only");
    let network = trainer.network();
    assert!(network.plan(Mode::Eval, StepShape::square(4, 4, 32, 1)).is_ok());
    for shape in shapes.iter().filter(|s| s.height_px != 32) {
        assert!(network.plan(Mode::Eval, *shape).is_err(), "{shape} is never evaluated at");
    }
    let made = made.into_inner().unwrap();
    assert_eq!(made[0], made[made.len() - 1], "buffers made after the first step: {made:?}");
}

#[test]
fn a_loss_that_stays_non_finite_ends_the_run() {
    let folder = tempfile::tempdir().unwrap();
    // (0 - 3e38) / 1e-3 is minus infinity: every clip is.
    let config = config("", &["DATA.MEAN", "[3e38, 3e38, 3e38]", "DATA.STD", "[1e-3, 1e-3, 1e-3]"]);
    let mut watch = Watch::nothing();
    let error = run(&config, folder.path(), Start::New, &mut watch).unwrap_err().to_string();
    assert!(error.contains("not finite in 10 steps in a row, up to iteration 10: lower SOLVER.BASE_LR"), "{error}");
    let lines = log::read(&folder.path().join("log.jsonl")).unwrap();
    let steps = lines.iter().filter(|l| matches!(l, Line::Iteration(s) if s.skipped && s.loss.is_none())).count();
    let named = lines.iter().filter(|l| matches!(l, Line::Skipped { clips, .. } if clips.len() == 4)).count();
    assert_eq!((steps, named), (10, 10));
    assert!(watch.messages.iter().any(|m| m.contains("skipped") && m.contains("clip ")), "{:?}", watch.messages);
}

#[test]
fn bad_clips_are_counted_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let train = Colours::with_broken(24, [3, 17]);
    let config = config("", &["SOLVER.MAX_EPOCH", "7"]);
    let outcome =
        trainer(&config, train, folder.path(), Start::New).unwrap().run(&mut Watch::nothing(), &AtomicBool::new(false));
    let summary = outcome.unwrap().summary;
    assert_eq!((summary.bad_clips, summary.iterations), (2, 42));
}

#[test]
fn a_run_without_a_usable_clip_stops() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = trainer(&config("", &[]), Colours::with_broken(24, 0..24), folder.path(), Start::New).unwrap();
    let error = trainer.run(&mut Watch::nothing(), &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(error.contains("none of the 24 clips can be decoded") && error.contains("broken on purpose"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let val = Colours::with_broken(9, 0..9);
    let mut trainer =
        Trainer::new(&config("", &[]), &Device::Cpu, Colours::new(24), val, folder.path(), Start::New).unwrap();
    let error = trainer.run(&mut Watch::nothing(), &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(error.contains("none of the validation clips can be decoded"), "{error}");
}

#[test]
fn a_new_run_never_writes_over_an_old_one() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("thesis.txt"), "years of work").unwrap();
    for start in [Start::New, Start::Resume] {
        let error =
            trainer(&config("", &[]), Colours::new(24), folder.path(), start).map(drop).unwrap_err().to_string();
        assert!(error.contains("is not empty") || error.contains("holds something else than a run"), "{error}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn another_model_or_configuration_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(true);
    let first = config("", &[]);
    trainer(&first, Colours::new(24), folder.path(), Start::New).unwrap().run(&mut Watch::nothing(), &stop).unwrap();
    let before = essence(folder.path());
    let refusal = |config: &Config, clips: usize| {
        let error = trainer(config, Colours::new(clips), folder.path(), Start::Resume).map(drop).unwrap_err();
        assert!(matches!(error, Error::Checkpoint(_)), "{error:?}");
        error.to_string()
    };
    let error = refusal(&config("", &["RESNET.WIDTH_PER_GROUP", "8"]), 24);
    assert!(error.contains("is of another model") && error.contains("of another shape"), "{error}");
    let error =
        refusal(&config("", &["RESNET.DEPTH", "50", "RESNET.NUM_BLOCK_TEMP_KERNEL", "[[3], [4], [6], [3]]"]), 24);
    assert!(error.contains("is of another model") && error.contains("missing: s2.pathway0_res2"), "{error}");
    let error = refusal(&config("", &["SOLVER.BASE_LR", "0.5"]), 24);
    assert!(error.contains("SOLVER.BASE_LR is 0.5, was 0.02"), "{error}");
    let error = refusal(&first, 23);
    assert!(error.contains("number of training clips is 23, was 24"), "{error}");
    let harmless = config("", &["LOG_PERIOD", "3", "VCYCLE.KEEP_CHECKPOINTS", "1"]);
    trainer(&harmless, Colours::new(24), folder.path(), Start::Resume).unwrap();
    assert!(essence(folder.path()) == before, "what was saved is untouched");
}
