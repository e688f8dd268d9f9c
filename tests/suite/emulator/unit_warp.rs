//! Synchronisation, shuffles, votes, tickets and atomics.

use super::unit::{UnitCase, bytes};

pub fn cases() -> Vec<UnitCase> {
    let mut all = vec![block_sum(), shuffle(), vote(), named_barrier(), atomics()];
    all.extend((0..3).map(ticket));
    all
}

fn block_sum() -> UnitCase {
    let values: Vec<f32> = (0..1000).map(|i| (i % 17) as f32).collect();
    let mut sums = [0.0f32; 3];
    for (i, v) in values.iter().enumerate() {
        sums[i / 128 % 3] += v;
    }
    UnitCase {
        name: "static shared memory and __syncthreads".into(),
        kernel: "unit_block_sum",
        grid: 3,
        block: 128,
        a: bytes(&values),
        flags: [1000, 0, 0, 0, 0, 0],
        expected: bytes(&sums),
        ..Default::default()
    }
}

fn shuffle() -> UnitCase {
    let from = |thread: usize, width: usize, pick: &dyn Fn(usize) -> Option<usize>| -> i32 {
        let lane_in_segment = thread % width;
        let source = pick(lane_in_segment).filter(|s| *s < width).unwrap_or(lane_in_segment);
        (100 + thread / width * width + source) as i32
    };
    let mut expected = Vec::new();
    for (width, up, down, xor) in [(32, 2, 2, 3), (8, 3, 3, 9)] {
        expected.extend((0..64).map(|t| from(t, width, &|_| Some(5))));
        // An xor that leaves the segment upwards gives the own value; downwards it reads the lower segment.
        expected.extend((0..64usize).map(|t| {
            let source = t ^ xor;
            (100 + if source / width > t / width { t } else { source }) as i32
        }));
        expected.extend((0..64).map(|t| from(t, width, &|l| l.checked_sub(up))));
        expected.extend((0..64).map(|t| from(t, width, &|l| Some(l + down))));
    }
    UnitCase {
        name: "shuffles".into(),
        kernel: "unit_shuffle",
        grid: 1,
        block: 64,
        expected: bytes(&expected),
        ..Default::default()
    }
}

fn vote() -> UnitCase {
    let thirds = (0..32).filter(|lane| lane % 3 == 0).fold(0u32, |mask, lane| mask | 1 << lane);
    let mut expected = vec![thirds; 64];
    expected.extend((0..64).map(|t| u32::from(t < 32)));
    expected.extend((0..64).map(|t| u32::from(t < 32)));
    expected.extend((0..64).map(|t| if t % 2 == 1 { 0xAAAA } else { 0x55 }));
    UnitCase {
        name: "votes".into(),
        kernel: "unit_vote",
        grid: 1,
        block: 64,
        expected: bytes(&expected),
        ..Default::default()
    }
}

fn named_barrier() -> UnitCase {
    let expected: Vec<i32> = (0..32).map(|lane| 7 * (31 - lane)).collect();
    UnitCase {
        name: "bar.sync and bar.arrive".into(),
        kernel: "unit_named_barrier",
        grid: 1,
        block: 64,
        shared_bytes: 128,
        expected: bytes(&expected),
        ..Default::default()
    }
}

fn ticket(order: i32) -> UnitCase {
    let blocks = 40u32;
    let mut expected = vec![blocks];
    expected.extend(1..=blocks);
    expected.push(blocks * (blocks + 1) / 2);
    UnitCase {
        name: format!(
            "the last block reduces, ordered by {}",
            ["fences", "atom.acq_rel", "red.release"][order as usize]
        ),
        kernel: "unit_ticket",
        grid: blocks,
        block: 64,
        flags: [order, 0, 0, 0, 0, 0],
        expected: bytes(&expected),
        ..Default::default()
    }
}

fn atomics() -> UnitCase {
    let threads = 3 * 64u32;
    let wraps = threads % 10; // atomicInc counts 0 to 9
    let expected = [
        threads * (threads - 1) / 2,
        threads - 1,
        u32::MAX,
        wraps,
        42,
        7,
        0u32.wrapping_sub(threads),
        192f32.to_bits(),
    ];
    UnitCase {
        name: "atomics".into(),
        kernel: "unit_atomics",
        grid: 3,
        block: 64,
        expected: bytes(&expected),
        ..Default::default()
    }
}
