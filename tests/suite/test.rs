//! The multi-view test: views against views made one by one, metrics, files, weights, and the programs `test` and `predict`.

mod program;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use vcycle::clip::{ClipSource, Frames, VideoInfo, Views};
use vcycle::config::Config;
use vcycle::device::{Buffer, Device};
use vcycle::labels::Labels;
use vcycle::model::{Mode, Network};
use vcycle::ops::resample::{self, Pathway, SourceClip};
use vcycle::shape::StepShape;
use vcycle::test::{Metrics, Results, Tester};
use vcycle::train::{Lines, setup};
use vcycle::{Error, Result};

const YAML: &str = "
TRAIN: {DATASET: moving_shapes, BATCH_SIZE: 4}
TEST: {DATASET: moving_shapes, BATCH_SIZE: 5, NUM_ENSEMBLE_VIEWS: 3, NUM_SPATIAL_CROPS: 3}
DATA: {NUM_FRAMES: 4, SAMPLING_RATE: 2, TRAIN_CROP_SIZE: 32, TRAIN_JITTER_SCALES: [36, 40], TEST_CROP_SIZE: 40,
       INPUT_CHANNEL_NUM: [3]}
RESNET: {DEPTH: 18, WIDTH_PER_GROUP: 4, NUM_BLOCK_TEMP_KERNEL: [[2], [2], [2], [2]]}
MODEL: {ARCH: slow, MODEL_NAME: ResNet, NUM_CLASSES: 3, FC_INIT_STD: 1.0}
SOLVER: {MAX_EPOCH: 1, STEPS: [0], LRS: [1], LR_POLICY: steps_with_relative_lrs}
";

fn config(overrides: &str) -> Config {
    let words: Vec<String> = overrides.split_whitespace().map(str::to_string).collect();
    Config::parse(YAML, "test", &words).unwrap()
}

/// Videos of noise, wider than high; counts how often each is decoded, and lets some be broken.
struct Noise {
    videos: usize,
    broken: BTreeSet<usize>,
    is_multi_label: bool,
    decoded: Mutex<Vec<usize>>,
    frames_decoded: AtomicUsize,
}

impl Noise {
    fn new(videos: usize, broken: impl IntoIterator<Item = usize>, is_multi_label: bool) -> Arc<Noise> {
        let broken = broken.into_iter().collect();
        Arc::new(Noise {
            videos,
            broken,
            is_multi_label,
            decoded: Mutex::default(),
            frames_decoded: AtomicUsize::new(0),
        })
    }
}

impl ClipSource for Noise {
    fn len(&self) -> usize {
        self.videos
    }

    fn num_classes(&self) -> usize {
        3
    }

    fn label(&self, idx: usize) -> u32 {
        (idx % 3) as u32
    }

    fn is_multi_label(&self) -> bool {
        self.is_multi_label
    }

    fn label_set(&self, idx: usize, _: Option<(u32, u32)>) -> Vec<u32> {
        if self.is_multi_label { (0..(idx % 3) as u32).collect() } else { vec![self.label(idx)] }
    }

    fn name(&self, idx: usize) -> String {
        format!("video {idx}")
    }

    fn mirror_changes_label(&self) -> bool {
        true
    }

    fn frames(&self, idx: usize, choose: &mut dyn FnMut(&VideoInfo) -> Vec<u32>) -> Result<Frames> {
        if self.broken.contains(&idx) {
            return Err(Error::Decode { path: self.name(idx), message: "broken on purpose".into() });
        }
        let (width_px, height_px) = (56, 44);
        let info =
            VideoInfo { codec: "none".into(), decoder: "test".into(), num_frames: 30, fps: 30.0, width_px, height_px };
        let indices = choose(&info);
        self.decoded.lock().unwrap().push(idx);
        self.frames_decoded.fetch_add(indices.len(), Ordering::Relaxed);
        let byte = |frame: u32, i: usize| ((frame as usize * 7 + idx * 31) * (i % 97 + 3) + i / 13) as u8;
        let bytes = indices.iter().flat_map(|&f| (0..width_px * height_px * 3).map(move |i| byte(f, i))).collect();
        Ok(Frames { bytes, indices, height_px, width_px })
    }
}

fn test(config: &Config, source: Arc<Noise>, views: [usize; 2]) -> Result<Results> {
    let mut tester = Tester::new(config, &Device::Cpu, source)?;
    let views = Views { num_clips: views[0], num_crops: views[1] };
    Ok(tester.run(views, &mut Lines::new(vec![], 1), &AtomicBool::new(false))?.expect("not stopped"))
}

/// The scores of one view, by the ops themselves.
fn scores_of_view(
    config: &Config,
    network: &mut Network,
    source: &Noise,
    video: usize,
    views: Views,
    view: usize,
) -> Vec<f32> {
    let shape = StepShape::square(1, 4, config.data.test_crop_size, 1);
    network.prepare(&[], &[shape]).unwrap();
    let mut choice = None;
    let frames = source
        .frames(video, &mut |info| {
            let chosen = setup::test_sampling(config).test(info, &shape, views, view);
            choice = Some(chosen.clone());
            chosen.frame_indices
        })
        .unwrap();
    let memory = Buffer::from_host(&Device::Cpu, &frames.bytes).unwrap();
    let (height_px, width_px, grid) = (frames.height_px, frames.width_px, choice.unwrap().grid);
    let clip = SourceClip { memory, frames: frames.indices.len(), height_px, width_px, origin_px: (0, 0), grid };
    let workspace = Buffer::zeroed(&Device::Cpu, resample::workspace_bytes(1, 4)).unwrap();
    let workspace = workspace.slice::<u8>(0, workspace.len_bytes()).unwrap();
    let input = &network.inputs(Mode::Eval, shape).unwrap()[0];
    let pathways = [Pathway { output: &input.tensor, frame_indices: &input.frame_indices }];
    resample::forward(network.stream(), &setup::resample(config), &[clip], &pathways, &workspace).unwrap();
    network.forward_eval(shape).unwrap()
}

#[test]
fn a_video_is_the_sum_or_the_maximum_of_its_views() {
    for (method, head_act) in [("sum", "softmax"), ("max", "sigmoid"), ("sum", "none")] {
        let config = config(&format!("TEST.BATCH_SIZE 1 DATA.ENSEMBLE_METHOD {method} MODEL.HEAD_ACT {head_act}"));
        let source = Noise::new(3, [], false);
        let views = Views { num_clips: 2, num_crops: 3 };
        let results = test(&config, source.clone(), [2, 3]).unwrap();
        assert_eq!(results.labels, Labels::Classes(vec![0, 1, 2]));
        let mut tester = Tester::new(&config, &Device::Cpu, source.clone()).unwrap();
        for video in 0..3 {
            let mut expected: Option<Vec<f32>> = None;
            let mut differ = BTreeSet::new();
            for view in 0..6 {
                let scores = scores_of_view(&config, tester.network(), &source, video, views, view);
                differ.insert(scores.iter().map(|s| s.to_bits()).collect::<Vec<_>>());
                expected = Some(match expected {
                    None => scores,
                    Some(sum) if method == "sum" => sum.iter().zip(&scores).map(|(a, b)| a + b).collect(),
                    Some(largest) => largest.iter().zip(&scores).map(|(a, b)| a.max(*b)).collect(),
                });
            }
            assert_eq!(differ.len(), 6, "every view is another one");
            assert_eq!(results.scores[video * 3..][..3], expected.unwrap(), "{method} of {head_act}, video {video}");
        }
    }
}

#[test]
fn a_video_is_decoded_once_and_batches_do_not_matter() {
    let source = Noise::new(4, [], false);
    let results = test(&config(""), source.clone(), [10, 3]).unwrap();
    let mut decoded = source.decoded.lock().unwrap().clone();
    decoded.sort();
    assert_eq!(decoded, [0, 1, 2, 3]);
    // Thirty views of four frames, out of a video of thirty frames.
    assert!(source.frames_decoded.load(Ordering::Relaxed) <= 4 * 30);
    for batch in ["1", "7", "1000"] {
        let again = test(&config(&format!("TEST.BATCH_SIZE {batch}")), Noise::new(4, [], false), [10, 3]).unwrap();
        // Convolutions of other batches add in another order.
        let is_near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * a.abs().max(1e-3);
        assert!(again.scores.iter().zip(&results.scores).all(is_near), "TEST.BATCH_SIZE {batch}: {again:?}");
    }
}

#[test]
fn videos_that_cannot_be_decoded_are_listed_and_not_counted() {
    let results = test(&config(""), Noise::new(5, [1, 4], false), [1, 3]).unwrap();
    assert_eq!(results.names, ["video 0", "video 2", "video 3"]);
    assert_eq!(results.indices, [0, 2, 3]);
    assert_eq!(results.labels, Labels::Classes(vec![0, 2, 0]));
    assert_eq!(results.bad.iter().map(|bad| bad.name.as_str()).collect::<Vec<_>>(), ["video 1", "video 4"]);
    let all = test(&config(""), Noise::new(5, [], false), [1, 3]).unwrap();
    assert_eq!(results.scores, [&all.scores[..3], &all.scores[6..12]].concat());
    let error = test(&config(""), Noise::new(2, [0, 1], false), [1, 1]).unwrap_err().to_string();
    assert_eq!(error, "data: none of the test videos can be decoded");
}

fn results(scores: Vec<f32>, labels: Labels) -> Results {
    let videos = scores.len() / 3;
    Results {
        views: Views { num_clips: 1, num_crops: 1 },
        method: vcycle::config::EnsembleMethod::Sum,
        classes: 3,
        scores,
        labels,
        names: (0..videos).map(|v| format!("video {v}")).collect(),
        indices: (0..videos).collect(),
        bad: vec![],
    }
}

#[test]
fn what_is_counted() {
    let scores = vec![0.7, 0.2, 0.1, 0.1, 0.2, 0.7, 0.4, 0.5, 0.1, 0.9, 0.0, 0.1];
    let single = results(scores.clone(), Labels::Classes(vec![0, 1, 1, 1])).metrics().unwrap();
    assert_eq!((single.top1, single.top5, single.map), (Some(50.0), Some(100.0), None));
    assert_eq!(single.classes, [Some(100.0), Some(100.0 / 3.0), None]);
    assert_eq!(single.confusion.as_ref().unwrap().counts, [[1, 0, 0], [1, 1, 1], [0, 0, 0]]);
    let line = |metrics: &Metrics| vcycle::json_stats::line(&metrics.stats());
    assert_eq!(
        line(&single),
        "json_stats: {\"split\": \"test_final\", \"top1_acc\": \"50.00\", \"top5_acc\": \"100.00\"}"
    );
    // Class 0: positives at ranks 1 and 3 of (0.9, 0.7, 0.4, 0.1); class 1: rank 1 of (0.5, 0.2, 0.2, 0); class 2: none.
    let sets = Labels::Sets(vec![vec![], vec![], vec![0, 1], vec![0]]);
    let several = results(scores, sets).metrics().unwrap();
    let of_class_0 = 100.0 * (1.0 + 2.0 / 3.0) / 2.0;
    assert!((several.classes[0].unwrap() - of_class_0).abs() < 1e-9 && several.classes[1..] == [Some(100.0), None]);
    assert!((several.map.unwrap() - (of_class_0 + 100.0) / 2.0).abs() < 1e-9 && several.top1.is_none());
    assert_eq!(
        line(&several),
        "json_stats: {\"map\": \"91.67\", \"split\": \"test_final\", \"top1_acc\": \"91.67\", \"top5_acc\": \"91.67\"}"
    );
}

#[test]
fn saved_scores_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scores.safetensors");
    let scores = vec![0.5, 0.25, 0.125, -1.0, 0.0, 1e-30];
    for (labels, dtype, shape, bytes) in [
        (Labels::Classes(vec![2, 0]), "I64", vec![2], [2i64, 0].map(i64::to_le_bytes).concat()),
        (
            Labels::Sets(vec![vec![0, 2], vec![]]),
            "F32",
            vec![2, 3],
            [1f32, 0.0, 1.0, 0.0, 0.0, 0.0].map(f32::to_le_bytes).concat(),
        ),
    ] {
        results(scores.clone(), labels).save(&path).unwrap();
        let file = std::fs::read(&path).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
        let preds = tensors.tensor("preds").unwrap();
        let expected: Vec<u8> = scores.iter().flat_map(|s| s.to_le_bytes()).collect();
        assert_eq!((preds.shape(), preds.data()), (&[2, 3][..], &expected[..]));
        let saved = tensors.tensor("labels").unwrap();
        assert_eq!(
            (format!("{:?}", saved.dtype()).as_str(), saved.shape(), saved.data()),
            (dtype, &shape[..], &bytes[..])
        );
        let json = std::fs::read_to_string(path.with_extension("json")).unwrap();
        let about = "{\"num_clips\":1,\"num_crops\":1,\"ensemble_method\":\"sum\",\"names\":[\"video 0\",\"video 1\"]}";
        assert_eq!(json, about);
    }
}

#[test]
fn sets_of_labels_are_tested_by_average_precision() {
    let config =
        config("DATA.MULTI_LABEL True MODEL.LOSS_FUNC bce_logit MODEL.HEAD_ACT sigmoid DATA.ENSEMBLE_METHOD max");
    let results = test(&config, Noise::new(6, [], true), [2, 3]).unwrap();
    assert_eq!(results.labels.of(2), [0, 1]);
    assert!(results.scores.iter().all(|score| (0.0..=1.0).contains(score)));
    let metrics = results.metrics().unwrap();
    assert!(metrics.map.is_some() && metrics.top1.is_none() && metrics.confusion.is_none());
    assert_eq!(metrics.classes.iter().filter(|ap| ap.is_some()).count(), 2);
}
