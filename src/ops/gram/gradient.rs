//! The backward pass: from the sums of `g` and `g x'` to the gradients of parameters and the filter that makes the input's gradient.

use super::Gram;
use super::gradient_params::GradientParams;
use crate::device::{DType, Device, LaunchConfig, Slice, Stream, launch, with_host};
use crate::error::{Error, Result};
use crate::ops::check;
use rayon::prelude::*;

const OP: &str = "gram gradient";
/// Output channels of a block of `gram_gradient_rows` (`WARPS`), sides of a tile of `gram_gradient_products` (`TILE`) and its threads.
const WARPS: usize = 4;
const TILE: usize = 32;
const THREADS: u32 = 256;
/// Columns whose sums a task keeps at once, on the CPU.
const COLUMNS: usize = 64;

/// What the gradient is formed of: f32, but for the filter.
#[derive(Clone, Copy, Debug)]
pub struct GradientSources<'a> {
    /// `[splits][c_out][c_in]`: the sum of `g x'` over each split, as [`conv3d::grad_filter_of_splits`] makes it. `g` is the masked
    /// gradient of what the batch norm made.
    ///
    /// [`conv3d::grad_filter_of_splits`]: crate::ops::conv3d::grad_filter_of_splits
    pub products: &'a Slice,
    /// `[splits][c_out]`: the sum of `g`.
    pub grad_sums: &'a Slice,
    /// `[splits][c_in + c_in * c_in]`: mean and covariance of the input, from forward.
    pub moments: &'a Slice,
    /// `[splits][3][c_out]`, from forward.
    pub stats: &'a Slice,
    /// `[c_out]`.
    pub gamma: &'a Slice,
    /// `[c_out][c_in]`, as the convolution used it: in the type of activations.
    pub filter: &'a Slice,
}

/// Where it goes. Gradients of parameters are overwritten, or added to where the clips are a later part of their batch.
#[derive(Clone, Copy, Debug)]
pub struct GradientResults<'a> {
    /// `[splits][3][c_out]`: A, B, C of `dy = A g + B y + C`.
    pub grad_table: &'a Slice,
    /// `[splits][c_out + c_in][c_in]` in the type of the filter: `A W` above `W' diag(B) W`. The input's gradient is
    /// `[g x] back_filter + back_shift`.
    pub back_filter: &'a Slice,
    /// `[splits][c_in]`: `C W`.
    pub back_shift: &'a Slice,
    /// `[c_out][c_in]`, f32.
    pub grad_filter: &'a Slice,
    /// `[c_out]`, f32.
    pub grad_gamma: &'a Slice,
    /// `[c_out]`, f32.
    pub grad_beta: &'a Slice,
}

/// Forms the gradients of filter, gamma and beta, and what makes that of the input. See `docs/gram_batch_norm.md`.
///
/// # Errors
/// [`Error::Shape`] where lengths or types do not fit the op.
pub fn gradient(stream: &Stream, op: &Gram, from: &GradientSources<'_>, to: &GradientResults<'_>) -> Result<()> {
    op.check(OP)?;
    let dtype = check_slices(stream, op, from, to)?;
    match stream.device() {
        Device::Cpu => cpu(op, from, to),
        Device::Cuda(_) | Device::Simt => run(stream, op, dtype, from, to),
    }
}

fn check_slices(stream: &Stream, op: &Gram, from: &GradientSources<'_>, to: &GradientResults<'_>) -> Result<DType> {
    let (c_in, c_out, splits) = (op.c_in, op.norm.shape.c, op.norm.splits);
    let dtype = from.filter.dtype();
    let is_fine = match stream.device() {
        Device::Cpu => dtype == DType::F32,
        Device::Cuda(_) | Device::Simt => matches!(dtype, DType::Bf16 | DType::F16),
    };
    if !is_fine {
        let message = format!("filter must hold F32 on the CPU, Bf16 or F16 on kernels, got {dtype:?}");
        return Err(Error::shape(OP, message));
    }
    for (name, slice, len) in [
        ("products", from.products, splits * c_out * c_in),
        ("grad_sums", from.grad_sums, splits * c_out),
        ("moments", from.moments, splits * (c_in + c_in * c_in)),
        ("stats", from.stats, splits * 3 * c_out),
        ("gamma", from.gamma, c_out),
        ("grad_table", to.grad_table, splits * 3 * c_out),
        ("back_shift", to.back_shift, splits * c_in),
        ("grad_filter", to.grad_filter, c_out * c_in),
        ("grad_gamma", to.grad_gamma, c_out),
        ("grad_beta", to.grad_beta, c_out),
    ] {
        check::slice(OP, name, slice, len, DType::F32)?;
    }
    check::slice(OP, "filter", from.filter, c_out * c_in, dtype)?;
    check::slice(OP, "back_filter", to.back_filter, splits * (c_out + c_in) * c_in, dtype)?;
    Ok(dtype)
}

fn run(stream: &Stream, op: &Gram, dtype: DType, from: &GradientSources<'_>, to: &GradientResults<'_>) -> Result<()> {
    let (c_in, c_out, splits) = (op.c_in, op.norm.shape.c, op.norm.splits_used());
    let [rows_per_split, rows_of_last] = [0, splits - 1].map(|split| op.rows_of_split(split).len() as u64);
    let params = GradientParams {
        products: from.products.address(),
        grad_sums: from.grad_sums.address(),
        moments: from.moments.address(),
        stats: from.stats.address(),
        gamma: from.gamma.address(),
        filter: from.filter.address(),
        grad_table: to.grad_table.address(),
        back_filter: to.back_filter.address(),
        back_shift: to.back_shift.address(),
        grad_filter: to.grad_filter.address(),
        grad_gamma: to.grad_gamma.address(),
        grad_beta: to.grad_beta.address(),
        rows_per_split,
        rows_of_last,
        c_in: c_in as i32,
        c_out: c_out as i32,
        splits: splits as i32,
        accumulates: i32::from(op.norm.part.is_some_and(|part| part.accumulates())),
    };
    let reads = [from.products, from.grad_sums, from.moments, from.stats, from.gamma, from.filter];
    let [rows, products] = match dtype {
        DType::Bf16 => ["gram_gradient_rows_bf16", "gram_gradient_products_bf16"],
        _ => ["gram_gradient_rows_f16", "gram_gradient_products_f16"],
    };
    let grid = [c_out.div_ceil(WARPS) as u32, 1, 1];
    let config = LaunchConfig { grid, block: [32 * WARPS as u32, 1, 1], shared_bytes: 0 };
    let writes = [to.grad_table, to.back_filter, to.grad_gamma, to.grad_beta];
    launch::run(stream, OP, rows, config, &reads, &writes, &params)?;
    let columns = c_in.div_ceil(TILE);
    let tiles = c_out.div_ceil(TILE) * columns + splits * columns * columns;
    let config = LaunchConfig { grid: [tiles as u32, 1, 1], block: [THREADS, 1, 1], shared_bytes: 0 };
    let reads = [from.products, from.grad_sums, from.moments, from.filter, to.grad_table];
    let writes = [to.back_filter, to.back_shift, to.grad_filter];
    launch::run(stream, OP, products, config, &reads, &writes, &params)
}

/// The same in f32, sums in the order of the splits and of the channels.
fn cpu(op: &Gram, from: &GradientSources<'_>, to: &GradientResults<'_>) -> Result<()> {
    let reads = [from.products, from.grad_sums, from.moments, from.stats, from.gamma, from.filter];
    let writes = [to.grad_table, to.back_filter, to.back_shift, to.grad_filter, to.grad_gamma, to.grad_beta];
    with_host(reads, writes, |[products, sums, moments, stats, gamma, w], [table, back, shift, dw, dgamma, dbeta]| {
        let on_host = OnHost { op, products: products.get()?, sums: sums.get()?, moments: moments.get()?, w: w.get()? };
        let table = table.into_mut()?;
        on_host.rows(stats.get()?, gamma.get()?, table, dgamma.into_mut()?, dbeta.into_mut()?);
        on_host.grad_filter(table, dw.into_mut()?);
        on_host.back_filter(table, back.into_mut()?, shift.into_mut()?);
        Ok(())
    })
}

struct OnHost<'a> {
    op: &'a Gram,
    products: &'a [f32],
    sums: &'a [f32],
    moments: &'a [f32],
    w: &'a [f32],
}

fn add_scaled(to: &mut [f32], a: f32, from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(t, f)| *t += a * f);
}

impl OnHost<'_> {
    fn accumulates(&self) -> bool {
        self.op.norm.part.is_some_and(|part| part.accumulates())
    }

    fn splits(&self) -> std::ops::Range<usize> {
        0..self.op.norm.splits_used()
    }

    fn positions(&self, split: usize) -> f32 {
        self.op.rows_of_split(split).len() as f32
    }

    /// Mean and covariance.
    fn moments(&self, split: usize) -> (&[f32], &[f32]) {
        let len = self.op.moments_of_split();
        self.moments[split * len..][..len].split_at(self.op.c_in)
    }

    fn filter_row(&self, o: usize) -> &[f32] {
        &self.w[o * self.op.c_in..][..self.op.c_in]
    }

    /// The sum of g and of `g x'` of an output channel.
    fn sums(&self, split: usize, o: usize) -> (f32, &[f32]) {
        let at = split * self.op.norm.shape.c + o;
        (self.sums[at], &self.products[at * self.op.c_in..][..self.op.c_in])
    }

    fn rows(&self, stats: &[f32], gamma: &[f32], table: &mut [f32], dgamma: &mut [f32], dbeta: &mut [f32]) {
        let c_out = self.op.norm.shape.c;
        if !self.accumulates() {
            dgamma.fill(0.0);
            dbeta.fill(0.0);
        }
        for split in self.splits() {
            let (means, _) = self.moments(split);
            let n = self.positions(split);
            for o in 0..c_out {
                let (sum, products) = self.sums(split, o);
                let at = split * 3 * c_out + o;
                let (mean, invstd) = (stats[at], stats[at + c_out]);
                let terms = self.filter_row(o).iter().zip(products.iter().zip(means));
                let about_mean: f64 =
                    terms.map(|(w, (p, m))| f64::from(*w) * (f64::from(*p) - f64::from(sum) * f64::from(*m))).sum();
                let a = gamma[o] * invstd;
                let b = (-f64::from(a) * f64::from(invstd) * f64::from(invstd) * about_mean / f64::from(n)) as f32;
                table[at] = a;
                table[at + c_out] = b;
                table[at + 2 * c_out] = -b * mean - a * sum / n;
                dgamma[o] += (f64::from(invstd) * about_mean) as f32;
                dbeta[o] += sum;
            }
        }
    }

    fn grad_filter(&self, table: &[f32], dw: &mut [f32]) {
        let (c_in, c_out) = (self.op.c_in, self.op.norm.shape.c);
        dw.par_chunks_mut(c_in).enumerate().for_each(|(o, row)| {
            if !self.accumulates() {
                row.fill(0.0);
            }
            for split in self.splits() {
                let (means, covariance) = self.moments(split);
                let at = split * 3 * c_out + o;
                let (a, b, n) = (table[at], table[at + c_out], self.positions(split));
                let (sum, products) = self.sums(split, o);
                for (block, row) in row.chunks_mut(COLUMNS).enumerate() {
                    let first = block * COLUMNS;
                    let mut of_covariance = [0.0f32; COLUMNS];
                    for (w, covariance) in self.filter_row(o).iter().zip(covariance.chunks(c_in)) {
                        add_scaled(&mut of_covariance, *w, &covariance[first..][..row.len()]);
                    }
                    for (i, dw) in row.iter_mut().enumerate() {
                        // A small difference: f64 keeps all of it.
                        let of_mean = f64::from(sum) * f64::from(means[first + i]);
                        let about_mean = (f64::from(products[first + i]) - of_mean) as f32;
                        *dw += a * about_mean + b * n * of_covariance[i];
                    }
                }
            }
        });
    }

    fn back_filter(&self, table: &[f32], back: &mut [f32], shift: &mut [f32]) {
        let (c_in, c_out) = (self.op.c_in, self.op.norm.shape.c);
        back.par_chunks_mut(c_in).enumerate().for_each(|(row, to)| {
            let (split, row) = (row / (c_out + c_in), row % (c_out + c_in));
            if !self.splits().contains(&split) {
                return;
            }
            let table = &table[split * 3 * c_out..];
            to.fill(0.0);
            if row < c_out {
                add_scaled(to, table[row], self.filter_row(row));
                return;
            }
            for o in 0..c_out {
                let w = self.filter_row(o);
                add_scaled(to, table[c_out + o] * w[row - c_out], w);
            }
        });
        for (split, to) in self.splits().zip(shift.chunks_mut(c_in)) {
            to.fill(0.0);
            (0..c_out).for_each(|o| add_scaled(to, table[(split * 3 + 2) * c_out + o], self.filter_row(o)));
        }
    }
}
