//! 3-D convolution (cross-correlation) of activations `[n][t][h][w][c]` with filters `[c_out][ft][fh][fw][c_in / groups]`.
//!
//! Group `g` reads input channels `g * c_in / groups ..` and writes output channels `g * c_out / groups ..`. Outside the
//! input everything is zero. Sums are f32, in an order that does not depend on the number of threads.

mod autotune;
mod backward;
mod check;
pub(super) mod cpu;
mod fused;
mod grad_filter;
mod job;
mod launch;
mod method;
mod of_splits;
mod params;
mod plan;
#[doc(hidden)]
pub mod reference;

pub use fused::{
    Epilogue, Evaluation, GradEpilogue, GradNorm, GradTable, Join, Mask, Normalise, Prologue, Running, Statistics,
};
pub use grad_filter::{GradFilterSources, GradPool};
#[doc(hidden)]
pub use grad_filter::{Limits as GradFilterLimits, with_grad_filter_limits};
#[doc(hidden)]
pub use method::{Method, with_method};
pub use of_splits::{Beside, grad_filter_of_splits, grad_input_beside, workspace_bytes_of_splits};

use crate::device::cpu::Isa;
use crate::device::{Device, Slice, Stream, Tensor, with_host};
use crate::error::{Error, Result};
use crate::ops::pool3d::Pool3d;
use crate::shape::{ActivationShape, Part};

/// What is convolved: sizes in the order (t, h, w).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv3d {
    /// Input sizes.
    pub input: ActivationShape,
    /// Output channels.
    pub c_out: usize,
    /// Filter taps.
    pub filter: [usize; 3],
    /// Step of the filter.
    pub stride: [usize; 3],
    /// Zeros on both sides.
    pub padding: [usize; 3],
    /// Distance of two taps.
    pub dilation: [usize; 3],
    /// Groups of channels that do not see each other.
    pub groups: usize,
    /// Where these clips are part of a batch, or have splits that nothing else of a call tells: that batch. Clips of another
    /// call with the same batch then have the bits that one call for all of them gives. Gradients of the filter and of the bias are sums in the
    /// order of the splits.
    pub part: Option<Part>,
}

/// Which of the three convolutions of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Output from input and filter.
    Forward,
    /// Gradient of the input.
    GradInput,
    /// Gradient of the filter.
    GradFilter,
}

impl Conv3d {
    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Shape`] where a size is zero, channels are not divisible by `groups`, or the filter is larger than the
    /// padded input.
    pub fn check(&self) -> Result<()> {
        check::sizes(self)
    }

    /// Output sizes. Meaningful after [`Conv3d::check`].
    pub fn output(&self) -> ActivationShape {
        let out = |size: usize, i: usize| {
            (size + 2 * self.padding[i]).saturating_sub(self.dilation[i] * (self.filter[i] - 1) + 1) / self.stride[i]
                + 1
        };
        let i = self.input;
        ActivationShape::new(i.n, out(i.t, 0), out(i.h, 1), out(i.w, 2), self.c_out)
    }

    /// The batch of these clips, in `splits` blocks where [`Conv3d::part`] says no other.
    pub(crate) fn batch(&self, splits: usize) -> Part {
        self.part.unwrap_or(Part::whole(self.input.n, splits.min(self.input.n).max(1)))
    }

    /// The same convolution of all clips of the batch.
    pub(crate) fn of_batch(&self, splits: usize) -> Conv3d {
        let Part { batch_clips, batch_splits, .. } = self.batch(splits);
        let input = ActivationShape { n: batch_clips, ..self.input };
        Conv3d { input, part: Some(Part::whole(batch_clips, batch_splits)), ..*self }
    }

    /// Elements of the filter.
    pub fn filter_len(&self) -> usize {
        self.c_out * self.filter.iter().product::<usize>() * self.input.c / self.groups
    }

    /// Multiply-adds of one direction, padding counted as if it were data.
    pub fn macs(&self) -> u64 {
        self.output().num_positions() as u64 * self.filter_len() as u64
    }
}

/// Bytes of scratch memory that `direction` needs on the device of `stream`.
pub fn workspace_bytes(stream: &Stream, op: &Conv3d, direction: Direction) -> usize {
    match stream.device() {
        Device::Cpu => Isa::chosen().map_or(0, |isa| cpu::workspace_len(isa, op, direction) * size_of::<f32>()),
        device if direction == Direction::GradFilter => grad_filter::workspace_bytes(device, op, 1, false),
        _ => launch::workspace_bytes(stream, op, direction, 1, 0),
    }
}

/// Bytes of scratch memory for [`forward_fused`], [`grad_input_fused`] and [`grad_filter_fused`], with any prologue and epilogue of
/// so many splits. Its first [`TICKET_BYTES`](crate::ops::TICKET_BYTES) must be zero before the first call, and every call leaves
/// them zero. Calls one after another may share it.
pub fn workspace_bytes_fused(stream: &Stream, op: &Conv3d, direction: Direction, splits: usize) -> usize {
    match (stream.device(), direction) {
        (Device::Cpu, _) => 0,
        (device, Direction::GradFilter) => grad_filter::workspace_bytes(device, op, splits, false),
        (_, Direction::Forward) => launch::workspace_bytes(stream, op, direction, splits, 3),
        (_, Direction::GradInput) => launch::workspace_bytes(stream, op, direction, splits, 3),
    }
}

/// Whether a step with both gradients of `op` takes less time where [`grad_input_fused`] comes first and stores the gradient behind the
/// batch norm ([`GradTable::store_dy`]) for [`grad_filter_fused`], by what the plans predict. `has_prologue`: the input is
/// normalised on load.
pub fn prefers_stored_grad(stream: &Stream, op: &Conv3d, splits: usize, has_prologue: bool) -> bool {
    grad_filter::prefers_stored_grad(stream.device(), op, splits, has_prologue)
}

/// Whether [`grad_filter_fused`] can gather the gradient of `op`'s output through `pool`, which follows its batch norm and ReLU: see
/// [`GradPool`]. Gradients need pitches of a multiple of 8 channels then.
pub fn gathers_through(op: &Conv3d, pool: &Pool3d) -> bool {
    grad_filter::gathers_through(op, pool)
}

/// Whether [`backward_fused`] has a kernel for both gradients of `op`, in `splits` blocks of clips, on the device of `stream`: for
/// pointwise convolutions that memory limits.
pub fn backward_fits(stream: &Stream, op: &Conv3d, splits: usize) -> bool {
    backward::fits(stream, op, splits)
}

/// Bytes of scratch memory for [`backward_fused`], as [`workspace_bytes_fused`] for the others; 0 where it has no kernel.
pub fn backward_workspace_bytes(stream: &Stream, op: &Conv3d, splits: usize) -> usize {
    backward::workspace_bytes(stream.device(), op, splits)
}

/// `output = conv(input, filter) + bias`. `bias` holds `c_out` elements, `workspace` is f32 or u8 memory of at least
/// [`workspace_bytes`]. Channels of `output`'s memory beyond its own (a channel pitch) are left alone.
///
/// On `Cpu` all is f32. Elsewhere input, filter and output are bf16 or f16, the bias f32, and the workspace is as
/// [`workspace_bytes_fused`] says.
///
/// # Errors
/// [`Error::Shape`] where sizes, types or the workspace do not fit `op`; [`Error::Unsupported`] where the executor has no
/// kernel for it.
pub fn forward(
    stream: &Stream,
    op: &Conv3d,
    input: &Tensor,
    filter: &Slice,
    bias: Option<&Slice>,
    output: &Tensor,
    workspace: &Slice,
) -> Result<()> {
    const OP: &str = "conv3d forward";
    if *stream.device() != Device::Cpu {
        let epilogue =
            bias.map_or(Epilogue::None, |b| Epilogue::Evaluation(Evaluation { bias: Some(b), ..Default::default() }));
        return forward_fused(stream, op, input, None, filter, &epilogue, output, workspace);
    }
    check::sizes(op)?;
    check::tensor(OP, "input", input, op.input)?;
    check::tensor(OP, "output", output, op.output())?;
    check::vector(OP, "filter", filter, op.filter_len())?;
    bias.map_or(Ok(()), |b| check::vector(OP, "bias", b, op.c_out))?;
    check::workspace(OP, workspace, workspace_bytes(stream, op, Direction::Forward))?;
    check::is_cpu(OP, stream)?;
    let isa = Isa::chosen()?;
    let no_bias = filter.part(0, 0)?;
    with_host(
        [input.memory(), filter, bias.unwrap_or(&no_bias)],
        [output.memory(), workspace],
        |[x, w, b], [mut y, scratch]| {
            let bias = bias.map(|_| b.get::<f32>()).transpose()?;
            cpu::forward(
                isa,
                op,
                input.view(x.get()?),
                w.get()?,
                bias,
                output.view_mut(y.get_mut()?),
                check::scratch(workspace, scratch)?,
            );
            Ok(())
        },
    )
}

/// [`forward`] with what happens before and after it in a network: see [`Prologue`] and [`Epilogue`]. Runs on kernels only; on
/// `Cpu` call the ops one by one.
///
/// # Errors
/// As [`forward`], and where splits differ.
#[allow(clippy::too_many_arguments)]
pub fn forward_fused(
    stream: &Stream,
    op: &Conv3d,
    input: &Tensor,
    prologue: Option<&Prologue<'_>>,
    filter: &Slice,
    epilogue: &Epilogue<'_>,
    output: &Tensor,
    workspace: &Slice,
) -> Result<()> {
    const OP: &str = "conv3d forward";
    check::sizes(op)?;
    check::has_kernels(OP, stream)?;
    let checker = launch::checker(OP, op, input)?;
    checker.tensor("input", input, op.input)?;
    checker.tensor("output", output, op.output())?;
    checker.slice("filter", filter, checker.dtype, op.filter_len())?;
    prologue.map_or(Ok(()), |p| checker.prologue(p, op.input))?;
    checker.epilogue(epilogue, op.output())?;
    launch::forward(stream, op, input, prologue, filter, epilogue, output, workspace)
}

/// `grad_input = conv^T(grad_output, filter)`, or added to it where `accumulate` is set. Types and `workspace` as in
/// [`forward`].
///
/// # Errors
/// As [`forward`].
pub fn grad_input(
    stream: &Stream,
    op: &Conv3d,
    grad_output: &Tensor,
    filter: &Slice,
    grad_input: &Tensor,
    accumulate: bool,
    workspace: &Slice,
) -> Result<()> {
    const OP: &str = "conv3d grad_input";
    if *stream.device() != Device::Cpu {
        let epilogue = GradEpilogue { add: accumulate.then_some(grad_input), ..Default::default() };
        return grad_input_fused(stream, op, grad_output, None, filter, &epilogue, grad_input, workspace);
    }
    check::sizes(op)?;
    check::tensor(OP, "grad_output", grad_output, op.output())?;
    check::tensor(OP, "grad_input", grad_input, op.input)?;
    check::vector(OP, "filter", filter, op.filter_len())?;
    check::workspace(OP, workspace, workspace_bytes(stream, op, Direction::GradInput))?;
    check::is_cpu(OP, stream)?;
    let isa = Isa::chosen()?;
    with_host([grad_output.memory(), filter], [grad_input.memory(), workspace], |[dy, w], [mut dx, scratch]| {
        let dx = grad_input.view_mut(dx.get_mut()?);
        cpu::grad_input(
            isa,
            op,
            grad_output.view(dy.get()?),
            w.get()?,
            dx,
            accumulate,
            check::scratch(workspace, scratch)?,
        );
        Ok(())
    })
}

/// [`grad_input`] with what happens before and after it in a network: see [`GradTable`] and [`GradEpilogue`]. Runs on kernels
/// only; on `Cpu` call the ops one by one.
///
/// # Errors
/// As [`forward`], and where splits differ.
#[allow(clippy::too_many_arguments)]
pub fn grad_input_fused(
    stream: &Stream,
    op: &Conv3d,
    grad_output: &Tensor,
    table: Option<&GradTable<'_>>,
    filter: &Slice,
    epilogue: &GradEpilogue<'_>,
    grad_input: &Tensor,
    workspace: &Slice,
) -> Result<()> {
    const OP: &str = "conv3d grad_input";
    check::sizes(op)?;
    check::has_kernels(OP, stream)?;
    let checker = launch::checker(OP, op, grad_output)?;
    checker.tensor("grad_output", grad_output, op.output())?;
    checker.tensor("grad_input", grad_input, op.input)?;
    checker.slice("filter", filter, checker.dtype, op.filter_len())?;
    table.map_or(Ok(()), |t| checker.grad_table(t, op.output()))?;
    checker.grad_epilogue(epilogue, op.input)?;
    launch::grad_input(stream, op, grad_output, table, filter, epilogue, grad_input, workspace)
}

/// Filter gradient, and the bias gradient where asked for, f32; both are overwritten. The activations are f32 on `Cpu`, bf16 or
/// f16 elsewhere. `workspace` as in [`forward`]. Sums in a fixed order: two runs give the same bits, whatever the number of
/// threads.
///
/// # Errors
/// As [`forward`].
pub fn grad_filter(
    stream: &Stream,
    op: &Conv3d,
    input: &Tensor,
    grad_output: &Tensor,
    grad_filter: &Slice,
    grad_bias: Option<&Slice>,
    workspace: &Slice,
) -> Result<()> {
    let from = GradFilterSources { input, prologue: None, grad_output, grad_table: None, pool: None };
    grad_filter_fused(stream, op, &from, grad_filter, grad_bias, workspace)
}

/// [`grad_filter`] of an input and a gradient that are changed on their way in: the normalised input is recomputed, the batch
/// norm's gradient formed as it is read. Not on the CPU.
///
/// # Errors
/// As [`forward`].
pub fn grad_filter_fused(
    stream: &Stream,
    op: &Conv3d,
    from: &GradFilterSources<'_>,
    grad_filter: &Slice,
    grad_bias: Option<&Slice>,
    workspace: &Slice,
) -> Result<()> {
    const OP: &str = "conv3d grad_filter";
    check::sizes(op)?;
    check::vector(OP, "grad_filter", grad_filter, op.filter_len())?;
    grad_bias.map_or(Ok(()), |b| check::vector(OP, "grad_bias", b, op.c_out))?;
    if *stream.device() != Device::Cpu {
        grad_filter::check_sources(op, from)?;
        let splits = grad_filter::splits_of(op, from);
        check::workspace(OP, workspace, workspace_bytes_fused(stream, op, Direction::GradFilter, splits))?;
        return grad_filter::run(stream, op, from, grad_filter, grad_bias, false, workspace);
    }
    check::workspace(OP, workspace, workspace_bytes(stream, op, Direction::GradFilter))?;
    let GradFilterSources { input, grad_output, .. } = *from;
    check::tensor(OP, "input", input, op.input)?;
    check::tensor(OP, "grad_output", grad_output, op.output())?;
    if from.prologue.is_some() || from.grad_table.is_some() {
        return Err(Error::unsupported(
            OP,
            "fused sources need a device with kernels; normalise first on the cpu executor",
        ));
    }
    let isa = Isa::chosen()?;
    let no_bias = grad_filter.part(0, 0)?;
    with_host(
        [input.memory(), grad_output.memory()],
        [grad_filter, grad_bias.unwrap_or(&no_bias), workspace],
        |[x, dy], [mut dw, mut db, scratch]| {
            let (x, dy) = (input.view(x.get()?), grad_output.view(dy.get()?));
            cpu::grad_filter(isa, op, x, dy, dw.get_mut()?, check::scratch(workspace, scratch)?);
            if grad_bias.is_some() {
                cpu::grad_bias(op, dy, db.get_mut()?);
            }
            Ok(())
        },
    )
}

/// [`grad_filter_fused`] and [`grad_input_fused`] from one reading of what both need: `from`'s gradient, and its input, which serves the
/// ReLU's mask and the sums of the batch norm before it too. `grad_input` has the bits of the kernels on mma.sync, `grad_filter` is summed
/// in an order of its own. Where [`backward_fits`] says so, and not on the CPU.
///
/// # Errors
/// As [`forward`]; [`Error::Unsupported`] where the mask is not that of the input, for a join or a pool on load, a gradient that is to be
/// stored, and addresses or pitches that are no whole vectors.
#[allow(clippy::too_many_arguments)]
pub fn backward_fused(
    stream: &Stream,
    op: &Conv3d,
    from: &GradFilterSources<'_>,
    filter: &Slice,
    epilogue: &GradEpilogue<'_>,
    grad_input: &Tensor,
    grad_filter: &Slice,
    workspace: &Slice,
) -> Result<()> {
    const OP: &str = "conv3d backward";
    check::sizes(op)?;
    check::has_kernels(OP, stream)?;
    grad_filter::check_sources(op, from)?;
    let checker = launch::checker(OP, op, from.input)?;
    checker.tensor("grad_input", grad_input, op.input)?;
    checker.slice("filter", filter, checker.dtype, op.filter_len())?;
    check::vector(OP, "grad_filter", grad_filter, op.filter_len())?;
    checker.grad_epilogue(epilogue, op.input)?;
    backward::run(stream, op, from, filter, epilogue, grad_input, grad_filter, workspace)
}
