//! Equal bits: again, with another number of threads, with gaps, in place, and one split as against several calls.

use proptest::prelude::*;
use vcycle::device::Device;
use vcycle::ops::batch_norm::{self, BatchNorm};
use vcycle::shape::ActivationShape;

use super::rig::{Operands, Results, Share, cases, step};
use crate::compare::{Place, assert_same_bits, garbage, read, slice, with_threads};

#[track_caller]
fn assert_same(what: &str, got: &Results, want: &Results) {
    for ((part, got), (_, want)) in got.parts().into_iter().zip(want.parts()) {
        assert_same_bits(&format!("{what}: {part}"), got, want);
    }
}

#[test]
fn runs_threads_and_shared_memory_do_not_matter() {
    for case in cases() {
        let o = Operands::random(&case);
        let first = step(&case, &o, Share::Nothing);
        assert_same(&format!("{}: again", case.name), &step(&case, &o, Share::Nothing), &first);
        for threads in [1, 2, 5] {
            let got = with_threads(threads, || step(&case, &o, Share::Nothing));
            assert_same(&format!("{}: {threads} threads", case.name), &got, &first);
        }
        assert_same(&format!("{}: dx in place", case.name), &step(&case, &o, Share::Input), &first);
        assert_same(&format!("{}: dr in place", case.name), &step(&case, &o, Share::Residual), &first);
    }
}

#[test]
fn splits_are_batches_of_their_own() {
    for case in cases().into_iter().filter(|c| c.op().splits > 1) {
        let (op, o) = (case.op(), Operands::random(&case));
        let whole = step(&case, &o, Share::Nothing);
        let clip = op.shape.num_elements() / op.shape.n;
        for split in 0..op.splits_used() {
            let clips = op.clips_of_split(split);
            let shape = ActivationShape { n: clips.len(), ..op.shape };
            let alone = BatchNorm { shape, splits: 1, ..op };
            let part = |values: &[f32]| values[clips.start * clip..clips.end * clip].to_vec();
            let x = Place::DENSE.tensor(shape, &part(&o.x));
            let residual = o.residual.as_ref().map(|r| Place::DENSE.tensor(shape, &part(r)));
            let (y, stats) = (Place::DENSE.garbage(shape), garbage(alone.stats_len()));
            let stream = Device::Cpu.stream().unwrap();
            let workspace = garbage(batch_norm::workspace_bytes(&stream, &alone) / 4);
            let (gamma, beta) = (slice(&o.gamma), slice(&o.beta));
            batch_norm::forward_train(&stream, &alone, &x, &gamma, &beta, residual.as_ref(), &y, &stats, &workspace)
                .unwrap();
            let what = format!("{}: split {split}", case.name);
            assert_same_bits(&what, &read(&y, Place::DENSE), &part(&whole.y));
            let of_split = &whole.stats[split * 3 * op.shape.c..][..3 * op.shape.c];
            assert_same_bits(&what, &stats.read::<f32>().unwrap(), of_split);
        }
    }
}

#[test]
fn memory_in_place_in_training() {
    for case in cases() {
        let (op, o) = (case.op(), Operands::random(&case));
        let want = step(&case, &o, Share::Nothing);
        let place = Place { before: 1, after: 2 };
        let (x, stats) = (place.tensor(op.shape, &o.x), slice(&vec![0f32; op.stats_len()]));
        let residual = o.residual.as_ref().map(|r| Place::DENSE.tensor(op.shape, r));
        let stream = Device::Cpu.stream().unwrap();
        let workspace = garbage(batch_norm::workspace_bytes(&stream, &op) / 4);
        let (gamma, beta) = (slice(&o.gamma), slice(&o.beta));
        batch_norm::forward_train(&stream, &op, &x, &gamma, &beta, residual.as_ref(), &x, &stats, &workspace).unwrap();
        assert_same_bits(&format!("{}: y in place", case.name), &read(&x, place), &want.y);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn gaps_do_not_matter(
        n in 1usize..5, t in 1usize..3, h in 1usize..4, w in 2usize..5, c in 1usize..40, splits in 1usize..4,
        relu: bool, residual: bool, gaps in prop::array::uniform6(0usize..5),
    ) {
        let text = format!("{n}x{t}x{h}x{w}x{c}");
        let case = super::rig::Case::new(&text, [n, t, h, w, c], splits, relu, residual, gaps);
        let o = Operands::random(&case);
        let (got, want) = (step(&case, &o, Share::Nothing), step(&case.dense(), &o, Share::Nothing));
        assert_same(&text, &got, &want);
    }
}
