//! Training data of your own: implement `ClipSource`, and a `Loader` turns it into batches for any step shape.
//!
//! `cargo run --example 03_own_clip_source`

use std::sync::Arc;

use vcycle::clip::{ClipSource, Frames, Loader, LoaderConfig, ResampleMode, Sampling, VideoInfo};
use vcycle::device::{Buffer, DType, Device, Tensor};
use vcycle::ops::resample::{self, Pathway, Resample, SourceClip};
use vcycle::shape::{ActivationShape, StepShape};

/// Lamps that blink slowly (class 0) or fast (class 1). A real source would open a file here, for instance with
/// `vcycle::clip::decode::Video`.
struct Lamps;

impl ClipSource for Lamps {
    fn len(&self) -> usize {
        100
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
        // Say what the video is; learn which frames are wanted; decode only those.
        let indices = choose(&VideoInfo {
            codec: "raw".into(),
            decoder: "own".into(),
            num_frames: 60,
            fps: 30.0,
            width_px,
            height_px,
        });
        let period = if self.label(idx) == 0 { 20 } else { 6 };
        let bytes = indices.iter().flat_map(|frame| {
            let light = if frame % period < period / 2 { 220 } else { 30 };
            std::iter::repeat_n(light, height_px * width_px * 3)
        });
        Ok(Frames { bytes: bytes.collect(), indices, height_px, width_px })
    }
}

fn main() -> vcycle::Result<()> {
    let sampling = Sampling {
        mode: ResampleMode::Trilinear,
        sampling_rate: 2,
        jitter_scales_px: (36, 44),
        eval_scale_px: 36,
        // Coarser shapes span more of the source, as the multigrid method wants.
        multigrid_base: Some((8, 32)),
        ..Sampling::default()
    };
    let config = LoaderConfig { seed: 1, threads: 2, ..LoaderConfig::default() };
    let loader = Loader::new(Arc::new(Lamps), sampling, &config)?;

    // Two steps of a multigrid schedule: the batch grows as the clips get coarser.
    let steps = [StepShape::square(8, 4, 22, 1), StepShape::square(2, 8, 32, 1)];
    let device = Device::Cpu;
    let stream = device.stream()?;
    for batch in loader.train_epoch(0, &steps, 0) {
        let batch = batch?;
        let shape = batch.shape;
        let upload = |clip: &vcycle::clip::HostClip| {
            let memory = Buffer::from_host(&device, &clip.bytes)?;
            let (frames, height_px, width_px) = (clip.frames, clip.height_px, clip.width_px);
            Ok(SourceClip { memory, frames, height_px, width_px, origin_px: clip.origin_px, grid: clip.grid })
        };
        let clips = batch.clips.iter().map(upload).collect::<vcycle::Result<Vec<SourceClip>>>()?;

        let op = Resample { filter: ResampleMode::Trilinear.filter(), mean: [0.45; 3], std: [0.225; 3] };
        let output = ActivationShape::new(shape.clips, shape.frames, shape.height_px, shape.width_px, 4);
        let output = Tensor::zeroed(&device, DType::F32, output)?;
        let frame_indices: Vec<u32> = (0..shape.frames as u32).collect();
        let workspace_bytes = resample::workspace_bytes(clips.len(), shape.frames);
        let workspace = Buffer::zeroed(&device, workspace_bytes)?.slice::<u8>(0, workspace_bytes)?;
        let pathway = Pathway { output: &output, frame_indices: &frame_indices };
        resample::forward(&stream, &op, &clips, &[pathway], &workspace)?;
        stream.synchronize()?;
        println!("step {shape}: labels {:?}, activations {}", batch.labels, output.shape());
    }
    println!("bad clips: {}", loader.bad_clips().len());
    Ok(())
}
