//! Starts the kernels, on the GPU and on the emulator.

use super::params::{Operand, Params};
use super::plan::{Direction, Positions, TICKETS_BYTES, plan};
use crate::device::{DType, Slice, Stream, Tensor, launch};
use crate::error::{Error, Result};
use crate::ops::check;

/// What the kernels' 32-bit arithmetic takes (k_range in kernels/linear/mapping.cuh).
const MAX_SIZE: usize = 1 << 30;

/// A matrix in memory, line after line.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub memory: &'a Slice,
    pub pitch: usize,
}

impl<'a> Matrix<'a> {
    /// The positions of a tensor.
    pub fn of(tensor: &'a Tensor) -> Matrix<'a> {
        Matrix { memory: tensor.memory(), pitch: tensor.pitch_c() }
    }

    fn is_aligned(&self, elements: usize) -> bool {
        let bytes = elements * self.memory.dtype().size_bytes();
        self.memory.address().is_multiple_of(bytes as u64) && self.pitch.is_multiple_of(elements)
    }

    fn operand(&self) -> Operand {
        Operand { address: self.memory.address(), pitch: self.pitch as i32, is_aligned: self.is_aligned(8).into() }
    }
}

/// One product: `output = a b'` in the words of kernels/linear/linear.cu.
pub(super) struct Product<'a> {
    pub op: &'static str,
    pub direction: Direction,
    pub positions: Positions,
    /// m, n, k.
    pub sizes: [usize; 3],
    pub a: Matrix<'a>,
    pub b: Matrix<'a>,
    pub output: Matrix<'a>,
    pub bias: Option<&'a Slice>,
    pub grad_bias: Option<&'a Slice>,
}

/// Bytes that the products of a layer may use at once.
pub(super) fn workspace_bytes(positions: usize, c_in: usize, c_out: usize) -> usize {
    [Direction::Forward, Direction::GradInput, Direction::GradWeight]
        .map(|d| {
            let sizes = d.sizes(positions, c_in, c_out);
            plan(d, DType::Bf16, sizes, Positions::one_split(positions), true, true).workspace_bytes
        })
        .into_iter()
        .fold(0, usize::max)
}

pub(super) fn run(stream: &Stream, product: &Product<'_>, workspace: Option<&Slice>) -> Result<()> {
    let Product { op, sizes: [m, n, k], a, b, output, bias, grad_bias, .. } = *product;
    let largest = [a.pitch, b.pitch, output.pitch, n.div_ceil(64) * m.div_ceil(16)];
    let is_too_large = [m, n, k].iter().any(|size| *size >= MAX_SIZE) || m.div_ceil(64) > 65535;
    if is_too_large || largest.iter().any(|size| *size > i32::MAX as usize) {
        let message = format!("a product of {m} x {n} x {k}: too large for one launch");
        return Err(Error::unsupported(op, message));
    }
    let (dtype, positions) = (a.memory.dtype(), product.positions);
    let plan = plan(product.direction, dtype, product.sizes, positions, workspace.is_some(), grad_bias.is_some());
    if let Some(workspace) = workspace {
        check::workspace(op, workspace, plan.workspace_bytes)?;
    }
    let start = workspace.map_or(0, Slice::address);
    let params = Params {
        a: a.operand(),
        b: b.operand(),
        output: output.memory.address(),
        bias: bias.map_or(0, Slice::address),
        grad_bias: grad_bias.map_or(0, Slice::address),
        partials: start + TICKETS_BYTES as u64,
        tickets: start,
        m: m as i32,
        n: n as i32,
        k: k as i32,
        output_pitch: output.pitch as i32,
        k_per_split: plan.k_per_split as i32,
        k_together: plan.k_together as i32,
        accumulates: (positions.accumulates && product.direction == Direction::GradWeight).into(),
        n_tiles: plan.n_tiles as i32,
        is_output_f32: (output.memory.dtype() == DType::F32).into(),
        are_pairs: output.is_aligned(2).into(),
    };
    let reads = [Some(a.memory), Some(b.memory), bias];
    let writes = [Some(output.memory), grad_bias, workspace];
    let [reads, writes] = [reads, writes].map(|all| all.into_iter().flatten().collect::<Vec<&Slice>>());
    launch::run(stream, op, plan.kernel, plan.config, &reads, &writes, &params)
}
