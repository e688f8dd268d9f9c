//! The fused form: what is fused with what, bytes and launches of the networks that matter.

use proptest::prelude::*;
use vcycle::device::{DType, Device};
use vcycle::model::plan::StepOp;
use vcycle::model::plan::fused::{FusedOp, Load, NormGrad, PlannedMask};
use vcycle::model::{Arch, GramUse, Lowering, Mode, Model, ModelConfig, Plan, Transform};
use vcycle::ops::attention::Instantiation;
use vcycle::shape::StepShape;

use super::plan::{check_plan, with_blocks};
use super::with_non_local;

pub(super) const FUSED: Lowering = Lowering::Fused(DType::Bf16);

pub(super) fn plan(config: &ModelConfig, shape: StepShape, mode: Mode, lowering: Lowering) -> (Model, Plan) {
    let (stream, model) = (Device::Cpu.stream().expect("stream"), Model::new(config).expect("model"));
    let plan = Plan::with_lowering(&stream, &model, shape, mode, 4, lowering).expect("plan");
    (model, plan)
}

/// At full size, with every batch norm in the standard form, and each gradient by itself.
pub(super) fn standard(arch: Arch) -> ModelConfig {
    ModelConfig { gram: GramUse::Never, fused_conv_backward: false, ..ModelConfig::new(arch, 50, 400) }
}

/// With each gradient by itself.
fn small(arch: Arch) -> ModelConfig {
    ModelConfig { width_per_group: 16, fused_conv_backward: false, ..ModelConfig::new(arch, 18, 5) }
}

proptest! {
    #[test]
    fn fused_plans_read_only_what_is_written(
        arch in prop::sample::select(vec![Arch::SlowFast, Arch::Slow, Arch::I3d, Arch::C2d]),
        basic in any::<bool>(),
        is_gram in any::<bool>(),
        fused_conv_backward in any::<bool>(),
        train in any::<bool>(),
        clips in 1usize..4,
        frames in prop::sample::select(vec![4usize, 8, 16]),
        height_px in 32usize..70,
        splits in 1usize..4,
        non_local in prop::option::of((any::<bool>(), 1usize..3, 1usize..3)),
    ) {
        let gram = if is_gram { GramUse::Always } else { GramUse::Auto };
        let transform = if basic { Transform::Basic } else { Transform::Bottleneck };
        let config = with_blocks(ModelConfig { transform, gram, fused_conv_backward, ..small(arch) }, non_local);
        let mode = if train { Mode::Train } else { Mode::Eval };
        let shape = StepShape { clips, frames, height_px, width_px: 40, splits };
        check_plan(&plan(&config, shape, mode, FUSED).1);
    }
}

/// What an op is fused with, in a line.
struct Reader<'a> {
    model: &'a Model,
    plan: &'a Plan,
}

impl Reader<'_> {
    fn name(&self, tensor: usize) -> &str {
        &self.plan.tensors[tensor].name
    }

    fn load(&self, load: &Load) -> String {
        let tensor = self.name(load.tensor);
        match (load.scale_shift, &load.join) {
            (None, _) => tensor.to_string(),
            (Some(_), None) => format!("norm({tensor})"),
            (Some(_), Some(join)) => {
                let residual = self.name(join.residual);
                let residual = join.residual_scale_shift.map_or(residual.to_string(), |_| format!("norm({residual})"));
                let stored = join.output.map_or(String::new(), |o| format!(" storing {}", self.name(o)));
                format!("norm({tensor}) + {residual}{stored}")
            }
        }
    }

    fn norms(&self, norms: &[NormGrad]) -> String {
        norms.iter().map(|n| self.model.norms[n.norm].name.as_str()).collect::<Vec<_>>().join(" and ")
    }

    fn mask(&self, mask: PlannedMask) -> String {
        match mask {
            PlannedMask::None => "unmasked".into(),
            PlannedMask::Output(output) => format!("masked by {}", self.name(output)),
            PlannedMask::Recomputed(_, y) => format!("masked by norm({})", self.name(y)),
        }
    }

    fn line(&self, op: &StepOp) -> Option<String> {
        let op = match op {
            StepOp::Fused(op) => op,
            StepOp::Attention { output, .. } => return Some(format!("attention {}", self.name(*output))),
            StepOp::Pool { output, .. } => return Some(format!("pool {}", self.name(*output))),
            StepOp::PoolGradInput { grad_input, .. } => return Some(format!("{} <- pool", self.name(*grad_input))),
            StepOp::AttentionBackward { grads: [query, ..], .. } => {
                return Some(format!("{} <- attention", self.name(*query)));
            }
            _ => return None,
        };
        Some(match op {
            FusedOp::Conv { input, statistics, output, .. } => {
                let norm = statistics.map_or("no norm", |s| &self.model.norms[s.norm].name);
                format!("conv {} <- {}; {norm}", self.name(*output), self.load(input))
            }
            FusedOp::Statistics { input, statistics } => {
                format!("statistics of {}; {}", self.name(*input), self.model.norms[statistics.norm].name)
            }
            FusedOp::Apply { input, output, relu, .. } => {
                let relu = if *relu { "" } else { ", no ReLU" };
                format!("apply {} <- {}{relu}", self.name(*output), self.load(input))
            }
            FusedOp::Pool { input, output, .. } => {
                format!("pool {} <- norm({})", self.name(*output), self.name(*input))
            }
            FusedOp::ConvGradInput { store, grad_input, .. } => {
                let add = if store.accumulate { "added, " } else { "" };
                let (mask, norms) = (self.mask(store.mask), self.norms(&store.norms));
                format!("{} <- {add}{mask}; {norms}", self.name(*grad_input))
            }
            FusedOp::ConvBackward { store, grad_input, .. } => {
                let add = if store.accumulate { "added, " } else { "" };
                let (mask, norms) = (self.mask(store.mask), self.norms(&store.norms));
                format!("{} <- at once, {add}{mask}; {norms}", self.name(*grad_input))
            }
            FusedOp::GradSums { grad_output, mask, norm, .. } => {
                format!("sums of {}, {}; {}", self.name(*grad_output), self.mask(*mask), self.norms(&[*norm]))
            }
            FusedOp::PoolGradNorm { norm, grad_input, .. } => {
                let to = grad_input.map_or("nothing", |g| self.name(g));
                format!("{to} <- pool; {}", self.norms(&[*norm]))
            }
            FusedOp::ConvNormalise { input, shortcut, output, .. } => {
                let residual = self.name(shortcut.tensor);
                let residual = shortcut.scale_shift.map_or(residual.to_string(), |_| format!("norm({residual})"));
                format!("conv {} <- {} + {residual}", self.name(*output), self.load(input))
            }
            FusedOp::GramMoments { input, .. } => format!("moments of {}", self.load(input)),
            FusedOp::GramStatistics { statistics, .. } => {
                format!("statistics from moments; {}", self.model.norms[statistics.norm].name)
            }
            FusedOp::GramGradient { norm, .. } => format!("gradient from moments; {}", self.model.norms[*norm].name),
            FusedOp::GramGradInput { store, grad_input, .. } => {
                let (mask, norms) = (self.mask(store.mask), self.norms(&store.norms));
                format!("{} <- both, {mask}; {norms}", self.name(*grad_input))
            }
            FusedOp::ConvGradFilter { .. } | FusedOp::Gradient { .. } | FusedOp::GramProducts { .. } => return None,
        })
    }
}

fn lines(arch: Arch, mode: Mode) -> Vec<String> {
    lines_of(&small(arch), mode)
}

fn lines_of(config: &ModelConfig, mode: Mode) -> Vec<String> {
    let (model, plan) = plan(config, StepShape::square(4, 8, 64, 2), mode, FUSED);
    let reader = Reader { model: &model, plan: &plan };
    plan.ops().filter_map(|op| reader.line(op)).collect()
}

/// Each of `expected` is there, in this order.
fn check_order(lines: &[String], expected: &[&str]) {
    let mut from = 0;
    for line in expected {
        let at = lines[from..].iter().position(|l| l == line);
        from += at.unwrap_or_else(|| panic!("{line}\nis not among the rest of\n{}", lines[from..].join("\n"))) + 1;
    }
}

#[test]
fn convolutions_store_the_ends_of_blocks_where_they_can() {
    check_order(
        &lines(Arch::SlowFast, Mode::Train),
        &[
            "conv s1.pathway0_stem.conv <- input.0; s1.pathway0_stem.bn",
            "pool s1.pathway0_stem.pool_layer <- norm(s1.pathway0_stem.conv)",
            "conv s1_fuse.conv_f2s <- s1.pathway1_stem.pool_layer; s1_fuse.bn",
            "apply s1_fuse.bn <- norm(s1_fuse.conv_f2s)",
            "conv s2.pathway0_res0.branch1 <- s1_fuse; s2.pathway0_res0.branch1_bn",
            "conv s2.pathway0_res0.branch2.b <- norm(s2.pathway0_res0.branch2.a); s2.pathway0_res0.branch2.b_bn",
            "conv s2.pathway0_res1.branch2.a <- norm(s2.pathway0_res0.branch2.c) + norm(s2.pathway0_res0.branch1) storing \
             s2.pathway0_res0.branch2.c_bn; s2.pathway0_res1.branch2.a_bn",
            // The lateral convolution has a stride in time: a convolution of the next stage comes first.
            "conv s3.pathway1_res0.branch2.a <- norm(s2.pathway1_res1.branch2.c) + s2.pathway1_res0.branch2.c_bn storing \
             s2.pathway1_res1.branch2.c_bn; s3.pathway1_res0.branch2.a_bn",
            "conv s2_fuse.conv_f2s <- s2.pathway1_res1.branch2.c_bn; s2_fuse.bn",
            "apply s2.pathway0_res1.branch2.c_bn <- norm(s2.pathway0_res1.branch2.c) + s2.pathway0_res0.branch2.c_bn",
            "apply s2_fuse.bn <- norm(s2_fuse.conv_f2s)",
            "conv s3.pathway1_res0.branch1 <- s2.pathway1_res1.branch2.c_bn; s3.pathway1_res0.branch1_bn",
            "apply s5.pathway0_res1.branch2.c_bn <- norm(s5.pathway0_res1.branch2.c) + s5.pathway0_res0.branch2.c_bn",
        ],
    );
    // One pathway: the downsample branch comes after the convolution that stores its input.
    check_order(
        &lines(Arch::Slow, Mode::Eval),
        &[
            "pool s1.pathway0_stem.pool_layer <- norm(s1.pathway0_stem.conv)",
            "conv s3.pathway0_res0.branch2.a <- norm(s2.pathway0_res1.branch2.c) + s2.pathway0_res0.branch2.c_bn storing \
             s2.pathway0_res1.branch2.c_bn; no norm",
            "conv s3.pathway0_res0.branch1 <- s2.pathway0_res1.branch2.c_bn; no norm",
        ],
    );
    // A pool in time reads what a pass of its own has stored.
    check_order(
        &lines(Arch::I3d, Mode::Train),
        &["apply s2.pathway0_res1.branch2.c_bn <- norm(s2.pathway0_res1.branch2.c) + s2.pathway0_res0.branch2.c_bn"],
    );
}

#[test]
fn the_last_writer_of_a_gradient_serves_the_norms_before_it() {
    check_order(
        &lines(Arch::SlowFast, Mode::Train),
        &[
            "sums of grad s5.pathway1_res1.branch2.c_bn, masked by s5.pathway1_res1.branch2.c_bn; \
             s5.pathway1_res1.branch2.c_bn",
            "grad s5.pathway1_res1.branch2.b_bn <- masked by norm(s5.pathway1_res1.branch2.b); \
             s5.pathway1_res1.branch2.b_bn",
            // The memory of the block's own gradient, which the shortcut hands on.
            "grad s5.pathway1_res1.branch2.c_bn <- added, masked by s5.pathway1_res0.branch2.c_bn; \
             s5.pathway1_res0.branch2.c_bn and s5.pathway1_res0.branch1_bn",
            // Two of the three readers of a fast block's end: the third is in the next stage and ran first.
            "grad s4.pathway1_res1.branch2.c_bn <- unmasked; ",
            // A concatenation: masked as a whole, summed by part.
            "grad s4_fuse <- unmasked; ",
            "grad s4_fuse <- added, masked by s4_fuse; ",
            "sums of grad s4.pathway0_res1.branch2.c_bn, unmasked; s4.pathway0_res1.branch2.c_bn",
            "sums of grad s4_fuse.bn, unmasked; s4_fuse.bn",
            "grad s4.pathway1_res1.branch2.c_bn <- added, unmasked; ",
            "grad s4.pathway1_res1.branch2.c_bn <- added, masked by s4.pathway1_res1.branch2.c_bn; \
             s4.pathway1_res1.branch2.c_bn",
            "sums of grad s1_fuse.bn, unmasked; s1_fuse.bn",
            "grad s1.pathway1_stem.bn <- pool; s1.pathway1_stem.bn",
            "grad s1.pathway0_stem.bn <- pool; s1.pathway0_stem.bn",
        ],
    );
}

#[test]
fn every_norm_is_served_once_in_each_direction() {
    let plain = [Arch::SlowFast, Arch::Slow, Arch::I3d].map(small);
    let gram = plain.clone().map(|config| ModelConfig { gram: GramUse::Always, ..config });
    let at_once = plain.clone().map(|config| ModelConfig { fused_conv_backward: true, ..config });
    let blocks = with_non_local(small(Arch::I3d), Instantiation::Softmax, 1, [1, 2, 2]);
    for config in plain.into_iter().chain(gram).chain(at_once).chain([blocks, slowfast_with_last_blocks()]) {
        let arch = config.arch;
        let (model, plan) = plan(&config, StepShape::square(4, 8, 64, 2), Mode::Train, FUSED);
        let mut served = vec![(0, 0); model.norms.len()];
        plan.statistics().for_each(|(_, norm, _)| served[norm].0 += 1);
        for op in plan.ops() {
            let StepOp::Fused(op) = op else { continue };
            match op {
                FusedOp::ConvGradInput { store, .. }
                | FusedOp::ConvBackward { store, .. }
                | FusedOp::GramGradInput { store, .. } => {
                    store.norms.iter().for_each(|n| served[n.norm].1 += 1);
                }
                FusedOp::GramGradient { norm, .. } => served[*norm].1 += 1,
                FusedOp::GradSums { norm, .. } | FusedOp::PoolGradNorm { norm, .. } => served[norm.norm].1 += 1,
                _ => {}
            }
        }
        for (norm, times) in model.norms.iter().zip(served) {
            assert_eq!(times, (1, 1), "{arch:?} {}: statistics, gradient sums", norm.name);
        }
    }
}

#[test]
fn non_local_blocks_are_added_by_passes_of_their_own() {
    let config = with_non_local(small(Arch::Slow), Instantiation::Softmax, 2, [1, 2, 2]);
    check_order(
        &lines_of(&config, Mode::Train),
        &[
            // The queries' convolution stores the block's end; all others read it.
            "conv s3.pathway0_nonlocal0.conv_theta <- norm(s3.pathway0_res0.branch2.c) + norm(s3.pathway0_res0.branch1) \
             storing s3.pathway0_res0.branch2.c_bn; no norm",
            "pool s3.pathway0_nonlocal0.pool",
            "conv s3.pathway0_nonlocal0.conv_phi <- s3.pathway0_nonlocal0.pool; no norm",
            "conv s3.pathway0_nonlocal0.conv_g <- s3.pathway0_nonlocal0.pool; no norm",
            "attention s3.pathway0_nonlocal0.attention",
            "conv s3.pathway0_nonlocal0.conv_out <- s3.pathway0_nonlocal0.attention; no norm",
            "statistics of s3.pathway0_nonlocal0.conv_out; s3.pathway0_nonlocal0.bn",
            "apply s3.pathway0_nonlocal0.bn <- norm(s3.pathway0_nonlocal0.conv_out) + s3.pathway0_res0.branch2.c_bn, no ReLU",
            "conv s3.pathway0_res1.branch2.a <- s3.pathway0_nonlocal0.bn; s3.pathway0_res1.branch2.a_bn",
            // Backward: the end of the next block hands its gradient on, no ReLU is between, the norm is served.
            "grad s3.pathway0_res1.branch2.c_bn <- added, unmasked; s3.pathway0_nonlocal0.bn",
            "grad s3.pathway0_nonlocal0.attention <- unmasked; ",
            "grad s3.pathway0_nonlocal0.conv_theta <- attention",
            "grad s3.pathway0_nonlocal0.pool <- unmasked; ",
            "grad s3.pathway0_nonlocal0.pool <- added, unmasked; ",
            "grad s3.pathway0_res1.branch2.c_bn <- pool",
            "grad s3.pathway0_res1.branch2.c_bn <- added, masked by s3.pathway0_res0.branch2.c_bn; \
             s3.pathway0_res0.branch2.c_bn and s3.pathway0_res0.branch1_bn",
        ],
    );
}

/// SlowFast-NLN has blocks at the ends of s3 and s4, before the laterals join.
fn slowfast_with_last_blocks() -> ModelConfig {
    let mut config = small(Arch::SlowFast);
    (config.non_local.location[1][0], config.non_local.location[2][0]) = (vec![1], vec![0, 1]);
    config
}

#[test]
fn a_concatenation_with_a_non_local_block_is_masked_by_part() {
    check_order(
        &lines_of(&slowfast_with_last_blocks(), Mode::Train),
        &[
            "apply s3.pathway0_nonlocal1.bn <- norm(s3.pathway0_nonlocal1.conv_out) + s3.pathway0_res1.branch2.c_bn, no ReLU",
            "grad s3_fuse <- added, unmasked; ",
            "sums of grad s3.pathway0_nonlocal1.bn, unmasked; s3.pathway0_nonlocal1.bn",
            "sums of grad s3_fuse.bn, masked by s3_fuse.bn; s3_fuse.bn",
            // The block's end takes over the memory inside of the concatenation.
            "grad s3.pathway0_nonlocal1.bn <- pool",
            "grad s3.pathway0_nonlocal1.bn <- added, masked by s3.pathway0_res1.branch2.c_bn; s3.pathway0_res1.branch2.c_bn",
        ],
    );
}

/// I3D-NLN-8x8-R50, whose blocks are in s3 and s4: per block 8 launches forward and 15 backward, and what attention multiplies.
#[test]
fn non_local_blocks_are_counted() {
    let shape = StepShape::square(8, 8, 224, 1);
    let without = standard(Arch::I3d);
    let mut with = without.clone();
    with.non_local.instantiation = Instantiation::Softmax;
    (with.non_local.location[1][0], with.non_local.location[2][0]) = (vec![1, 3], vec![1, 3, 5]);
    let (_, without) = plan(&without, shape, Mode::Train, FUSED);
    let (_, with) = plan(&with, shape, Mode::Train, FUSED);
    println!("{}\n{}", with.summary(), without.summary());
    let added = |count: fn(&Plan) -> u64| count(&with) - count(&without);
    // Queries, keys, channels of a head: pooled by 2 in height and width.
    let (s3, s4) = (8 * (4 * 28 * 28) * (4 * 14 * 14) * 256, 8 * (4 * 14 * 14) * (4 * 7 * 7) * 512);
    let attention = 2 * (2 * s3 + 3 * s4);
    let of_convolutions = |positions: u64, c: u64| 8 * positions * c * c / 2;
    let s3 = 2 * of_convolutions(4 * 28 * 28, 512) + 2 * of_convolutions(4 * 14 * 14, 512);
    let s4 = 2 * of_convolutions(4 * 14 * 14, 1024) + 2 * of_convolutions(4 * 7 * 7, 1024);
    assert_eq!(added(|p| p.forward_macs), attention + 2 * s3 + 3 * s4);
    assert_eq!(added(|p| p.backward_macs), attention / 2 * 5 + 2 * (2 * s3 + 3 * s4));
    assert_eq!(added(|p| p.cost().launches), 5 * (8 + 15));
}

/// By one counter: each tensor once an op. The arena is a third of a plain plan's, which holds f32 and every activation.
#[test]
fn a_fused_step_moves_half_of_what_frameworks_move() {
    let config = standard(Arch::SlowFast);
    let shape = StepShape::square(8, 32, 224, 1);
    let (_, fused) = plan(&config, shape, Mode::Train, FUSED);
    let (_, plain) = plan(&config, shape, Mode::Train, Lowering::Plain);
    let (cost, framework) = (fused.cost(), plain.framework_bytes());
    println!("{}\n{}\nframework style {:.2} GB", fused.summary(), plain.summary(), framework as f64 / 1e9);
    assert!(cost.bytes <= 27_000_000_000, "{}", fused.summary());
    assert!((1.8..2.2).contains(&(framework as f64 / cost.bytes as f64)), "{framework} against {}", cost.bytes);
    assert!(fused.arena_bytes * 5 < plain.arena_bytes * 2, "{}\n{}", fused.summary(), plain.summary());
    assert_eq!(cost.flops, 2 * (fused.forward_macs + fused.backward_macs));
    let (ops, plain_ops) = (fused.ops().count(), plain.ops().count());
    assert!(ops * 3 < plain_ops * 2 && cost.launches < plain_ops as u64, "{}", fused.summary());
}

/// Gradients that grad_filter would form several times are stored: not those of wide layers that it reads once.
#[test]
fn gradients_are_stored_where_that_saves_time() {
    let config = standard(Arch::SlowFast);
    let (_, plan) = plan(&config, StepShape::square(8, 32, 224, 1), Mode::Train, FUSED);
    let (mut stored, mut formed) = (vec![], vec![]);
    for op in plan.ops() {
        let StepOp::Fused(FusedOp::ConvGradInput { grad_output, store_dy, .. }) = op else { continue };
        let name = &plan.tensors[grad_output.norm.map_or(grad_output.g, |(_, y)| y)].name;
        if store_dy.is_some() { stored.push(name.as_str()) } else { formed.push(name.as_str()) }
    }
    println!("stored {}: {stored:?}\nformed {}: {formed:?}", stored.len(), formed.len());
    for name in ["s4.pathway0_res1.branch2.a", "s5.pathway0_res1.branch2.c"] {
        assert!(stored.contains(&name), "{name} is among {formed:?}");
    }
    for name in ["s2.pathway0_res1.branch2.c", "s2.pathway1_res1.branch2.b"] {
        assert!(formed.contains(&name), "{name} is among {stored:?}");
    }
}

/// The gradients at the stems' full resolution are nowhere in memory, where channels come in eights.
#[test]
fn stems_gather_their_gradients_through_the_pool() {
    let config = standard(Arch::SlowFast);
    let (_, plan) = plan(&config, StepShape::square(8, 32, 224, 1), Mode::Train, FUSED);
    let fused = plan.ops().filter_map(|op| if let StepOp::Fused(op) = op { Some(op) } else { None });
    let (mut gathered, mut stored) = (0, 0);
    for op in fused {
        match op {
            FusedOp::ConvGradFilter { pool: Some(pool), grad_output, .. } => {
                assert_eq!(plan.tensors[grad_output.g].shape, pool.op.output());
                gathered += 1;
            }
            FusedOp::PoolGradNorm { grad_input, .. } => stored += usize::from(grad_input.is_some()),
            _ => {}
        }
    }
    assert_eq!((gathered, stored), (2, 0));
}
