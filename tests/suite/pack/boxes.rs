//! Of packed frames only the box that a crop needs is read: with the samples of whole frames.

use std::fs;
use std::sync::Arc;

use vcycle::Result;
use vcycle::clip::pack::{Encoding, PackedClips};
use vcycle::clip::{
    Batches, ClipSource, FrameRule, Frames, HostClip, ListConfig, ListFormat, Loader, LoaderConfig, ResampleMode,
    Sampling, Split, TestCrops, VideoInfo, Views,
};
use vcycle::device::{Buffer, DType, Device, Tensor};
use vcycle::ops::resample::{self, Pathway, Resample, SourceClip};
use vcycle::shape::{ActivationShape, StepShape};

use super::{JPEG, RAW, open, quietly};

/// The same source, asked for whole frames.
struct Whole(PackedClips);

impl ClipSource for Whole {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn num_classes(&self) -> usize {
        self.0.num_classes()
    }

    fn label(&self, idx: usize) -> u32 {
        self.0.label(idx)
    }

    fn name(&self, idx: usize) -> String {
        self.0.name(idx)
    }

    fn frames(&self, idx: usize, choose: &mut dyn FnMut(&VideoInfo) -> Vec<u32>) -> Result<Frames> {
        self.0.frames(idx, choose)
    }
}

/// The samples of every clip of `batches`, one row of numbers each.
fn samples(batches: Batches, mode: ResampleMode) -> (Vec<Vec<f32>>, usize) {
    let (device, mut rows, mut bytes) = (Device::Cpu, vec![], 0);
    for batch in batches {
        let batch = batch.expect("batch");
        let shape = batch.shape;
        for host in &batch.clips {
            bytes += host.bytes.len();
            let HostClip { frames, height_px, width_px, origin_px, grid, .. } = *host;
            let memory = Buffer::from_host(&device, &host.bytes).expect("memory");
            let clips = [SourceClip { memory, frames, height_px, width_px, origin_px, grid }];
            let shape = ActivationShape::new(1, shape.frames, shape.height_px, shape.width_px, 3);
            let output = Tensor::zeroed(&device, DType::F32, shape).expect("output");
            let frame_indices: Vec<u32> = (0..shape.t as u32).collect();
            let pathways = [Pathway { output: &output, frame_indices: &frame_indices }];
            let op = Resample { filter: mode.filter(), mean: [0.45; 3], std: [0.225; 3] };
            let scratch = vec![0u8; resample::workspace_bytes(1, shape.t)];
            let scratch = Buffer::from_host(&device, &scratch).expect("scratch");
            resample::forward(&device.stream().expect("stream"), &op, &clips, &pathways, &scratch).expect("resample");
            rows.push(output.read::<f32>().expect("read"));
        }
    }
    (rows, bytes)
}

/// Training, validation and test see the same samples to the bit, from fewer bytes, whatever the filter and the codec.
#[test]
fn boxes_give_the_samples_of_whole_frames() {
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name);
    // Frames of 100 x 75 pixels with detail, in folders of pictures.
    let picture = |k: usize| {
        let light = move |column: usize, row: usize| {
            [(37 * column + 11 * row + 29 * k) as u8, (60 + 9 * column) as u8, (200 - 7 * row) as u8]
        };
        crate::datasets::jpeg::jpeg(100, 75, light)
    };
    let mut list = "original_vido_id video_id frame_id path labels\n".to_string();
    for k in 0..12 {
        fs::write(path(&format!("{k}.jpg")), picture(k)).expect("write");
        list += &format!("{} 0 {k} {k}.jpg \"1\"\n", k / 6);
    }
    fs::write(path("train.csv"), &list).expect("write");
    fs::write(path("val.csv"), &list).expect("write");
    let lists = ListConfig { format: ListFormat::Charades, ..ListConfig::kinetics(folder.path(), 3) };
    for encoding in [JPEG, RAW, Encoding { short_side_px: Some(60), ..JPEG }] {
        let to = path(&encoding.to_string());
        quietly(&lists, &to, encoding);
        for mode in [ResampleMode::Trilinear, ResampleMode::TrilinearAntialias, ResampleMode::Peer] {
            let sampling = Sampling {
                mode,
                frames: FrameRule::Stride,
                sampling_rate: 1,
                jitter_scales_px: (20, 64),
                eval_scale_px: 30,
                test_crops: TestCrops { scale_px: 40, single_scale_px: 40, single_crop_idx: 1 },
                multigrid_base: Some((6, 20)),
                ..Sampling::default()
            };
            let loader = |source: Arc<dyn ClipSource>| {
                Loader::new(source, sampling.clone(), &LoaderConfig::default()).expect("loader")
            };
            let open = || open(&to, ListFormat::Charades, Split::Train);
            let (boxes, whole) = (loader(Arc::new(open())), loader(Arc::new(Whole(open()))));
            let steps =
                [StepShape::square(6, 3, 14, 1), StepShape::square(6, 2, 20, 1), StepShape::square(4, 6, 10, 1)];
            let eval = StepShape::square(2, 3, 20, 1);
            let views = Views { num_clips: 2, num_crops: 3 };
            let all = |loader: &Loader| {
                [loader.train_epoch(1, &steps, 0), loader.eval_epoch(eval), loader.test_epoch(eval, views)]
                    .map(|batches| samples(batches, mode))
            };
            for (boxes, whole) in all(&boxes).into_iter().zip(all(&whole)) {
                assert!(boxes.0 == whole.0, "{encoding} {mode:?}");
                assert!(boxes.1 < whole.1, "{encoding} {mode:?}: {} bytes of {}", boxes.1, whole.1);
            }
        }
    }
}
