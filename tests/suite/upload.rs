//! The ring that clips go up through.

use std::sync::Arc;

use vcycle::Error;
use vcycle::clip::HostClip;
use vcycle::device::{DType, Device, Graph, Tensor};
use vcycle::ops::resample::{self, Axis, ClipGrid, Filter, Pathway, Resample, SourceClip};
use vcycle::shape::ActivationShape;
use vcycle::upload::{Batch, Upload};

use crate::executors;

/// A clip of noise that differs with `salt`.
fn clip(frames: usize, size_px: usize, salt: usize) -> HostClip {
    let axis = Axis::identity(size_px);
    HostClip {
        bytes: Arc::new((0..frames * size_px * size_px * 3).map(|i| (i * 37 + i / 7 * salt + salt) as u8).collect()),
        frames,
        height_px: size_px,
        width_px: size_px,
        origin_px: (0, 0),
        grid: ClipGrid { t: Axis::identity(frames), y: axis, x: axis, flip: salt % 2 == 1 },
    }
}

fn holds(clips: &[SourceClip], expected: &[HostClip]) -> bool {
    let same = |(a, b): (&SourceClip, &HostClip)| a.memory.read::<u8>().unwrap() == *b.bytes && a.grid == b.grid;
    clips.len() == expected.len() && clips.iter().zip(expected).all(same)
}

#[test]
fn a_batch_stays_until_the_next_but_one() {
    for device in executors::all() {
        let stream = device.stream().unwrap();
        let mut upload = Upload::new(&device).unwrap();
        let batches: Vec<Vec<HostClip>> = (0..4).map(|k| vec![clip(2, 5, k), clip(3, 4, k + 9)]).collect();
        let mut bring = |from: &[HostClip]| {
            let batch = upload.batch(&stream, from, 1.0, 0, |_, _| Ok(())).unwrap();
            upload.is_read(&stream).unwrap();
            batch
        };
        let mut before: Option<Batch> = None;
        for (k, from) in batches.iter().enumerate() {
            let batch = bring(from);
            assert!(holds(&batch.clips, from), "{device}, batch {k}");
            assert_eq!(batch.cost.bytes, 256 + 3 * 4 * 4 * 3, "150 bytes, rounded up, and 144");
            if let Some(before) = before.filter(|_| device != Device::Cpu) {
                assert!(holds(&before.clips, &batches[k - 1]), "{device}: batch {} is overwritten too early", k - 1);
            }
            before = Some(batch);
        }
    }
}

#[test]
fn memory_is_made_once_for_the_largest_batch() {
    for device in executors::all() {
        let stream = device.stream().unwrap();
        let mut upload = Upload::new(&device).unwrap();
        let mut lens = vec![];
        for num_clips in [1, 1, 4, 3, 4, 5, 5] {
            let from: Vec<HostClip> = (0..num_clips).map(|k| clip(2, 8, k)).collect();
            let batch = upload.batch(&stream, &from, 4.0 / num_clips as f64, 100, |_, _| Ok(())).unwrap();
            assert!(holds(&batch.clips, &from));
            lens.push(upload.len_bytes());
        }
        // The largest was said to have four clips; the fifth makes it grow, slot by slot.
        let slots = if device == Device::Cpu { 1 } else { 2 };
        assert!(lens[slots - 1..5].iter().all(|&len| len == lens[4]), "{device}: {lens:?}");
        assert!(lens[6] > lens[4] && lens[6] <= slots * (256 + 5 * 512), "{device}: {lens:?}");
    }
}

/// The table goes up with the clips: what `forward` and `forward_with_table` make is the same, and the latter is one launch.
#[test]
fn clips_go_up_with_the_table_of_the_resampling() {
    let op = Resample { filter: Filter::Trilinear, mean: [0.45; 3], std: [0.225; 3] };
    for device in executors::all() {
        let stream = device.stream().unwrap();
        let mut upload = Upload::new(&device).unwrap();
        let outputs = [0, 1].map(|_| Tensor::zeroed(&device, DType::F32, ActivationShape::new(2, 2, 6, 6, 4)).unwrap());
        for step in 0..3 {
            let from = [clip(2, 6, step), clip(2, 6, step + 5)];
            let paths = [0, 1].map(|i| [Pathway { output: &outputs[i], frame_indices: &[0, 1] }]);
            let bytes = resample::workspace_bytes(2, 2);
            let write = |clips: &[SourceClip], table: &mut [u8]| resample::write_table(clips, &paths[0], table);
            let batch = upload.batch(&stream, &from, 1.0, bytes, write).unwrap();
            let run = || resample::forward_with_table(&stream, &op, &batch.clips, &paths[0], &batch.table);
            run().unwrap();
            if device != Device::Cpu {
                assert_eq!(Graph::capture(&stream, run).unwrap().num_launches(), 1);
            }
            upload.is_read(&stream).unwrap();
            resample::forward(&stream, &op, &batch.clips, &paths[1], &batch.table).unwrap();
            let [with_table, plain] = [0, 1].map(|i: usize| outputs[i].memory().read::<f32>().unwrap());
            assert!(with_table == plain && plain.iter().any(|v| *v != 0.0), "{device}, step {step}");
        }
        let too_small = upload.batch(&stream, &[clip(2, 6, 0)], 1.0, 8, |clips, table| {
            resample::write_table(clips, &[Pathway { output: &outputs[0], frame_indices: &[0] }], table)
        });
        assert!(matches!(too_small, Err(Error::Shape { message, .. }) if message.contains("got room for 8")));
    }
}
