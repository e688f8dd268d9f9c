//! Tests of `clip::Loader`; `lists` has those over lists of videos.

mod lists;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vcycle::clip::{
    Cached, ClipSource, FrameRule, Frames, HostBatch, ListConfig, Loader, LoaderConfig, MovingShapes,
    MovingShapesConfig, ResampleMode, Sampling, Split, TestCrops, VideoInfo, VideoList, Views,
};
use vcycle::device::Device;
use vcycle::labels::Labels;
use vcycle::shape::StepShape;
use vcycle::upload::Upload;
use vcycle::{Error, Result};

fn sampling() -> Sampling {
    Sampling {
        mode: ResampleMode::Trilinear,
        sampling_rate: 2,
        jitter_scales_px: (36, 48),
        random_flip: false,
        eval_scale_px: 40,
        test_crops: TestCrops { scale_px: 36, single_scale_px: 36, single_crop_idx: 1 },
        multigrid_base: Some((8, 32)),
        ..Sampling::default()
    }
}

fn config(threads: usize) -> LoaderConfig {
    LoaderConfig { seed: 7, threads, max_batches: 2, max_bytes: 1 << 20 }
}

fn shapes(num_clips: usize) -> Arc<dyn ClipSource> {
    let config = MovingShapesConfig { num_clips, size_px: 40, num_frames: 16, ..Default::default() };
    Arc::new(MovingShapes::new(&config, Split::Train).expect("valid"))
}

fn steps() -> Vec<StepShape> {
    [(4, 4, 22), (2, 8, 32), (8, 2, 16)]
        .iter()
        .cycle()
        .take(7)
        .map(|&(b, t, s)| StepShape::square(b, t, s, 1))
        .collect()
}

fn train(source: &Arc<dyn ClipSource>, threads: usize, epoch: u64, first_step: usize) -> Vec<HostBatch> {
    let loader = Loader::new(source.clone(), sampling(), &config(threads)).expect("loader");
    let mut batches: Vec<HostBatch> =
        loader.train_epoch(epoch, &steps(), first_step).map(|b| b.expect("batch")).collect();
    batches.iter_mut().for_each(|b| b.data_wait_s = 0.0);
    batches
}

#[test]
fn batches_do_not_depend_on_threads_or_resume() {
    let source = shapes(20);
    let all = train(&source, 1, 3, 0);
    assert_eq!(all.len(), 7);
    assert_eq!(all.iter().map(|b| b.shape).collect::<Vec<_>>(), steps());
    for threads in [2, 5] {
        assert!(train(&source, threads, 3, 0) == all, "{threads} threads");
    }
    for first in [1, 4, 7] {
        assert!(train(&source, 3, 3, first) == all[first..], "resumed at {first}");
    }
    assert!(train(&source, 2, 4, 0) != all, "another epoch is another order");
}

#[test]
fn an_epoch_takes_every_clip_before_any_twice() {
    let indices: Vec<usize> = train(&shapes(20), 2, 0, 0).iter().flat_map(|b| b.indices.clone()).collect();
    assert_eq!(indices.len(), 32);
    assert_eq!(indices[..20].iter().collect::<HashSet<_>>().len(), 20);
    assert_eq!(indices[20..].iter().collect::<HashSet<_>>().len(), 12);
}

#[test]
fn evaluation_takes_every_clip_once_in_order() {
    let loader = Loader::new(shapes(11), sampling(), &config(3)).expect("loader");
    let batches: Vec<HostBatch> =
        loader.eval_epoch(StepShape::square(4, 8, 32, 1)).map(|b| b.expect("batch")).collect();
    assert_eq!(batches.iter().map(|b| b.shape.clips).collect::<Vec<_>>(), [4, 4, 3]);
    assert_eq!(batches.iter().flat_map(|b| b.indices.clone()).collect::<Vec<_>>(), (0..11).collect::<Vec<_>>());
}

/// One batch a video, all of whose views come from one decoding and are those that evaluation of each alone would give.
#[test]
fn a_test_decodes_a_video_once_for_all_views() {
    let (source, views) = (shapes(5), Views { num_clips: 4, num_crops: 3 });
    let counting = Arc::new(Counting { source: source.clone(), calls: AtomicUsize::new(0) });
    for mode in [ResampleMode::Trilinear, ResampleMode::Peer] {
        let sampling = Sampling { mode, ..sampling() };
        let loader = Loader::new(counting.clone(), sampling.clone(), &config(2)).expect("loader");
        let shape = StepShape::square(2, 4, 32, 1);
        counting.calls.store(0, Ordering::SeqCst);
        let batches: Vec<HostBatch> = loader.test_epoch(shape, views).map(|b| b.expect("batch")).collect();
        assert_eq!((batches.len(), counting.calls.load(Ordering::SeqCst)), (5, 5));
        let mut upload = Upload::new(&Device::Cpu).expect("upload");
        for (video, batch) in batches.iter().enumerate() {
            let stream = Device::Cpu.stream().expect("stream");
            let uploaded = upload.batch(&stream, &batch.clips, 1.0, 0, |_, _| Ok(())).expect("uploaded").clips;
            let distinct: usize = batch.clips.iter().step_by(3).map(|c| c.bytes.len().next_multiple_of(256)).sum();
            assert!(mode == ResampleMode::Trilinear || upload.len_bytes() == distinct);
            assert!(uploaded.iter().zip(&batch.clips).all(|(a, b)| a.memory.read::<u8>().expect("bytes") == *b.bytes));
            assert_eq!((batch.shape.clips, batch.indices.as_slice()), (12, &[video; 12][..]));
            assert_eq!(batch.labels, Labels::Classes(vec![source.label(video); 12]));
            for (view, clip) in batch.clips.iter().enumerate() {
                let mut grid = None;
                let frames = source.frames(video, &mut |info| {
                    let choice = sampling.test(info, &shape, views, view);
                    grid = Some(choice.grid);
                    choice.frame_indices
                });
                assert!(*clip.bytes == frames.expect("frames").bytes, "video {video}, view {view}");
                // The crops of a clip share its frames, in memory and on the device.
                assert!(clip.shares_frames_with(&batch.clips[view / 3 * 3]));
                assert_eq!(Some(clip.grid), grid);
            }
        }
    }
}

/// Counts decodings.
struct Counting {
    source: Arc<dyn ClipSource>,
    calls: AtomicUsize,
}

impl ClipSource for Counting {
    fn len(&self) -> usize {
        self.source.len()
    }

    fn num_classes(&self) -> usize {
        self.source.num_classes()
    }

    fn label(&self, idx: usize) -> u32 {
        self.source.label(idx)
    }

    fn name(&self, idx: usize) -> String {
        self.source.name(idx)
    }

    fn frames(&self, idx: usize, choose: &mut dyn FnMut(&VideoInfo) -> Vec<u32>) -> Result<Frames> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.source.frames(idx, choose)
    }
}

/// Videos with several labels: class 0 all the time, class 1 up to frame 7, class 2 from frame 8 on.
struct SeveralLabels(Arc<dyn ClipSource>);

impl ClipSource for SeveralLabels {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn num_classes(&self) -> usize {
        3
    }

    fn label(&self, _: usize) -> u32 {
        0
    }

    fn is_multi_label(&self) -> bool {
        true
    }

    fn label_set(&self, _: usize, frames: Option<(u32, u32)>) -> Vec<u32> {
        let (first, last) = frames.unwrap_or((0, 15));
        [(0, true), (1, first < 8), (2, last >= 8)].iter().filter(|(_, seen)| *seen).map(|(class, _)| *class).collect()
    }

    fn name(&self, idx: usize) -> String {
        self.0.name(idx)
    }

    fn frames(&self, idx: usize, choose: &mut dyn FnMut(&VideoInfo) -> Vec<u32>) -> Result<Frames> {
        self.0.frames(idx, choose)
    }
}

/// Training learns the labels of the frames that a clip spans, evaluation those of the video; through the cache too.
#[test]
fn several_labels_follow_the_frames() {
    let plain = Arc::new(SeveralLabels(shapes(20)));
    let cached = Arc::new(Cached::new(plain.clone(), 1 << 30));
    for source in [plain as Arc<dyn ClipSource>, cached] {
        let short = Sampling { frames: FrameRule::Stride, sampling_rate: 1, multigrid_base: None, ..sampling() };
        let loader = Loader::new(source, short, &config(2)).expect("loader");
        let batch = loader.train_epoch(0, &[StepShape::square(20, 2, 16, 1)], 0).next().expect("batch").expect("good");
        let Labels::Sets(sets) = batch.labels else { panic!("single labels") };
        for set in [vec![0, 1], vec![0, 2]] {
            assert!(sets.iter().filter(|s| **s == set).count() > 4, "{set:?} in {sets:?}");
        }
        let batch = loader.eval_epoch(StepShape::square(20, 2, 16, 1)).next().expect("batch").expect("good");
        assert_eq!(batch.labels, Labels::Sets(vec![vec![0, 1, 2]; 20]));
    }
}

#[test]
fn frames_come_as_blue_green_red_where_asked() {
    let shape = [StepShape::square(1, 2, 16, 1)];
    let clip = |bgr| {
        let loader = Loader::new(shapes(4), Sampling { bgr, ..sampling() }, &config(1)).expect("loader");
        loader.train_epoch(0, &shape, 0).next().expect("batch").expect("good").clips.remove(0).bytes
    };
    let (rgb, bgr) = (clip(false), clip(true));
    assert!(rgb != bgr && rgb.chunks(3).zip(bgr.chunks(3)).all(|(a, b)| [a[2], a[1], a[0]] == b));
}

#[test]
fn a_random_flip_that_changes_labels_is_refused() {
    let flipping = Sampling { random_flip: true, ..sampling() };
    let error = Loader::new(shapes(4), flipping, &config(1)).err().expect("refused");
    assert!(error.to_string().contains("RANDOM_FLIP"), "{error}");
}

#[test]
fn prefetch_stays_within_its_bounds() {
    let source = Arc::new(Faulty { bad: vec![], panics: false, late: false, calls: AtomicUsize::new(0) });
    let loader = Loader::new(source.clone(), sampling(), &LoaderConfig { threads: 2, ..config(2) }).expect("loader");
    let steps = vec![StepShape::square(5, 2, 16, 1); 40];
    let mut batches = loader.train_epoch(0, &steps, 0);
    for k in 0..3 {
        batches.next().expect("batch").expect("good");
        std::thread::sleep(std::time::Duration::from_millis(30));
        // The one that is being worked on and one beyond, max_batches = 2; no thread starts a clip past them.
        let calls = source.calls.load(Ordering::SeqCst);
        assert!(calls <= (k + 1 + 2) * 5, "after batch {k}: {calls} clips");
    }
    drop(batches);
}

/// Tiny grey clips; those in `bad` fail, panic, or fail late.
struct Faulty {
    bad: Vec<usize>,
    panics: bool,
    late: bool,
    calls: AtomicUsize,
}

impl ClipSource for Faulty {
    fn len(&self) -> usize {
        12
    }

    fn num_classes(&self) -> usize {
        12
    }

    fn label(&self, idx: usize) -> u32 {
        idx as u32
    }

    fn name(&self, idx: usize) -> String {
        format!("clip {idx}")
    }

    fn frames(&self, idx: usize, choose: &mut dyn FnMut(&VideoInfo) -> Vec<u32>) -> Result<Frames> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let broken = || Error::Decode { path: self.name(idx), message: "broken".into() };
        let bad = self.bad.contains(&idx);
        assert!(!(bad && self.panics), "decoder bug");
        if bad && !self.late {
            return Err(broken());
        }
        let info = VideoInfo {
            codec: "none".into(),
            decoder: "none".into(),
            num_frames: 9,
            fps: 30.0,
            width_px: 20,
            height_px: 20,
        };
        let indices = choose(&info);
        if bad {
            return Err(broken());
        }
        Ok(Frames { bytes: vec![idx as u8; indices.len() * 1200], indices, height_px: 20, width_px: 20 })
    }
}

fn faulty(bad: &[usize], panics: bool, late: bool) -> Arc<dyn ClipSource> {
    Arc::new(Faulty { bad: bad.to_vec(), panics, late, calls: AtomicUsize::new(0) })
}

#[test]
fn another_clip_with_its_own_label_replaces_a_bad_one() {
    let bad = [2, 5, 11];
    for (panics, late) in [(false, false), (false, true), (true, false)] {
        let source = faulty(&bad, panics, late);
        let want = train(&source, 1, 0, 0);
        for batch in &want {
            for (i, (clip, &idx)) in batch.clips.iter().zip(&batch.indices).enumerate() {
                assert!(!bad.contains(&idx));
                assert_eq!((clip.bytes[0], batch.labels.of(i)), (idx as u8, &[idx as u32][..]));
            }
        }
        assert!(train(&source, 4, 0, 0) == want, "replacements do not depend on threads");
        assert!(train(&source, 2, 0, 4) == want[4..], "nor on a resume");
    }
}

#[test]
fn a_bad_clip_is_counted_once_and_left_alone() {
    let source = Arc::new(Faulty { bad: vec![3], panics: false, late: false, calls: AtomicUsize::new(0) });
    let loader = Loader::new(source.clone(), sampling(), &config(1)).expect("loader");
    let steps = [StepShape::square(12, 2, 16, 1)];
    for epoch in 0..3 {
        let batch = loader.train_epoch(epoch, &steps, 0).next().expect("batch").expect("good");
        assert_eq!(batch.clips.len(), 12);
    }
    let bad = loader.bad_clips();
    assert_eq!(bad.len(), 1);
    assert_eq!((bad[0].index, bad[0].quarantined), (3, true));
    assert!(bad[0].message.contains("broken"));
    // 36 slots, and one attempt at the bad clip, whose slot needed one replacement in each epoch.
    assert_eq!(source.calls.load(Ordering::SeqCst), 36 + 1);
    // An evaluation leaves it out.
    let indices: Vec<usize> =
        loader.eval_epoch(StepShape::square(2, 2, 16, 1)).flat_map(|b| b.expect("batch").indices).collect();
    assert_eq!(indices, [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]);
}

#[test]
fn a_run_whose_clips_are_all_bad_stops() {
    let all: Vec<usize> = (0..12).collect();
    let loader = Loader::new(faulty(&all, false, false), sampling(), &config(2)).expect("loader");
    let mut batches = loader.train_epoch(0, &steps(), 0);
    let error = batches.next().expect("an answer").expect_err("no clip is good");
    assert!(error.to_string().contains("none of the 12 clips"), "{error}");
    assert!(batches.next().is_none());
    assert_eq!(loader.eval_epoch(StepShape::square(5, 2, 16, 1)).count(), 0);
}

#[test]
fn cached_clips_give_the_same_batches_within_their_budget() {
    let source = shapes(20);
    let want = train(&source, 2, 3, 0);
    let clip_bytes = 16 * 40 * 40 * 3;
    for clips_kept in [0, 7, 100] {
        let cached = Arc::new(Cached::new(source.clone(), clips_kept * clip_bytes));
        for _ in 0..2 {
            assert!(train(&(cached.clone() as Arc<dyn ClipSource>), 3, 3, 0) == want, "{clips_kept} kept");
        }
        assert_eq!(cached.kept(), (clips_kept.min(20), clips_kept.min(20) * clip_bytes));
    }
    let bad = Arc::new(Cached::new(faulty(&[2, 5], false, true), 1 << 20)) as Arc<dyn ClipSource>;
    assert!(train(&bad, 2, 0, 0) == train(&faulty(&[2, 5], false, true), 2, 0, 0));
}

/// Seconds that the whole program has spent on cores (Linux).
fn program_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the parenthesis of the name: fields 14 and 15, in hundredths.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    [11, 12].iter().filter_map(|&k| fields.get(k)?.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Not a test: prints clips per second and core. `cargo test --test suite -- --ignored measure --test-threads 1`
#[test]
#[ignore = "measures"]
fn measure_loading() {
    let run = |what: &str, source: &Arc<dyn ClipSource>, sampling: &Sampling, steps: &[StepShape]| {
        let loader = Loader::new(source.clone(), sampling.clone(), &LoaderConfig::default()).expect("loader");
        for epoch in 0..2 {
            let before = program_seconds();
            let clips: usize = loader.train_epoch(epoch, steps, 0).map(|b| b.expect("batch").clips.len()).sum();
            let seconds = program_seconds() - before;
            println!("{what}, epoch {epoch}: {:.0} clips per core second", clips as f64 / seconds);
        }
    };
    let config = MovingShapesConfig { num_clips: 2048, ..Default::default() };
    let source: Arc<dyn ClipSource> = Arc::new(MovingShapes::new(&config, Split::Train).expect("valid"));
    let shapes = Sampling { jitter_scales_px: (68, 80), multigrid_base: Some((16, 64)), ..sampling() };
    run("moving_shapes 16x64", &source, &shapes, &[StepShape::square(8, 16, 64, 1); 256]);
    let Some(data) = crate::decoder::test_data() else { return };
    let list = VideoList::open(&ListConfig::kinetics(data, 6), Split::Train).expect("list");
    let source: Arc<dyn ClipSource> = Arc::new(list);
    let interaction = Sampling { sampling_rate: 4, jitter_scales_px: (104, 128), ..shapes };
    let steps = [StepShape::square(8, 16, 96, 1); 20];
    run("ut_interaction 16x96, decoded each time", &source, &interaction, &steps);
    let cached = Arc::new(Cached::new(source, 1 << 30));
    run("ut_interaction 16x96, cached", &(cached.clone() as Arc<dyn ClipSource>), &interaction, &steps);
    println!("cache: {:?} (clips, bytes)", cached.kept());
}
