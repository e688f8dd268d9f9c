//! grad_filter of a stem, whose gradient comes through the max pool behind it.

use vcycle::device::{Buffer, Device};
use vcycle::ops::conv3d::reference::{self, Rounding};
use vcycle::ops::conv3d::{self, Conv3d, Direction, GradFilterLimits, GradFilterSources, GradPool, GradTable};
use vcycle::ops::pool3d::{self, Pool3d, PoolKind};
use vcycle::shape::ActivationShape;

use super::typed::{Half, floats, held, read_floats};
use crate::executors::{self, in_all_modes};
use crate::golden::fill;

pub fn pool_behind(op: &Conv3d, kernel: [usize; 2], stride: [usize; 2]) -> Pool3d {
    Pool3d {
        kind: PoolKind::Max,
        input: op.output(),
        kernel: [1, kernel[0], kernel[1]],
        stride: [1, stride[0], stride[1]],
        padding: [0, kernel[0] / 2, kernel[1] / 2],
    }
}

/// A convolution and the pool behind its batch norm and ReLU.
struct Pooled {
    name: &'static str,
    op: Conv3d,
    pool: Pool3d,
    splits: usize,
}

fn pooled(name: &'static str, input: [usize; 5], c_out: usize, filter: [usize; 3], pool: [[usize; 2]; 2]) -> Pooled {
    let [n, t, h, w, c] = input;
    let op = Conv3d {
        input: ActivationShape::new(n, t, h, w, c),
        c_out,
        filter,
        stride: [1, 2, 2],
        padding: filter.map(|f| f / 2),
        dilation: [1; 3],
        groups: 1,
        part: None,
    };
    Pooled { name, op, pool: pool_behind(&op, pool[0], pool[1]), splits: n.min(2) }
}

/// Stems as networks have them, and pools that overlap more, less and not at all.
fn pooled_cases() -> Vec<Pooled> {
    vec![
        pooled("slow_stem", [3, 2, 21, 19, 4], 16, [1, 7, 7], [[3, 3], [2, 2]]),
        pooled("fast_stem", [2, 4, 17, 22, 4], 8, [5, 7, 7], [[3, 3], [2, 2]]),
        pooled("wide_stem", [1, 1, 11, 13, 4], 72, [1, 3, 3], [[3, 3], [2, 2]]),
        pooled("every_position_in_nine_windows", [1, 2, 14, 11, 8], 8, [1, 3, 3], [[3, 3], [1, 1]]),
        pooled("gaps_between_windows", [2, 1, 15, 16, 4], 24, [3, 3, 3], [[2, 1], [2, 3]]),
    ]
}

/// Whole numbers in which every sum is exact.
fn pooled_integers(name: &str, len: usize, count: u64, least: f64) -> Vec<f64> {
    fill::int(name, len, count).into_iter().map(|v| v as f64 + least).collect()
}

/// The filter's gradient as the reference makes it, and the kernels' on `device`.
fn pooled_results<T: Half>(device: &Device, case: &Pooled) -> [Vec<f64>; 2] {
    let (op, splits, out) = (case.op, case.splits, case.op.output());
    let named = |what: &str| format!("{}/{what}", case.name);
    let x = pooled_integers(&named("x"), op.input.num_elements(), 7, -3.0);
    let y = pooled_integers(&named("y"), out.num_elements(), 7, -3.0);
    let g = pooled_integers(&named("g"), case.pool.output().num_elements(), 7, -3.0);
    let scale_shift = pooled_integers(&named("scale_shift"), splits * 2 * op.c_out, 3, -1.0);
    let table = pooled_integers(&named("table"), splits * 3 * op.c_out, 3, -1.0);

    let rounding = Rounding { round: |v| v, store: |v| v };
    let relu = reference::normalised(out, splits, rounding, &y, &scale_shift, None);
    let (_, winners) = pool3d::reference::forward(&case.pool, |v| v, &relu);
    let full = pool3d::reference::grad_input(&case.pool, |v| v, &g, &winners, vec![0.0; out.num_elements()]);
    let masked: Vec<f64> = full.iter().zip(&relu).map(|(&g, &r)| if r > 0.0 { g } else { 0.0 }).collect();
    let dy = reference::grad_of_table(out, splits, rounding, &masked, &y, &table);
    let expected = reference::grad_filter(&op, &x, &dy);

    let stream = device.stream().expect("stream");
    let [x, y, g] =
        [(&x, op.input), (&y, out), (&g, case.pool.output())].map(|(v, shape)| held::<T>(device, shape, v, 8));
    let winners: Vec<u8> = winners.iter().map(|&i| i as u8).collect();
    let indices = Buffer::from_host(device, &winners).expect("indices");
    let (scale_shift, table) = (floats(device, &scale_shift), floats(device, &table));
    let from = GradFilterSources {
        input: &x.tensor,
        prologue: None,
        grad_output: &g.tensor,
        grad_table: Some(GradTable { table: &table, y: &y.tensor, splits, store_dy: None }),
        pool: Some(GradPool { op: case.pool, indices: &indices, scale_shift: &scale_shift }),
    };
    let dw = floats(device, &vec![3.0; op.filter_len()]);
    let bytes = conv3d::workspace_bytes_fused(&stream, &op, Direction::GradFilter, splits);
    let scratch = Buffer::from_host(device, &vec![0xabu8; bytes]).expect("workspace");
    conv3d::grad_filter_fused(&stream, &op, &from, &dw, None, &scratch)
        .unwrap_or_else(|e| panic!("{}: {e}", case.name));
    [expected, read_floats(&dw)]
}

#[test]
fn gradients_gathered_through_a_pool_are_exact() {
    for device in executors::with_kernels() {
        for case in pooled_cases() {
            let [expected, got] = pooled_results::<half::bf16>(&device, &case);
            assert_eq!(got, expected, "{device} {}", case.name);
            let [expected, got] = pooled_results::<half::f16>(&device, &case);
            assert_eq!(got, expected, "{device} {} f16", case.name);
        }
    }
}

#[test]
fn gradients_gathered_through_a_pool_have_the_same_bits_in_all_modes() {
    for device in executors::with_kernels() {
        for case in pooled_cases().into_iter().take(2) {
            in_all_modes(&device, |mode| {
                for rows in [16, 64, 512] {
                    let limits = GradFilterLimits { max_rows: rows, ..GradFilterLimits::of(3, 99 << 10) };
                    let [expected, got] =
                        conv3d::with_grad_filter_limits(limits, || pooled_results::<half::bf16>(&device, &case));
                    assert_eq!(got, expected, "{mode} {} {rows}", case.name);
                }
            });
        }
    }
}
