//! Max and average pooling over (t, h, w).

mod cpu;
mod fused;
mod launch;
mod params;
mod plan;
pub mod reference;

pub use fused::{NormBefore, Prologue, forward_normalised, grad_norm, workspace_bytes};

use crate::device::{DType, Device, Slice, Stream, Tensor, with_host};
use crate::error::{Error, Result};
use crate::ops::check;
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
    /// The mean over all frames, rows and columns of each clip.
    pub const fn global_average(input: ActivationShape) -> Self {
        let kernel = [input.t, input.h, input.w];
        Pool3d { kind: PoolKind::Average, input, kernel, stride: [1; 3], padding: [0; 3] }
    }

    /// Output sizes; `check` tells whether there are any.
    pub fn output(&self) -> ActivationShape {
        let out = |size: usize, i: usize| {
            (size + 2 * self.padding[i]).saturating_sub(self.kernel[i]) / self.stride[i].max(1) + 1
        };
        let i = self.input;
        ActivationShape::new(i.n, out(i.t, 0), out(i.h, 1), out(i.w, 2), i.c)
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// A kernel or stride of zero, a kernel larger than the padded input, padding of more than half the kernel (a window
    /// would hold nothing but padding), padding with `Average`.
    pub fn check(&self) -> Result<()> {
        const OP: &str = "pool3d";
        let sizes = [self.input.t, self.input.h, self.input.w];
        for (axis, name) in ["t", "h", "w"].iter().enumerate() {
            let (size, kernel, stride, padding) =
                (sizes[axis], self.kernel[axis], self.stride[axis], self.padding[axis]);
            let problem = if kernel == 0 || stride == 0 {
                "kernel and stride must be at least 1"
            } else if padding > kernel / 2 {
                "padding must be at most half the kernel"
            } else if padding > 0 && self.kind == PoolKind::Average {
                "average pooling takes no padding"
            } else if kernel > size + 2 * padding {
                "the kernel must fit the padded input"
            } else {
                continue;
            };
            return Err(Error::shape(
                OP,
                format!(
                    "{problem}, got kernel {kernel}, stride {stride}, padding {padding} along {name} (input {})",
                    self.input
                ),
            ));
        }
        Ok(())
    }
}

/// Indices hold one number a dense output element: the winning position in the window, t-major. They are u32; where kernels run
/// and a window has at most 256 positions, they may be u8.
fn check_indices(name: &'static str, stream: &Stream, op: &Pool3d, indices: &Slice) -> Result<()> {
    let positions = op.kernel.iter().product::<usize>();
    let may_be_short = *stream.device() != Device::Cpu && positions <= 256;
    let dtype = if may_be_short && indices.dtype() == DType::U8 { DType::U8 } else { DType::U32 };
    check::slice(name, "indices", indices, op.output().num_elements(), dtype)
}

/// Pools. `indices` (one a dense output element; the winning position in the window, t-major) is written for `Max` where given. It
/// holds u32; where kernels run and a window has at most 256 positions, it may hold u8 instead.
///
/// A NaN in a window wins.
pub fn forward(stream: &Stream, op: &Pool3d, input: &Tensor, output: &Tensor, indices: Option<&Slice>) -> Result<()> {
    const OP: &str = "pool3d forward";
    op.check()?;
    let dtype = check::activation_dtype(OP, stream, "input", input)?;
    check::tensor_of(OP, "input", input, op.input, dtype)?;
    check::tensor_of(OP, "output", output, op.output(), dtype)?;
    let indices = indices.filter(|_| op.kind == PoolKind::Max);
    if let Some(indices) = indices {
        check_indices(OP, stream, op, indices)?;
    }
    if *stream.device() != Device::Cpu {
        return launch::forward(stream, OP, op, None, input, output, indices);
    }
    match indices {
        Some(indices) => with_host([input.memory()], [output.memory(), indices], |[x], [y, i]| {
            cpu::forward_max(op, input.view(x.get()?), output.view_mut(y.into_mut()?), Some(i.into_mut()?));
            Ok(())
        }),
        None => with_host([input.memory()], [output.memory()], |[x], [y]| {
            let (x, y) = (input.view(x.get()?), output.view_mut(y.into_mut()?));
            match op.kind {
                PoolKind::Max => cpu::forward_max(op, x, y, None),
                PoolKind::Average => cpu::forward_average(op, x, y),
            }
            Ok(())
        }),
    }
}

/// Gradient of the input, in gather form: deterministic. `Max` needs the `indices` of forward. Added to `grad_input` where
/// `accumulate` is set.
pub fn grad_input(
    stream: &Stream,
    op: &Pool3d,
    grad_output: &Tensor,
    indices: Option<&Slice>,
    grad_input: &Tensor,
    accumulate: bool,
) -> Result<()> {
    const OP: &str = "pool3d grad_input";
    op.check()?;
    let dtype = check::activation_dtype(OP, stream, "grad_output", grad_output)?;
    check::tensor_of(OP, "grad_output", grad_output, op.output(), dtype)?;
    check::tensor_of(OP, "grad_input", grad_input, op.input, dtype)?;
    let (dy, dx) = (grad_output.memory(), grad_input.memory());
    match op.kind {
        PoolKind::Max => {
            let indices =
                indices.ok_or_else(|| Error::shape(OP, "max pooling needs the indices that forward wrote"))?;
            check_indices(OP, stream, op, indices)?;
            if *stream.device() != Device::Cpu {
                return launch::grad_input(stream, OP, op, grad_output, Some(indices), grad_input, accumulate);
            }
            with_host([dy, indices], [dx], |[dy, i], [dx]| {
                let dx = grad_input.view_mut(dx.into_mut()?);
                cpu::grad_input_max(op, grad_output.view(dy.get()?), i.get()?, dx, accumulate);
                Ok(())
            })
        }
        PoolKind::Average => {
            if *stream.device() != Device::Cpu {
                return launch::grad_input(stream, OP, op, grad_output, None, grad_input, accumulate);
            }
            with_host([dy], [dx], |[dy], [dx]| {
                let dx = grad_input.view_mut(dx.into_mut()?);
                cpu::grad_input_average(op, grad_output.view(dy.get()?), dx, accumulate);
                Ok(())
            })
        }
    }
}
