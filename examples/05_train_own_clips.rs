//! The whole trainer on clips of your own: a configuration, two `ClipSource`s, a folder.
//!
//! `cargo run --release --example 05_train_own_clips`

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use vcycle::clip::{ClipSource, Frames, VideoInfo};
use vcycle::config::Config;
use vcycle::device::Device;
use vcycle::train::{Lines, Start, Trainer};

/// PySlowFast's keys. A dataset is named all the same, but what is trained on are the sources below.
const CONFIG: &str = "
TRAIN: {DATASET: kinetics, BATCH_SIZE: 4, EVAL_PERIOD: 2}
TEST: {ENABLE: False, BATCH_SIZE: 8}
MULTIGRID: {LONG_CYCLE: True, SHORT_CYCLE: True, BN_BASE_SIZE: 4, EPOCH_FACTOR: 3}
DATA: {NUM_FRAMES: 8, SAMPLING_RATE: 2, TRAIN_CROP_SIZE: 32, TRAIN_JITTER_SCALES: [36, 44], INPUT_CHANNEL_NUM: [3]}
MODEL: {ARCH: i3d, MODEL_NAME: ResNet, NUM_CLASSES: 2, DROPOUT_RATE: 0.0}
RESNET: {DEPTH: 18, WIDTH_PER_GROUP: 4, NUM_BLOCK_TEMP_KERNEL: [[2], [2], [2], [2]]}
SOLVER: {BASE_LR: 0.02, LR_POLICY: steps_with_relative_lrs, STEPS: [0, 4], LRS: [1, 0.1], MAX_EPOCH: 6}
";

/// Lamps that blink slowly (class 0) or fast (class 1), each with a phase of its own.
struct Lamps {
    num_clips: usize,
    first_phase: u32,
}

impl ClipSource for Lamps {
    fn len(&self) -> usize {
        self.num_clips
    }

    fn num_classes(&self) -> usize {
        2
    }

    fn label(&self, idx: usize) -> u32 {
        (idx % 2) as u32
    }

    fn name(&self, idx: usize) -> String {
        format!("lamp {idx}")
    }

    fn frames(&self, idx: usize, choose: &mut dyn FnMut(&VideoInfo) -> Vec<u32>) -> vcycle::Result<Frames> {
        let (height_px, width_px) = (48, 64);
        let (codec, decoder) = ("raw".into(), "own".into());
        let indices = choose(&VideoInfo { codec, decoder, num_frames: 60, fps: 30.0, width_px, height_px });
        let period = if self.label(idx) == 0 { 20 } else { 6 };
        let phase = self.first_phase + idx as u32;
        let light = |frame: &u32| if (frame + phase) % period < period / 2 { 220 } else { 30 };
        let bytes = indices.iter().flat_map(|frame| std::iter::repeat_n(light(frame), height_px * width_px * 3));
        Ok(Frames { bytes: bytes.collect(), indices, height_px, width_px })
    }
}

fn main() -> vcycle::Result<()> {
    let config = Config::parse(CONFIG, "lamps", &[])?;
    let train = Arc::new(Lamps { num_clips: 64, first_phase: 0 });
    let val = Arc::new(Lamps { num_clips: 16, first_phase: 7 });
    let folder = std::env::temp_dir().join(format!("vcycle_lamps_{}", std::process::id()));
    let mut trainer = Trainer::new(&config, &Device::Cpu, train, val, &folder, Start::New)?;
    // Set the flag (from a signal handler, another thread) to save and stop; `Start::Resume` goes on.
    let stop = AtomicBool::new(false);
    let outcome = trainer.run(&mut Lines::new(std::io::stderr(), 10), &stop)?;
    println!("val top1 {:?} %, report in {}", outcome.summary.val_top1, folder.join("report.html").display());
    Ok(())
}
