//! Max and average pooling over (t, h, w).

use crate::device::{Slice, Stream, Tensor};
use crate::error::{Error, Result};
use crate::shape::ActivationShape;

/// Which pooling. Max ignores padding; ties go to the first maximum in (t, h, w) order. Average counts only kernels
/// without padding (as the heads of video networks use it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoolKind {
    /// Largest value.
    Max,
    /// Mean.
    Average,
}

/// What is pooled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pool3d {
    /// Max or average.
    pub kind: PoolKind,
    /// Input sizes.
    pub input: ActivationShape,
    /// Window.
    pub kernel: [usize; 3],
    /// Step of the window.
    pub stride: [usize; 3],
    /// Padding on both sides; zero for `Average`.
    pub padding: [usize; 3],
}

impl Pool3d {
    /// Output sizes.
    pub fn output(&self) -> ActivationShape {
        let out = |size: usize, i: usize| (size + 2 * self.padding[i] - self.kernel[i]) / self.stride[i] + 1;
        let i = self.input;
        ActivationShape::new(i.n, out(i.t, 0), out(i.h, 1), out(i.w, 2), i.c)
    }
}

/// Pools. `indices` (u32, one a dense output element; the winning position in the window, t-major) is written for `Max` where given.
pub fn forward(stream: &Stream, op: &Pool3d, input: &Tensor, output: &Tensor, indices: Option<&Slice>) -> Result<()> {
    let _ = (stream, op, input, output, indices);
    Err(Error::unsupported("pool3d forward", "stub"))
}

/// Gradient of the input, in gather form: deterministic. `Max` needs the `indices` of forward.
pub fn grad_input(
    stream: &Stream,
    op: &Pool3d,
    grad_output: &Tensor,
    indices: Option<&Slice>,
    grad_input: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let _ = (stream, op, grad_output, indices, grad_input, accumulate);
    Err(Error::unsupported("pool3d grad_input", "stub"))
}
