//! The pieces that fused networks use one by one: tables and the passes that apply them.

use vcycle::device::{Buffer, DType, Device, Slice};
use vcycle::ops::batch_norm::{self, BatchNorm, GradTables, Mask, Running, Tables, reference};
use vcycle::shape::ActivationShape;

use super::rig::{Case, Operands, assert_tickets_are_zero, cases, workspace};
use crate::compare::{as_f64, assert_same_bits, exact, to_f32};
use crate::executors;
use crate::golden::fill;
use crate::stored::{assert_twice_plain, read, read_tensor, rounding, slice, tensor};

const DENSE: [usize; 2] = [0; 2];

/// What the chain of pieces gives: stats, scale_shift, output, grad_table, dgamma, dbeta, dx, dr.
struct Chain {
    stats: Vec<f32>,
    scale_shift: Vec<f32>,
    running: [Vec<f32>; 2],
    y: Vec<f32>,
    grad: [Vec<f32>; 3],
    dx: Vec<f32>,
    dr: Vec<f32>,
}

/// statistics, apply with a second normalised branch, gradient_sums and gradient with a mask recomputed without it.
fn chain(device: &Device, dtype: DType, op: &BatchNorm, o: &Operands, second: &[f32], table: &[f32]) -> Chain {
    let (stream, c) = (device.stream().unwrap(), op.shape.c);
    let f32s = |values: &[f32]| slice(device, DType::F32, values);
    let garbage = |len: usize| f32s(&vec![f32::NAN; len]);
    let (x, dy) = (tensor(device, dtype, op.shape, &o.x, [8, 0]), tensor(device, dtype, op.shape, &o.dy, DENSE));
    let second = tensor(device, dtype, op.shape, second, [0, 8]);
    let y = tensor(device, dtype, op.shape, &o.x, DENSE);
    let (gamma, beta) = (f32s(&o.gamma), f32s(&o.beta));
    // Rows of splits without clips are not written.
    let (stats, scale_shift) = (f32s(&vec![0.0; op.stats_len()]), f32s(&vec![0.0; op.scale_shift_len()]));
    let (mean, var) = (f32s(&vec![1.0; c]), f32s(&vec![2.0; c]));
    let running = Running { mean: &mean, var: &var, momentum: 0.25 };
    let skip = slice_of_zero(device);
    let scratch = workspace(device, batch_norm::workspace_bytes(&stream, op));
    let tables = Tables {
        gamma: &gamma,
        beta: &beta,
        stats: &stats,
        scale_shift: Some(&scale_shift),
        running: Some(running),
        skip: Some(&skip),
    };
    batch_norm::statistics(&stream, op, &x, &tables, &scratch).unwrap();
    assert_eq!(skip.read::<u32>().unwrap(), [0]);
    batch_norm::apply(&stream, op, &x, &scale_shift, Some((&second, Some(&f32s(table)))), &y).unwrap();

    let (grad_table, dgamma, dbeta) = (f32s(&vec![0.0; op.grad_table_len()]), garbage(c), garbage(c));
    let mask = if op.relu { Mask::Recomputed(&scale_shift) } else { Mask::None };
    let to =
        GradTables { gamma: &gamma, stats: &stats, grad_table: &grad_table, grad_gamma: &dgamma, grad_beta: &dbeta };
    batch_norm::gradient_sums(&stream, op, &x, &dy, mask, &to, &scratch).unwrap();
    let (dx, dr) = (tensor(device, dtype, op.shape, &o.x, DENSE), tensor(device, dtype, op.shape, &o.x, DENSE));
    batch_norm::gradient(&stream, op, &x, &dy, mask, &grad_table, &dx, Some((&dr, false))).unwrap();
    assert_tickets_are_zero(device, &scratch);
    Chain {
        stats: read(&stats),
        scale_shift: read(&scale_shift),
        running: [read(&mean), read(&var)],
        y: read_tensor(&y, DENSE),
        grad: [&grad_table, &dgamma, &dbeta].map(read),
        dx: read_tensor(&dx, DENSE),
        dr: read_tensor(&dr, DENSE),
    }
}

fn slice_of_zero(device: &Device) -> Slice {
    Buffer::from_host(device, &[0u32]).unwrap()
}

fn check_chain(device: &Device, dtype: DType, case: &Case, mean: f32) {
    let op = case.op();
    let mut o = Operands::random(case);
    o.x.iter_mut().for_each(|x| *x += mean);
    let o = o.rounded(dtype);
    let second: Vec<f32> = fill::f32("second", o.x.len(), 1.0, 0.0);
    let second: Vec<f32> = second.iter().map(|v| rounding(dtype)(f64::from(*v)) as f32).collect();
    let table = fill::f32("second/table", op.scale_shift_len(), 0.5, 0.5);
    let got = chain(device, dtype, &op, &o, &second, &table);
    let what = format!("{} {dtype:?} mean {mean}", case.name);
    let [x, gamma, beta, dy, second, table] = [&o.x, &o.gamma, &o.beta, &o.dy, &second, &table].map(|v| as_f64(v));
    let both = [exact, to_f32];
    let check = |part: &str, dtype, got: &[f32], [want, plain]: [&[f64]; 2]| {
        assert_twice_plain(&format!("{what}: {part}"), dtype, got, plain, want);
    };
    let stats = both.map(|round| reference::forward(&op, round, &x, &gamma, &beta, None).stats);
    check("stats", DType::F32, &got.stats, [&stats[0], &stats[1]]);
    let plain_table = reference::scale_shift(&op, to_f32, &stats[1], &gamma, &beta);
    let want_table = reference::scale_shift(&op, exact, &stats[0], &gamma, &beta);
    let c = op.shape.c;
    // The shift belongs to the scale as it is stored, which may be off by its own rounding.
    let of_scale =
        |i: usize| (want_table[i - c] - f64::from(got.scale_shift[i - c])) * stats[0][i / (2 * c) * 3 * c + i % c];
    let is_shift = |i: usize| i / c % 2 == 1;
    let want = |i: usize| want_table[i] + if is_shift(i) { of_scale(i) } else { 0.0 };
    let want: Vec<f64> = (0..want_table.len()).map(want).collect();
    check("scale_shift", DType::F32, &got.scale_shift, [&want, &plain_table]);
    let y = [(exact as fn(f64) -> f64, &want_table), (to_f32, &plain_table)]
        .map(|(round, t)| reference::apply(&op, round, &x, t, Some((&second, Some(&table)))));
    check("y", dtype, &got.y, [&y[0], &y[1]]);

    for (row, old, running) in [(0, 1.0, &got.running[0]), (2, 2.0, &got.running[1])] {
        for (ch, running) in running.iter().enumerate() {
            let used = 0..op.splits_used();
            let average =
                used.clone().map(|s| f64::from(got.stats[(s * 3 + row) * c + ch])).sum::<f64>() / used.len() as f64;
            let want = 0.75 * old + 0.25 * average;
            let error = (f64::from(*running) - want).abs();
            assert!(error <= want.abs() * f64::from(f32::EPSILON), "{what}: running {ch}: {running} is not {want}");
        }
    }
    // From what the kernels wrote: a value next to zero may be on either side of the ReLU.
    let (stats, scale_shift) = (as_f64(&got.stats), as_f64(&got.scale_shift));
    // The kernel's mask is a fused multiply-add: what it kept is what it wrote for the residual.
    let mask = reference::apply(&BatchNorm { relu: false, ..op }, exact, &x, &scale_shift, None);
    let g: Vec<f64> = (0..x.len()).map(|i| if !op.relu || mask[i] > 0.0 { dy[i] } else { 0.0 }).collect();
    for i in 0..g.len() {
        assert!(f64::from(got.dr[i]) == g[i], "{what}: dr {i}: {} is not {}, mask {:e}", got.dr[i], g[i], mask[i]);
    }
    let tables = both.map(|round| reference::gradient_tables(&op, round, &x, &g, &gamma, &stats));
    // C belongs to B in the same way.
    let mut want = tables[0].clone();
    for i in (0..want[0].len()).filter(|i| i / c % 3 == 2) {
        want[0][i] += (tables[0][0][i - c] - f64::from(got.grad[0][i - c])) * stats[i - 2 * c];
    }
    for (i, part) in ["grad_table", "dgamma", "dbeta"].into_iter().enumerate() {
        check(part, DType::F32, &got.grad[i], [&want[i], &tables[1][i]]);
    }
    let dx = [0, 1].map(|i| reference::gradient(&op, both[i], &x, &g, &tables[i][0]));
    check("dx", dtype, &got.dx, [&dx[0], &dx[1]]);
}

#[test]
fn a_chain_of_pieces_agrees_with_the_reference() {
    for device in executors::with_kernels() {
        for case in cases().into_iter().filter(|c| c.op().shape.num_elements() <= 20_000) {
            for dtype in [DType::Bf16, DType::F16] {
                check_chain(&device, dtype, &case, 0.0);
                check_chain(&device, dtype, &case, 58.0);
            }
        }
    }
}

#[test]
fn the_table_of_the_gradient_is_the_gradient() {
    for case in cases().into_iter().filter(|c| c.op().shape.num_elements() <= 20_000) {
        let (op, o) = (case.op(), Operands::random(&case));
        let [x, gamma, beta, dy] = [&o.x, &o.gamma, &o.beta, &o.dy].map(|v| as_f64(v));
        let forward = reference::forward(&op, exact, &x, &gamma, &beta, None);
        let want = reference::backward(&op, exact, &x, &gamma, &forward, &dy);
        let [table, dgamma, dbeta] = reference::gradient_tables(&op, exact, &x, &want.dr, &gamma, &forward.stats);
        let dx = reference::gradient(&op, exact, &x, &want.dr, &table);
        for (got, want) in [(&dx, &want.dx), (&dgamma, &want.dgamma), (&dbeta, &want.dbeta)] {
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() <= 1e-11 * want.abs().max(1.0), "{}: {got} is not {want}", case.name);
            }
        }
    }
}

/// Partial sums over tiles that another kernel might form.
#[test]
fn tables_from_partial_sums_of_tiles() {
    let op = BatchNorm { shape: ActivationShape::new(5, 2, 3, 7, 70), splits: 2, eps: 1e-5, relu: false, part: None };
    let (c, tile_rows) = (op.shape.c, 32);
    let (len, rows_per_clip) = (op.shape.num_elements(), 2 * 3 * 7);
    let (x, g) = (fill::f32("tiles/x", len, 1.0, 58.0), fill::f32("tiles/g", len, 1.0, 0.1));
    let gamma = fill::f32("tiles/gamma", c, 1.0, 1.5);
    let beta = vec![0.5; c];
    let stats = reference::forward(&op, exact, &as_f64(&x), &as_f64(&gamma), &as_f64(&beta), None).stats;
    let stats: Vec<f32> = stats.iter().map(|v| *v as f32).collect();
    let (mut moments, mut sums) = (vec![], vec![]);
    for split in 0..op.splits_used() {
        let clips = op.clips_of_split(split);
        let rows: Vec<usize> = (clips.start * rows_per_clip..clips.end * rows_per_clip).collect();
        for tile in rows.chunks(tile_rows) {
            let at = |values: &[f32], row: usize, ch: usize| f64::from(values[row * c + ch]);
            let count = tile.len() as f64;
            let mean = |ch: usize| tile.iter().map(|r| at(&x, *r, ch)).sum::<f64>() / count;
            moments.extend((0..c).map(|ch| mean(ch) as f32));
            moments
                .extend((0..c).map(|ch| tile.iter().map(|r| (at(&x, *r, ch) - mean(ch)).powi(2)).sum::<f64>() as f32));
            sums.extend((0..c).map(|ch| tile.iter().map(|r| at(&g, *r, ch)).sum::<f64>() as f32));
            let centre = |ch: usize| f64::from(stats[split * 3 * c + ch]);
            let product = |ch: usize| tile.iter().map(|r| at(&g, *r, ch) * (at(&x, *r, ch) - centre(ch))).sum::<f64>();
            sums.extend((0..c).map(|ch| product(ch) as f32));
        }
    }
    let both = [exact, to_f32];
    for device in executors::with_kernels() {
        let stream = device.stream().unwrap();
        let f32s = |values: &[f32]| slice(&device, DType::F32, values);
        let (gamma_d, beta_d) = (f32s(&gamma), f32s(&beta));
        let [stats_d, table_d] = [op.stats_len(), op.scale_shift_len()].map(|len| f32s(&vec![f32::NAN; len]));
        let to = Tables {
            gamma: &gamma_d,
            beta: &beta_d,
            stats: &stats_d,
            scale_shift: Some(&table_d),
            running: None,
            skip: None,
        };
        batch_norm::finalise_statistics(&stream, &op, tile_rows, &f32s(&moments), &to).unwrap();
        let forward =
            both.map(|r| reference::forward(&op, r, &as_f64(&x), &as_f64(&gamma), &as_f64(&beta), None).stats);
        assert_twice_plain("stats", DType::F32, &read(&stats_d), &forward[1], &forward[0]);

        let of_forward = f32s(&stats);
        let [grad_table, dgamma, dbeta] = [op.grad_table_len(), c, c].map(|len| f32s(&vec![f32::NAN; len]));
        let to = GradTables {
            gamma: &gamma_d,
            stats: &of_forward,
            grad_table: &grad_table,
            grad_gamma: &dgamma,
            grad_beta: &dbeta,
        };
        batch_norm::finalise_gradient(&stream, &op, tile_rows, &f32s(&sums), &to).unwrap();
        let want = both
            .map(|r| reference::gradient_tables(&op, r, &as_f64(&x), &as_f64(&g), &as_f64(&gamma), &as_f64(&stats)));
        for (i, got) in [&grad_table, &dgamma, &dbeta].into_iter().enumerate() {
            assert_twice_plain("gradient", DType::F32, &read(got), &want[1][i], &want[0][i]);
        }
    }
}

#[test]
fn what_is_not_finite_shows_and_sets_the_skip_flag() {
    let op = BatchNorm { shape: ActivationShape::new(4, 1, 3, 3, 8), splits: 2, eps: 1e-5, relu: true, part: None };
    for device in executors::all() {
        for (bad, with_flag) in [(f32::NAN, true), (f32::INFINITY, true), (f32::NAN, false)] {
            let stream = device.stream().unwrap();
            let dtype = if device == Device::Cpu { DType::F32 } else { DType::Bf16 };
            let mut x = fill::f32("skip/x", op.shape.num_elements(), 1.0, 0.0);
            x[9 * 8 * 2 + 5] = bad; // the second split, channel 5
            let f32s = |values: &[f32]| slice(&device, DType::F32, values);
            let x = tensor(&device, dtype, op.shape, &x, DENSE);
            let (gamma, beta) = (f32s(&[1.0; 8]), f32s(&[0.0; 8]));
            let (stats, mean, var) = (f32s(&[0.0; 48]), f32s(&[3.0; 8]), f32s(&[4.0; 8]));
            let skip = slice_of_zero(&device);
            let scratch = workspace(&device, batch_norm::workspace_bytes(&stream, &op));
            let tables = Tables {
                gamma: &gamma,
                beta: &beta,
                stats: &stats,
                scale_shift: None,
                running: Some(Running { mean: &mean, var: &var, momentum: 0.1 }),
                skip: with_flag.then_some(&skip),
            };
            batch_norm::statistics(&stream, &op, &x, &tables, &scratch).unwrap();
            assert!(!read(&stats)[24 + 5].is_finite() && read(&stats)[5].is_finite(), "{device}: {bad}");
            assert_eq!(skip.read::<u32>().unwrap()[0], u32::from(with_flag), "{device}: {bad}");
            let (mean, var) = (read(&mean), read(&var));
            if with_flag {
                assert!(mean[5] == 3.0 && var[5] == 4.0, "{device}: the running pair outlives the step");
            } else {
                assert!(!mean[5].is_finite() && !var[5].is_finite(), "{device}: {bad} shows");
            }
        }
    }
}

#[test]
fn the_running_pair_as_scale_and_shift() {
    let op = BatchNorm { shape: ActivationShape::new(1, 1, 1, 2, 300), splits: 1, eps: 1e-3, relu: false, part: None };
    let value = |what: &str, offset| fill::f32(what, 300, 1.0, offset);
    let [mean, var, gamma, beta] = [value("mean", 100.0), value("var", 1.5), value("gamma", 1.0), value("beta", 0.0)];
    let tables: Vec<Vec<f32>> = executors::all()
        .iter()
        .map(|device| {
            let [mean, var, gamma, beta] = [&mean, &var, &gamma, &beta].map(|v| slice(device, DType::F32, v));
            let table = slice(device, DType::F32, &vec![f32::NAN; 600]);
            let stream = device.stream().unwrap();
            batch_norm::running_scale_shift(&stream, &op, [&mean, &var], &gamma, &beta, &table).unwrap();
            read(&table)
        })
        .collect();
    for ch in 0..300 {
        let scale = f64::from(gamma[ch]) / (f64::from(var[ch]) + f64::from(1e-3f32)).sqrt();
        let (got, shift) = (f64::from(tables[0][ch]), f64::from(tables[0][300 + ch]));
        assert!((got - scale).abs() <= scale.abs() * 2f64.powi(-23), "scale {ch}: {got} is not {scale}");
        // The mean itself becomes beta.
        assert!((f64::from(mean[ch]) * got + shift - f64::from(beta[ch])).abs() <= 1e-5, "shift {ch}");
    }
    tables.iter().for_each(|table| assert_same_bits("every executor", table, &tables[0]));
}

#[test]
fn what_does_not_fit_is_refused() {
    let op = BatchNorm { shape: ActivationShape::new(2, 1, 2, 2, 4), splits: 1, eps: 1e-5, relu: true, part: None };
    let cpu = Device::Cpu;
    let stream = cpu.stream().unwrap();
    let f32s = |len: usize| slice(&cpu, DType::F32, &vec![0.0; len]);
    let x = tensor(&cpu, DType::F32, op.shape, &[0.0; 32], DENSE);
    let y = tensor(&cpu, DType::F32, op.shape, &[0.0; 32], DENSE);
    let message = |result: vcycle::Result<()>| result.unwrap_err().to_string();
    let table = f32s(8);
    assert_eq!(
        message(batch_norm::apply(&stream, &op, &x, &table, Some((&x, Some(&table))), &y)),
        "batch_norm apply is not supported: a second normalised branch has no form on the CPU; apply its table first"
    );
    assert_eq!(
        message(batch_norm::apply(&stream, &op, &x, &f32s(9), None, &y)),
        "batch_norm apply: scale_shift must have 8 elements, got 9"
    );
    let gradient = |table: &Slice| batch_norm::gradient(&stream, &op, &x, &x, Mask::None, table, &y, None);
    assert!(message(gradient(&f32s(12))).contains("use batch_norm::backward"));
    assert!(message(gradient(&f32s(8))).contains("grad_table must have 12 elements, got 8"));
    for device in executors::with_kernels() {
        let stream = device.stream().unwrap();
        let table = slice(&device, DType::F32, &[0.0; 8]);
        let x = tensor(&device, DType::Bf16, op.shape, &[0.0; 32], DENSE);
        let y = tensor(&device, DType::F16, op.shape, &[0.0; 32], DENSE);
        assert_eq!(
            message(batch_norm::apply(&stream, &op, &x, &table, None, &y)),
            "batch_norm apply: output must hold Bf16, got F16"
        );
    }
}
