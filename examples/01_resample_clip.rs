//! Resamples a clip to the grid of a training step: the first stage of the data's road, on whatever device there is.
//!
//! `cargo run --release --example 01_resample_clip`

use vcycle::device::{Buffer, DType, Device, Tensor};
use vcycle::ops::resample::{self, Axis, ClipGrid, Filter, Pathway, Resample, SourceClip};
use vcycle::shape::ActivationShape;

fn main() -> vcycle::Result<()> {
    // 1. A device, and a queue of work on it. `auto` takes a GPU where there is one.
    let (device, reason) = Device::select("auto")?;
    println!("{reason}");
    let stream = device.stream()?;

    // 2. A decoded clip, [frames][height][width][3] bytes: here a bright square that moves to the right.
    let (frames, height, width) = (32, 120, 160);
    let mut pixels = vec![40u8; frames * height * width * 3];
    for t in 0..frames {
        for y in 40..80 {
            for x in 3 * t..3 * t + 40 {
                let at = ((t * height + y) * width + x) * 3;
                pixels[at..at + 3].copy_from_slice(&[250, 200, 40]);
            }
        }
    }

    // 3. Where the samples lie: 8 frames of the 32, and the middle 120 x 120 pixels at 64 x 64, mirrored.
    let grid = ClipGrid {
        t: Axis::crop_then_resize(0, frames, 8),
        y: Axis::crop_then_resize(0, height, 64),
        x: Axis::crop_then_resize(20, 140, 64),
        flip: true,
    };
    let memory = Buffer::from_host(&device, &pixels)?;
    let clip = SourceClip { memory, frames, height_px: height, width_px: width, origin_px: (0, 0), grid };

    // 4. SlowFast's two inputs come out of one launch: the Fast pathway shows all samples, the Slow pathway two of them.
    let op = Resample { filter: Filter::Trilinear, mean: [0.45; 3], std: [0.225; 3] };
    let (fast_frames, slow_frames) = ([0, 1, 2, 3, 4, 5, 6, 7], [0, 7]);
    let fast = Tensor::zeroed(&device, DType::Bf16, ActivationShape::new(1, 8, 64, 64, 4))?;
    let slow = Tensor::zeroed(&device, DType::Bf16, ActivationShape::new(1, 2, 64, 64, 4))?;
    let pathways = [
        Pathway { output: &fast, frame_indices: &fast_frames },
        Pathway { output: &slow, frame_indices: &slow_frames },
    ];
    let scratch = Buffer::zeroed(&device, resample::workspace_bytes(1, fast_frames.len() + slow_frames.len()))?;
    let workspace = scratch.slice::<u8>(0, scratch.len_bytes())?;
    resample::forward(&stream, &op, &[clip], &pathways, &workspace)?;
    stream.synchronize()?;

    // 5. The square's brightness along the middle row of the first and the last frame.
    let values = fast.read::<half::bf16>()?;
    for t in [0, 7] {
        let row = (0..64).step_by(4).map(|x| values[((t * 64 + 32) * 64 + x) * 4].to_f32());
        let shades: String = row.map(|v| if v > 1.0 { '#' } else { '.' }).collect();
        println!("frame {t}: {shades}");
    }
    Ok(())
}
