//! The schedule: golden files of PySlowFast's own schedules, and what must hold for every schedule.

use proptest::prelude::*;
use serde_json::Value;
use vcycle::config::{Config, NormType};
use vcycle::multigrid::{Cost, Phase, Schedule};

use crate::golden;

/// `KEY: value` pairs as a configuration, PySlowFast's way.
fn config(pairs: &[(String, String)]) -> Config {
    let words: Vec<String> = pairs.iter().flat_map(|(k, v)| [k.clone(), v.clone()]).collect();
    Config::parse("", "pairs", &words).unwrap_or_else(|e| panic!("{pairs:?}: {e}"))
}

/// The configuration of a golden file: every value that it records.
fn recorded(input: &Value) -> Vec<(String, String)> {
    let object = input.as_object().expect("input");
    let mut pairs: Vec<(String, String)> = object
        .iter()
        .filter(|(key, _)| !["yaml", "overrides"].contains(&key.as_str()))
        .map(|(key, value)| {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Bool(b) => if *b { "True" } else { "False" }.to_string(),
                other => other.to_string(),
            };
            (key.clone(), text)
        })
        .collect();
    pairs.push(("SLOWFAST.ALPHA".into(), "4".into()));
    pairs
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("number: {value}"))
}

fn integer(value: &Value) -> usize {
    value.as_u64().unwrap_or_else(|| panic!("integer: {value}")) as usize
}

fn array(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("array: {value}"))
}

fn assert_close(what: &str, got: f64, want: f64) {
    assert!((got - want).abs() <= 1e-12 * want.abs(), "{what}: {got} instead of {want}");
}

#[test]
fn golden_schedule() {
    let mut cases = 0;
    for file in golden::list("schedule") {
        let Some(golden) = golden::open(&file) else { return };
        let (input, output) = (&golden.json["input"], &golden.json["output"]);
        let mut pairs = recorded(input);
        let indivisible =
            array(&output["phases"]).iter().map(|p| integer(&p["NUM_FRAMES"])).find(|t| !t.is_multiple_of(4));
        if let Some(t) = indivisible {
            // The schedule is PySlowFast's; a SlowFast network of ALPHA 4 cannot run it.
            let error = Schedule::new(&config(&pairs)).unwrap_err().to_string();
            assert!(error.contains(&format!("got T = {t}")) && error.contains("ALPHA (4)"), "{file}: {error}");
            pairs.push(("SLOWFAST.ALPHA".into(), "2".into()));
        }
        let config = config(&pairs);
        let schedule = Schedule::new(&config).unwrap_or_else(|e| panic!("{file}: {e}"));
        compare_segments(&file, &schedule, output);
        compare_epochs(&file, &schedule, &config, output);
        compare_phases(&file, &schedule, output);
        for pair in array(&output["lr"]) {
            assert_close(&format!("{file}: lr at {}", pair[0]), schedule.lr(number(&pair[0])), number(&pair[1]));
        }
        cases += 1;
    }
    if cases > 0 {
        assert!(cases >= 17, "{cases} files");
        golden::passed("schedule", cases);
    }
}

fn compare_segments(file: &str, schedule: &Schedule, output: &Value) {
    let want = output["schedule"].as_array().map(|segments| {
        let row = |s: &Value| [&s[0], &s[1][0], &s[1][1], &s[1][2], &s[2]].map(integer);
        segments.iter().map(row).collect::<Vec<_>>()
    });
    let got = schedule.segments().map(|segments| {
        segments.iter().map(|s| [s.stage, s.batch_factor, s.frames, s.crop_px, s.end_epoch]).collect::<Vec<_>>()
    });
    assert_eq!(got, want, "{file}: schedule");
    let rate = schedule.learning_rate();
    assert_eq!(rate.steps, array(&output["STEPS"]).iter().map(integer).collect::<Vec<_>>(), "{file}: STEPS");
    let lrs = array(&output["LRS"]);
    assert_eq!(rate.relative_rates.len(), lrs.len(), "{file}: LRS");
    for (got, want) in rate.relative_rates.iter().zip(lrs) {
        assert_close(&format!("{file}: LRS"), *got, number(want));
    }
    assert_eq!(schedule.max_epoch(), integer(&output["MAX_EPOCH"]), "{file}: MAX_EPOCH");
}

fn compare_epochs(file: &str, schedule: &Schedule, config: &Config, output: &Value) {
    let columns = array(&output["epoch_columns"]);
    let column = |name: &str| columns.iter().position(|c| c == name).unwrap_or_else(|| panic!("{file}: column {name}"));
    let epochs = array(&output["epochs"]);
    assert_eq!(epochs.len(), schedule.max_epoch(), "{file}: epochs");
    for (epoch, row) in epochs.iter().enumerate() {
        let phase = schedule.phase(epoch);
        let what = format!("{file}: epoch {epoch}");
        assert_eq!(epoch, integer(&row[column("epoch")]));
        assert_eq!(phase.frames, integer(&row[column("NUM_FRAMES")]), "{what}: frames");
        assert_eq!(phase.crop_px, integer(&row[column("CROP")]), "{what}: crop");
        assert_eq!(phase.clips, integer(&row[column("BATCH_SIZE")]), "{what}: batch");
        let norm = phase.batch_norm;
        assert_eq!(norm.norm_type.as_str(), row[column("NORM_TYPE")], "{what}: norm type");
        // PySlowFast leaves the numbers of the other types at what an earlier shape set them to.
        match norm.norm_type {
            NormType::SubBatchNorm => assert_eq!(norm.splits, integer(&row[column("NUM_SPLITS")]), "{what}: splits"),
            NormType::SyncBatchNorm => {
                assert_eq!(norm.sync_devices, integer(&row[column("NUM_SYNC_DEVICES")]), "{what}: devices");
            }
            NormType::BatchNorm => assert_eq!((norm.splits, norm.sync_devices), (1, 1)),
        }
        let long_rate = integer(&row[column("LONG_CYCLE_SAMPLING_RATE")]);
        let largest = if long_rate == 0 { config.data.sampling_rate } else { long_rate };
        assert_eq!(phase.sampling_rates, [config.data.sampling_rate, largest], "{what}: sampling rates");
        assert_close(&what, schedule.lr(epoch as f64), number(&row[column("lr_at_epoch_start")]));
        assert_eq!(schedule.is_eval_epoch(epoch), row[column("is_eval")], "{what}: eval");
        assert_eq!(schedule.is_checkpoint_epoch(epoch), row[column("is_checkpoint")], "{what}: checkpoint");
    }
}

fn compare_phases(file: &str, schedule: &Schedule, output: &Value) {
    let want = array(&output["phases"]);
    assert_eq!(schedule.phases().len(), want.len(), "{file}: phases");
    for (phase, want) in schedule.phases().iter().zip(want) {
        let what = format!("{file}: phase from epoch {}", phase.first_epoch);
        assert_eq!(phase.first_epoch, integer(&want["first_epoch"]), "{what}");
        assert_eq!(phase.frames, integer(&want["NUM_FRAMES"]), "{what}: frames");
        assert_eq!(phase.crop_px, integer(&want["TRAIN_CROP_SIZE"]), "{what}: crop");
        assert_eq!(phase.clips, integer(&want["TRAIN.BATCH_SIZE"]), "{what}: batch");
        let rates = array(&want["sampling_rate_range_inclusive"]);
        assert_eq!(phase.sampling_rates, [integer(&rates[0]), integer(&rates[1])], "{what}: sampling rates");
        let per_gpu = integer(&want["per_gpu_batch"]);
        assert_eq!(phase.grids.last().unwrap().clips_per_gpu, per_gpu, "{what}: clips per GPU");
        compare_grids(&what, phase, want);
        if let Some(short) = want["short_cycle"].as_object() {
            compare_iterations(&what, phase, &short["datasets"]);
        }
    }
}

fn compare_grids(what: &str, phase: &Phase, want: &Value) {
    let shapes = array(&want["shapes"]);
    assert_eq!(phase.grids.len(), shapes.len(), "{what}: grids");
    for (i, (grid, want)) in phase.grids.iter().zip(shapes).enumerate() {
        let crop = integer(&want["crop_size"]);
        // PySlowFast does not clamp; where it goes past the long cycle's crop, that crop is expected here.
        let clamped = crop > phase.crop_px;
        assert_eq!(grid.crop_px, crop.min(phase.crop_px), "{what}: grid {i}: crop");
        let like_clamped = shapes.iter().find(|s| integer(&s["crop_size"]) == phase.crop_px).unwrap();
        let jitter = if clamped { like_clamped } else { want };
        let scales = ["jitter_min_scale", "jitter_max_scale"].map(|key| integer(&jitter[key]));
        assert_eq!(grid.jitter_scales, scales, "{what}: grid {i}: jitter scales");
        assert_eq!(phase.jitter_scales(i), scales);
        if want["short_cycle_idx"].is_null() {
            continue;
        }
        assert_eq!(grid.clips_per_gpu, integer(&want["per_gpu_batch"]), "{what}: grid {i}: clips per GPU");
        if phase.batch_norm.norm_type == NormType::SubBatchNorm {
            let clips = grid.clips_per_gpu as f64 / phase.batch_norm.splits as f64;
            assert_eq!(clips, number(&want["clips_per_bn_group_if_sub_bn"]), "{what}: grid {i}: clips per group");
        }
    }
}

/// Iterations with incomplete batches dropped, for data sets given as clips per GPU.
fn compare_iterations(what: &str, phase: &Phase, datasets: &Value) {
    let gpus = phase.clips / phase.grids.last().unwrap().clips_per_gpu;
    for dataset in array(datasets) {
        let num_clips = integer(&dataset["num_samples"]) * gpus;
        let (got, want) = (phase.iterations(num_clips), &dataset["drop_last"]);
        assert_eq!(got, integer(&want["len_actual"]), "{what}: iterations for {num_clips} clips");
        for (i, pair) in array(&want["first_iters"]).iter().enumerate() {
            assert_eq!(phase.step_shape(i).clips, integer(&pair[0]) * gpus, "{what}: iteration {i}");
            assert_eq!(i % phase.grids.len(), integer(&pair[1]), "{what}: iteration {i}");
        }
        assert_eq!(phase.step_shape(got - 1).clips, integer(&want["last_iter"][0]) * gpus, "{what}: last iteration");
    }
}

// ---------------------------------------------------------------------------------------------------------------------

fn kinetics(overrides: &[&str]) -> Config {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/kinetics/SLOWFAST_8x8_R50_stepwise_multigrid.yaml");
    Config::load(path, &overrides.iter().map(|s| s.to_string()).collect::<Vec<_>>()).unwrap()
}

#[test]
fn the_default_schedule_needs_the_published_share_of_iterations() {
    for (overrides, times_fewer) in [
        (vec![], 3.42),
        (vec!["MULTIGRID.SHORT_CYCLE", "False"], 2.19),
        (vec!["MULTIGRID.LONG_CYCLE", "False"], 1.56),
        (vec!["MULTIGRID.LONG_CYCLE", "False", "MULTIGRID.SHORT_CYCLE", "False"], 1.0),
    ] {
        let config = kinetics(&overrides);
        // So many clips that the incomplete batches, which an epoch drops, do not count.
        let cost = Cost::of(&Schedule::new(&config).unwrap(), &config, 100_000_000);
        assert!((cost.fewer_iterations() - times_fewer).abs() < 0.005, "{overrides:?}: {}", cost.fewer_iterations());
        assert!((cost.volume * times_fewer - 1.0).abs() < 0.01, "{overrides:?}: {}", cost.volume);
    }
}

#[test]
fn kinetics_has_eight_shapes_and_one_for_evaluation() {
    let schedule = Schedule::new(&kinetics(&[])).unwrap();
    let shapes: Vec<String> = schedule.step_shapes().iter().map(|s| format!("{s}/{}", s.splits)).collect();
    let want = [
        "1024x8x112/64",
        "512x8x158/64",
        "512x16x112/32",
        "256x16x158/32",
        "512x16x112/16",
        "256x16x158/16",
        "128x16x224/16",
        "256x32x112/8",
        "128x32x158/8",
        "64x32x224/8",
    ];
    assert_eq!(shapes, want);
    let mut grids: Vec<_> = schedule.step_shapes().iter().map(|s| (s.frames, s.width_px)).collect();
    grids.sort();
    grids.dedup();
    assert_eq!(grids, [(8, 112), (8, 158), (16, 112), (16, 158), (16, 224), (32, 112), (32, 158), (32, 224)]);
    assert_eq!(schedule.evaluation_shape().to_string(), "64x32x224");
}

#[test]
fn one_device_takes_the_groups_of_many() {
    for (overrides, splits) in [
        (["NUM_GPUS", "8"], [64, 32, 16, 8]), // 8 groups of 8 clips at the default shape
        (["NUM_GPUS", "1"], [64, 32, 16, 8]),
        (["NUM_GPUS", "16"], [64, 32, 16, 8]), // 4 clips on a GPU: two GPUs share statistics
        (["TRAIN.BATCH_SIZE", "8"], [8, 4, 2, 1]),
    ] {
        let schedule = Schedule::new(&kinetics(&overrides)).unwrap();
        let got: Vec<usize> = schedule.phases().iter().map(|p| p.splits).collect();
        assert_eq!(got, splits, "{overrides:?}");
    }
    // Fewer clips than a group: one group, never none.
    let config =
        config(&pairs(&[("TRAIN.BATCH_SIZE", "4"), ("BN.NORM_TYPE", "sync_batchnorm"), ("BN.NUM_SYNC_DEVICES", "2")]));
    assert_eq!(Schedule::new(&config).unwrap().phase(0).splits, 1);
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

#[test]
fn a_grid_that_the_pathways_cannot_share_is_refused_by_name() {
    let error = Schedule::new(&kinetics(&["DATA.NUM_FRAMES", "8"])).unwrap_err().to_string();
    for part in ["grid 1024x2x112", "SLOWFAST.ALPHA (4)", "T = 2"] {
        assert!(error.contains(part), "{error}");
    }
    Schedule::new(&kinetics(&["DATA.NUM_FRAMES", "8", "MODEL.ARCH", "i3d"])).unwrap();
    let error = Schedule::new(&kinetics(&["MULTIGRID.LONG_CYCLE_FACTORS", "[[0.01, 1], [1, 1]]"])).unwrap_err();
    assert!(error.to_string().contains("empty grid"), "{error}");
}

#[test]
fn a_segment_that_rounding_deletes_is_told() {
    assert!(Schedule::new(&kinetics(&[])).unwrap().warnings().is_empty());
    // Something-Something V2's schedule: 28, 30, 30.
    let short = kinetics(&["SOLVER.STEPS", "[0, 14, 18]", "SOLVER.MAX_EPOCH", "22"]);
    let warnings = Schedule::new(&short).unwrap().warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("deletes segment 7") && warnings[0].contains("epoch 30"), "{warnings:?}");
    let cosine = Schedule::new(&kinetics(&["SOLVER.LR_POLICY", "cosine"])).unwrap().warnings();
    assert!(cosine[0].contains("cosine"), "{cosine:?}");
}

#[test]
fn a_small_data_set_still_has_an_iteration() {
    let schedule = Schedule::new(&kinetics(&[])).unwrap();
    assert_eq!(schedule.phase(0).iterations(83), 1);
    assert_eq!(schedule.phase(0).iterations(1024), 1);
    assert_eq!(schedule.phase(0).iterations(1024 + 511), 1);
    assert_eq!(schedule.phase(0).iterations(1024 + 512), 2);
    assert_eq!(schedule.phase(0).first_clip(7), 2 * 2048 + 1024);
}

prop_compose! {
    fn any_config()(
        gpus in 1usize..5, clips_per_gpu in 1usize..20, frames in 1usize..65, crop in 16usize..257,
        epochs in proptest::collection::vec(1usize..60, 2..5), epoch_factor in 0.5f64..3.0,
        short in any::<bool>(), long in any::<bool>(), base_size in 1usize..17, fine in any::<bool>(),
    ) -> Config {
        let mut steps = vec![0];
        for length in &epochs {
            steps.push(steps[steps.len() - 1] + length);
        }
        let max_epoch = steps.pop().unwrap();
        let lrs: Vec<f64> = (0..steps.len()).map(|i| 0.1f64.powi(i as i32)).collect();
        let mut config = Config { num_gpus: gpus, ..Config::default() };
        config.train.batch_size = gpus * clips_per_gpu;
        config.data.num_frames = frames * 4;
        config.data.train_crop_size = crop;
        config.data.train_jitter_scales = [crop + crop / 8, crop + crop / 2];
        config.slowfast.alpha = 1;
        config.solver.lr_policy = vcycle::config::LrPolicy::StepsWithRelativeLrs;
        (config.solver.steps, config.solver.lrs, config.solver.max_epoch) = (steps, lrs, max_epoch);
        config.multigrid.short_cycle = short;
        config.multigrid.long_cycle = long;
        config.multigrid.epoch_factor = epoch_factor;
        config.multigrid.bn_base_size = base_size;
        if fine {
            config.multigrid.long_cycle_factors = vec![[0.25, 0.5], [0.5, 0.75], [1.0, 1.0]];
        }
        config
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every step costs about the default step, is never larger than the default grid, and has clips for its groups.
    #[test]
    fn every_step_costs_about_the_same(config in any_config()) {
        let schedule = Schedule::new(&config).unwrap();
        let (b, t, s) = (config.train.batch_size, config.data.num_frames, config.data.train_crop_size);
        for shape in schedule.step_shapes() {
            prop_assert!(shape.clips >= b && shape.frames <= t && shape.height_px <= s);
            prop_assert!(shape.splits >= 1);
            prop_assert_eq!(shape.clips % b, 0);
            let volume = (shape.clips * shape.frames * shape.height_px.pow(2)) as f64 / (b * t * s * s) as f64;
            // Factors are integers and grids are rounded: within half a factor and a pixel.
            let slack = 1.0 + 2.5 / shape.height_px as f64 + 2.0 / shape.frames as f64;
            prop_assert!(volume < 1.5 * slack && volume > 0.4 / slack, "{} has {} of the default volume", shape, volume);
        }
    }

    /// Epochs add up, segments never run backwards, every epoch has a phase, and the last epoch is validated and saved.
    #[test]
    fn epochs_add_up(config in any_config()) {
        let schedule = Schedule::new(&config).unwrap();
        let grid = &config.multigrid;
        let factor = if grid.short_cycle || grid.long_cycle { grid.epoch_factor } else { 1.0 };
        let want = config.solver.max_epoch as f64 * factor;
        prop_assert!((schedule.max_epoch() as f64 - want).abs() < 1.0, "{} of {}", schedule.max_epoch(), want);
        if let Some(segments) = schedule.segments() {
            prop_assert!(segments.windows(2).all(|w| w[0].end_epoch <= w[1].end_epoch));
            prop_assert_eq!(segments.len(), (config.solver.steps.len() - 1) * grid.long_cycle_factors.len() + 1);
        }
        let last = schedule.max_epoch() - 1;
        prop_assert!(schedule.is_eval_epoch(last) && schedule.is_checkpoint_epoch(last));
        // It ends at the default shape, unless rounding deleted the fine-tuning, which is told.
        let finest = schedule.phase(last);
        let ends_fine = (finest.frames, finest.crop_px) == (config.data.num_frames, config.data.train_crop_size);
        prop_assert!(ends_fine || !schedule.warnings().is_empty());
    }

    /// An epoch uses no clip twice where the data set holds a batch, and leaves less than the next batch over.
    #[test]
    fn iterations_fill_the_epoch(config in any_config(), num_clips in 1usize..100_000) {
        let schedule = Schedule::new(&config).unwrap();
        for phase in schedule.phases() {
            let iterations = phase.iterations(num_clips);
            let used = phase.first_clip(iterations);
            prop_assert!(used <= num_clips || iterations == 1);
            prop_assert!(used + phase.step_shape(iterations).clips > num_clips);
        }
    }

    /// Inside a stage of the baseline the rate follows the batch; warm-up starts where it is told to.
    #[test]
    fn rates_follow_the_batch(config in any_config()) {
        let schedule = Schedule::new(&config).unwrap();
        let Some(segments) = schedule.segments() else { return Ok(()) };
        let mut start = 0;
        for segment in &segments[..segments.len() - 1] {
            if segment.end_epoch > start {
                let want = config.solver.base_lr * 0.1f64.powi(segment.stage as i32) * segment.batch_factor as f64;
                prop_assert!((schedule.lr(start as f64) / want - 1.0).abs() < 1e-9);
            }
            start = segment.end_epoch;
        }
    }
}
