//! Fills the tables and starts the kernel, on the GPU and on the emulator.

use super::params::{ClipEntry, FrameEntry, MAX_PATHWAYS, Params};
use super::plan::{Plan, plan};
use super::{OP, Pathway, Resample, SourceClip};
use crate::device::{Slice, Stream, launch};
use crate::error::{Error, Result};

/// The table of clips and frames that the kernel reads, to the start of `to`.
pub(super) fn write_table(clips: &[SourceClip], pathways: &[Pathway<'_>], to: &mut [u8]) {
    let mut len = 0;
    let mut write = |bytes: &[u8]| {
        to[len..len + bytes.len()].copy_from_slice(bytes);
        len += bytes.len();
    };
    clips.iter().for_each(|clip| write(bytemuck::bytes_of(&entry(clip))));
    write(bytemuck::cast_slice(&frame_table(pathways)));
}

pub(super) fn forward(
    stream: &Stream,
    op: &Resample,
    clips: &[SourceClip],
    pathways: &[Pathway<'_>],
    table: &Slice,
) -> Result<()> {
    let Some(first) = pathways.first() else { return Ok(()) };
    let num_frames = frame_table(pathways).len();
    if clips.is_empty() || num_frames == 0 || first.output.shape().h * first.output.shape().w == 0 {
        return Ok(());
    }
    let x_axes = clips.iter().map(|clip| &clip.grid.x);
    let plan = plan(op.filter, first.output.dtype(), first.output.shape(), num_frames, x_axes)?;
    if !table.address().is_multiple_of(8) {
        return Err(Error::shape(OP, "the table must begin at a multiple of 8 bytes"));
    }
    let reads: Vec<&Slice> = clips.iter().map(|clip| &clip.memory).chain([table]).collect();
    let writes: Vec<&Slice> = pathways.iter().map(|pathway| pathway.output.memory()).collect();
    let params = params(op, clips.len(), pathways, table, &plan);
    launch::run(stream, OP, plan.kernel, plan.config, &reads, &writes, &params)
}

fn entry(clip: &SourceClip) -> ClipEntry {
    ClipEntry {
        source: clip.memory.address(),
        source_bytes: clip.memory.len() as u64,
        height: clip.height_px as i32,
        width: clip.width_px as i32,
        flip: i32::from(clip.grid.flip),
        origin_bytes: clip.origin_bytes().unwrap_or(0) as i32,
        t: (&clip.grid.t).into(),
        y: (&clip.grid.y).into(),
        x: (&clip.grid.x).into(),
    }
}

/// One entry a sample, which all pathways share; a sample that a pathway shows twice has two.
fn frame_table(pathways: &[Pathway<'_>]) -> Vec<FrameEntry> {
    let mut table: Vec<FrameEntry> = Vec::with_capacity(pathways.iter().map(|p| p.frame_indices.len()).sum());
    for (i, pathway) in pathways.iter().enumerate() {
        for (frame, &sample) in pathway.frame_indices.iter().enumerate() {
            let sample = sample as i32;
            let free = table.iter_mut().find(|entry| entry.sample == sample && entry.frame[i] < 0);
            match free {
                Some(entry) => entry.frame[i] = frame as i32,
                None => {
                    let mut entry = FrameEntry { sample, frame: [-1; MAX_PATHWAYS] };
                    entry.frame[i] = frame as i32;
                    table.push(entry);
                }
            }
        }
    }
    table
}

fn params(op: &Resample, num_clips: usize, pathways: &[Pathway<'_>], table: &Slice, plan: &Plan) -> Params {
    let shape = pathways[0].output.shape();
    let (multiply, add) = op.multiply_add();
    let of = |value: fn(&Pathway<'_>) -> i32| std::array::from_fn(|i| pathways.get(i).map_or(0, value));
    let has_vector_stores = pathways.iter().all(|pathway| {
        let output = pathway.output;
        let pixel_bytes = 4 * output.dtype().size_bytes() as u64;
        shape.c == 4 && output.pitch_c() == 4 && output.memory().address().is_multiple_of(pixel_bytes)
    });
    Params {
        clips: table.address(),
        frames: table.address() + (num_clips * size_of::<ClipEntry>()) as u64,
        output: std::array::from_fn(|i| pathways.get(i).map_or(0, |p| p.output.memory().address())),
        output_frames: of(|p| p.frame_indices.len() as i32),
        pitch_c: of(|p| p.output.pitch_c() as i32),
        height: shape.h as i32,
        width: shape.w as i32,
        channels: shape.c as i32,
        tile: plan.tile as i32,
        num_tiles: plan.num_tiles as i32,
        row_floats: plan.row_floats as i32,
        has_vector_stores: i32::from(has_vector_stores),
        reserved: 0,
        multiply,
        add,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{DType, Device, Tensor};
    use crate::shape::ActivationShape;

    #[test]
    fn pathways_share_the_samples_that_both_show() {
        let tensor = |t| Tensor::zeroed(&Device::Cpu, DType::F32, ActivationShape::new(1, t, 1, 1, 3)).expect("small");
        let (fast, slow) = (tensor(4), tensor(3));
        let pathways = [
            Pathway { output: &fast, frame_indices: &[0, 1, 2, 3] },
            Pathway { output: &slow, frame_indices: &[0, 3, 3] },
        ];
        let row = |sample, fast, slow| FrameEntry { sample, frame: [fast, slow, -1, -1] };
        let want = [row(0, 0, 0), row(1, 1, -1), row(2, 2, -1), row(3, 3, 1), row(3, -1, 2)];
        assert_eq!(frame_table(&pathways), want);
    }
}
