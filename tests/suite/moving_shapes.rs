//! Tests of `clip::MovingShapes`.

use vcycle::clip::{ClipSource, Frames, MovingShapes, MovingShapesConfig, Split};

use crate::decoder::core_seconds;

fn source(config: &MovingShapesConfig, split: Split) -> MovingShapes {
    MovingShapes::new(config, split).expect("valid")
}

/// Easy to see, so that whatever a frame tells shows.
fn clean() -> MovingShapesConfig {
    MovingShapesConfig { noise: 0.0, distractors: 0, shake_px: 0.0, contrast: 1.0, size_px: 48, ..Default::default() }
}

fn frames(source: &MovingShapes, idx: usize, wanted: &[u32]) -> Frames {
    source.frames(idx, &mut |_| wanted.to_vec()).expect("rendered")
}

#[test]
fn clips_are_repeatable_and_rendered_frame_by_frame() {
    let shapes = source(&MovingShapesConfig::default(), Split::Train);
    let whole = frames(&shapes, 5, &(0..32).collect::<Vec<_>>());
    assert!(whole == frames(&shapes, 5, &(0..32).collect::<Vec<_>>()));
    let frame_bytes = 80 * 80 * 3;
    let some = frames(&shapes, 5, &[3, 17, 17, 31]);
    for (k, index) in [3, 17, 17, 31].into_iter().enumerate() {
        assert_eq!(some.bytes[k * frame_bytes..][..frame_bytes], whole.bytes[index * frame_bytes..][..frame_bytes]);
    }
}

#[test]
fn splits_seeds_and_clips_differ() {
    let base = MovingShapesConfig { noise: 0.0, ..Default::default() };
    let other_seed = MovingShapesConfig { seed: 1, ..base.clone() };
    let train = source(&base, Split::Train);
    let images = [
        frames(&train, 0, &[0]),
        frames(&train, 8, &[0]),
        frames(&source(&base, Split::Val), 0, &[0]),
        frames(&source(&other_seed, Split::Train), 0, &[0]),
    ];
    for i in 0..images.len() {
        assert!(images[i + 1..].iter().all(|other| *other != images[i]));
    }
}

#[test]
fn values_out_of_range_are_refused() {
    let base = MovingShapesConfig::default();
    for config in [
        MovingShapesConfig { num_classes: 1, ..base.clone() },
        MovingShapesConfig { num_classes: 11, ..base.clone() },
        MovingShapesConfig { size_px: 8, ..base.clone() },
        MovingShapesConfig { num_frames: 0, ..base.clone() },
        MovingShapesConfig { speed: (2.0, 1.0), ..base.clone() },
        MovingShapesConfig { speed: (f32::NAN, 1.0), ..base.clone() },
        MovingShapesConfig { noise: -1.0, ..base.clone() },
        MovingShapesConfig { distractors: 1000, ..base.clone() },
        MovingShapesConfig { label_noise: 1.5, ..base },
    ] {
        let error = MovingShapes::new(&config, Split::Train).err().expect("refused");
        assert!(error.to_string().contains("moving_shapes"), "{error}");
    }
}

/// What one frame tells: the picture itself, coarsely, and how much of each brightness it holds.
fn look(frames: &Frames) -> Vec<f64> {
    let (cells, bins) = (6, 8);
    let side = frames.height_px;
    let mut features = vec![0.0; cells * cells * 3 + bins];
    for (i, pixel) in frames.bytes.chunks_exact(3).enumerate() {
        let (row, column) = (i / side * cells / side, i % side * cells / side);
        for (c, &value) in pixel.iter().enumerate() {
            features[(row * cells + column) * 3 + c] += f64::from(value) / (side * side / (cells * cells)) as f64;
        }
        features[cells * cells * 3 + usize::from(pixel[1]) / 32] += 255.0 * bins as f64 / (side * side) as f64;
    }
    features
}

/// Percent of `val` whose nearest class centroid in `train` is their own.
fn nearest_centroid_accuracy(train: &[(usize, Vec<f64>)], val: &[(usize, Vec<f64>)], classes: usize) -> f64 {
    let mut centroids = vec![vec![0.0; train[0].1.len()]; classes];
    for (label, features) in train {
        let weight = classes as f64 / train.len() as f64;
        centroids[*label].iter_mut().zip(features).for_each(|(c, f)| *c += weight * f);
    }
    let nearest = |features: &[f64]| {
        let distance = |c: &[f64]| c.iter().zip(features).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        (0..classes).min_by(|&a, &b| distance(&centroids[a]).total_cmp(&distance(&centroids[b]))).expect("classes")
    };
    let right = val.iter().filter(|(label, features)| nearest(features) == *label).count();
    100.0 * right as f64 / val.len() as f64
}

#[test]
fn one_frame_does_not_tell_the_label() {
    let config = MovingShapesConfig { num_classes: 10, ..clean() };
    let (train, val) = (source(&config, Split::Train), source(&config, Split::Val));
    for frame in [0, 16, 31] {
        let examples = |source: &MovingShapes, count: usize| -> Vec<(usize, Vec<f64>)> {
            (0..count).map(|idx| (source.label(idx) as usize, look(&frames(source, idx, &[frame])))).collect()
        };
        let accuracy = nearest_centroid_accuracy(&examples(&train, 3000), &examples(&val, 2000), 10);
        println!("frame {frame}: nearest centroid is right for {accuracy:.1} % (chance 10)");
        // Chance is 10 % with a standard deviation of 0.67; 4 of them.
        assert!((accuracy - 10.0).abs() < 2.7, "frame {frame}: {accuracy} %");
    }
}

/// Percent of the clips whose label is a direction and who are seen to move in it.
fn directions_seen(config: &MovingShapesConfig) -> f64 {
    let shapes = source(config, Split::Train);
    let side = 48;
    let mut right = 0u32;
    let mut count = 0u32;
    for idx in (0..400).filter(|&idx| shapes.label(idx) < 4) {
        // Least squares of the brightness constancy equation over the whole picture: only signs matter.
        let pair = frames(&shapes, idx, &[10, 11]);
        let at = |t: usize, y: usize, x: usize| f64::from(pair.bytes[((t * side + y) * side + x) * 3 + 1]);
        let (mut along_x, mut along_y) = (0.0, 0.0);
        for y in 1..side - 1 {
            for x in 1..side - 1 {
                let change = at(1, y, x) - at(0, y, x);
                along_x -= change * (at(0, y, x + 1) - at(0, y, x - 1) + at(1, y, x + 1) - at(1, y, x - 1));
                along_y -= change * (at(0, y + 1, x) - at(0, y - 1, x) + at(1, y + 1, x) - at(1, y - 1, x));
            }
        }
        let guess = match (along_x.abs() > along_y.abs(), along_x > 0.0, along_y > 0.0) {
            (true, true, _) => 0,
            (true, false, _) => 1,
            (false, _, true) => 2,
            (false, _, false) => 3,
        };
        right += u32::from(guess == shapes.label(idx));
        count += 1;
    }
    100.0 * f64::from(right) / f64::from(count)
}

#[test]
fn two_frames_tell_the_direction() {
    let seen = directions_seen(&clean());
    println!("{seen:.1} % of the directions read off two frames");
    assert!(seen > 85.0, "{seen} %");
}

#[test]
fn label_noise_parts_labels_from_motions() {
    let (clean, noise) = (clean(), 0.5);
    let noisy = MovingShapesConfig { label_noise: noise, ..clean.clone() };
    assert!((0..20).all(|idx| source(&noisy, Split::Val).label(idx) == source(&clean, Split::Val).label(idx)));
    // Of the clips with noise a quarter, at most, is seen to move as labelled by chance.
    let (without, with) = (directions_seen(&clean), directions_seen(&noisy));
    println!("{without:.1} % of the directions seen without label noise, {with:.1} % with {noise}");
    let lost = f64::from(noise) * (without - 25.0);
    // 200 clips: 4 standard deviations of a share are 14 points.
    assert!((without - with - lost).abs() < 14.0, "{without} % and {with} %");
}

#[test]
#[ignore = "measures"]
fn measure_rendering() {
    let config = MovingShapesConfig { size_px: 64, ..Default::default() };
    let shapes = source(&config, Split::Train);
    let wanted: Vec<u32> = (0..32).step_by(2).collect();
    let begin = core_seconds();
    (0..500).for_each(|idx| _ = frames(&shapes, idx, &wanted));
    println!("moving_shapes: {:.0} clips/s of 16 frames of 64x64 on one core", 500.0 / (core_seconds() - begin));
}
