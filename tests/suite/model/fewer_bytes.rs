//! What the forms save that read less than the fused chain: batch norms from moments, both gradients by one kernel.

use vcycle::model::plan::StepOp;
use vcycle::model::plan::fused::{FusedOp, PlannedMask};
use vcycle::model::{Arch, Mode, ModelConfig, Plan};
use vcycle::shape::StepShape;

use super::fused_plan::{FUSED, plan, standard};

fn count(plan: &Plan, is: fn(&FusedOp) -> bool) -> usize {
    plan.ops().filter(|op| matches!(op, StepOp::Fused(op) if is(op))).count()
}

fn num_grams(plan: &Plan) -> usize {
    count(plan, |op| matches!(op, FusedOp::GramGradient { .. }))
}

fn num_at_once(plan: &Plan) -> usize {
    count(plan, |op| matches!(op, FusedOp::ConvBackward { .. }))
}

/// Convolutions in either form, the bytes that they save, and the activations' memory: nothing, one kernel for both gradients, that
/// and Gram batch norm.
#[test]
fn plans_move_and_keep_less() {
    for (arch, frames, forms, most_gb, most_gib) in [
        (Arch::SlowFast, 32, [(0, 0), (0, 27), (26, 11)], [25.33, 23.05, 20.42], [3.15, 3.15, 2.22]),
        (Arch::I3d, 8, [(0, 0), (0, 6), (6, 4)], [12.02, 11.15, 10.46], [1.57, 1.57, 1.28]),
    ] {
        let at_once = ModelConfig { fused_conv_backward: true, ..standard(arch) };
        let configs = [standard(arch), at_once, ModelConfig::new(arch, 50, 400)];
        let plans = configs.map(|c| plan(&c, StepShape::square(8, frames, 224, 1), Mode::Train, FUSED).1);
        let found = plans.each_ref().map(|p| (num_grams(p), num_at_once(p)));
        plans.iter().zip(found).for_each(|(p, found)| println!("{arch:?} {found:?}: {}", p.summary()));
        assert_eq!(found, forms, "{arch:?}: in Gram form, both gradients at once");
        for ((plan, most_gb), most_gib) in plans.iter().zip(most_gb).zip(most_gib) {
            let moved_and_kept = (plan.cost().bytes as f64 / 1e9, plan.arena_bytes as f64 / 2f64.powi(30));
            assert!(moved_and_kept.0 <= most_gb && moved_and_kept.1 <= most_gib, "{arch:?}: {moved_and_kept:?}");
        }
        let stored = |p: &Plan| p.values.iter().filter(|&&v| v != usize::MAX).count();
        assert_eq!(stored(&plans[0]) - stored(&plans[2]), forms[2].0, "{arch:?}: a convolution's output each");
    }
}

/// What is one op less is read once less: the gradient, what its batch norm normalised, the input.
#[test]
fn both_gradients_at_once_read_everything_once() {
    let at_once = ModelConfig { fused_conv_backward: true, ..standard(Arch::SlowFast) };
    let shape = StepShape::square(8, 32, 224, 1);
    let [(_, apart), (_, plan)] = [standard(Arch::SlowFast), at_once].map(|c| plan(&c, shape, Mode::Train, FUSED));
    let mut saved = 0;
    for op in plan.ops() {
        let StepOp::Fused(FusedOp::ConvBackward { op, grad_output, store, .. }) = op else { continue };
        let outputs = if grad_output.norm.is_some() { 2 } else { 1 };
        // The last writer of a gradient masks it by the input.
        let inputs = usize::from(store.mask != PlannedMask::None);
        saved += 2 * (outputs * op.output().num_elements() + inputs * op.input.num_elements()) as u64;
    }
    // Tables, too.
    let found = apart.cost().bytes - plan.cost().bytes;
    assert!((saved..saved + 50_000).contains(&found), "{found} bytes less, {saved} of them activations");
    assert_eq!((apart.cost().flops, apart.arena_bytes), (plan.cost().flops, plan.arena_bytes));
    assert_eq!(apart.ops().count() - plan.ops().count(), num_at_once(&plan));
}
