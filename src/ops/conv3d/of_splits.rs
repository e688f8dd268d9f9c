//! The two products of a Gram batch norm's backward pass, one that never sees the convolution's output: a filter gradient for each
//! split, and an input's gradient from two tensors side by side with a filter for each split.

use bytemuck::Zeroable;

use super::fused::{Checker, GradEpilogue, Prologue};
use super::job::{Job, Memory};
use super::params::{Params, PrologueParams};
use super::plan::OnLoad;
use super::{Conv3d, Direction, GradFilterSources, check, cpu, grad_filter, launch};
use crate::device::cpu::Isa;
use crate::device::{ActMut, ActRef, Device, Slice, Stream, Tensor, with_host};
use crate::error::{Error, Result};
use crate::ops::check as ops_check;
use crate::shape::ActivationShape;

/// The input's gradient of a 1x1x1 convolution whose output's gradient is `dy = A g + B y + C` with `y = W x`: the product of the
/// channels of `g` and, behind them, those of `x` with a filter of each split.
#[derive(Clone, Copy, Debug)]
pub struct Beside<'a> {
    /// `[n][t][h][w][c_out]`.
    pub grad_output: &'a Tensor,
    /// `x`, or what its prologue makes it from.
    pub input: &'a Tensor,
    /// How, without a join; on kernels it must be there.
    pub prologue: Option<Prologue<'a>>,
    /// `[splits][c_out + c_in][c_in]`, in the type of the tensors.
    pub filter: &'a Slice,
    /// `[splits][c_in]`, f32: added.
    pub shift: &'a Slice,
    /// Blocks of clips.
    pub splits: usize,
}

impl Beside<'_> {
    /// The convolution that [`grad_input_beside`] runs, for [`workspace_bytes_fused`](super::workspace_bytes_fused).
    pub fn convolution(op: &Conv3d) -> Conv3d {
        Conv3d { c_out: op.c_out + op.input.c, ..*op }
    }
}

/// Bytes of scratch memory for [`grad_filter_of_splits`].
pub fn workspace_bytes_of_splits(stream: &Stream, op: &Conv3d, splits: usize) -> usize {
    match stream.device() {
        Device::Cpu => Isa::chosen().map_or(0, |isa| {
            let ranges = clips_of_splits(op, splits);
            let of_split = |clips: &std::ops::Range<usize>| of_clips(op, clips);
            let len = |clips: &std::ops::Range<usize>| cpu::workspace_len(isa, &of_split(clips), Direction::GradFilter);
            ranges.iter().map(len).max().unwrap_or(0) * size_of::<f32>()
        }),
        device => grad_filter::workspace_bytes(device, op, splits, true),
    }
}

/// [`grad_filter_fused`](super::grad_filter_fused) of each split by itself: `[splits][c_out][taps][c_in]`, and where it is asked for
/// the bias' `[splits][c_out]`. Always overwritten, rows of splits without clips left
/// alone. One group.
///
/// # Errors
/// As `grad_filter_fused`.
pub fn grad_filter_of_splits(
    stream: &Stream,
    op: &Conv3d,
    from: &GradFilterSources<'_>,
    splits: usize,
    to: &Slice,
    grad_bias: Option<&Slice>,
    workspace: &Slice,
) -> Result<()> {
    const OP: &str = "conv3d grad_filter of splits";
    check::sizes(op)?;
    if op.groups != 1 || from.pool.is_some() {
        return Err(Error::unsupported(OP, format!("groups and pools, got {} groups", op.groups)));
    }
    check_splits(OP, op, splits, from.prologue.as_ref())?;
    check::vector(OP, "grad_filter", to, splits * op.filter_len())?;
    grad_bias.map_or(Ok(()), |b| check::vector(OP, "grad_bias", b, splits * op.c_out))?;
    check::workspace(OP, workspace, workspace_bytes_of_splits(stream, op, splits))?;
    if *stream.device() != Device::Cpu {
        grad_filter::check_sources(op, from)?;
        // Splits that nothing else of the call tells.
        let op = Conv3d { part: Some(op.batch(splits)), ..*op };
        return grad_filter::run(stream, &op, from, to, grad_bias, true, workspace);
    }
    if from.prologue.is_some() || from.grad_table.is_some() {
        return Err(Error::unsupported(OP, "fused sources on the cpu executor; normalise first"));
    }
    let GradFilterSources { input, grad_output, .. } = *from;
    check::tensor(OP, "input", input, op.input)?;
    check::tensor(OP, "grad_output", grad_output, op.output())?;
    let isa = Isa::chosen()?;
    let no_bias = to.part(0, 0)?;
    let writes = [to, grad_bias.unwrap_or(&no_bias), workspace];
    with_host([input.memory(), grad_output.memory()], writes, |[x, dy], [dw, db, scratch]| {
        let (x, dy) = (input.view(x.get()?), grad_output.view(dy.get()?));
        let (dw, db, scratch) = (dw.into_mut()?, db.into_mut()?, check::scratch(workspace, scratch)?);
        for (split, clips) in clips_of_splits(op, splits).iter().enumerate() {
            let (of_split, x, dy) = (of_clips(op, clips), clips_of(x, clips), clips_of(dy, clips));
            let dw = &mut dw[split * op.filter_len()..][..op.filter_len()];
            cpu::grad_filter(isa, &of_split, x, dy, dw, scratch);
            if grad_bias.is_some() {
                cpu::grad_bias(&of_split, dy, &mut db[split * op.c_out..][..op.c_out]);
            }
        }
        Ok(())
    })
}

/// `grad_input = [g x] filter + shift`, of each split; then what `epilogue` says. `op` is the convolution itself, 1x1x1 of unit
/// stride. `workspace` as for [`Beside::convolution`].
///
/// # Errors
/// [`Error::Shape`] where sizes or types do not fit; [`Error::Unsupported`] for another convolution, and on kernels for channels,
/// pitches or addresses that are no multiples of 8 elements, and without a prologue.
pub fn grad_input_beside(
    stream: &Stream,
    op: &Conv3d,
    from: &Beside<'_>,
    epilogue: &GradEpilogue<'_>,
    grad_input: &Tensor,
    workspace: &Slice,
) -> Result<()> {
    const OP: &str = "conv3d grad_input";
    check::sizes(op)?;
    if op.filter != [1; 3] || op.stride != [1; 3] || op.padding != [0; 3] || op.groups != 1 {
        return Err(Error::unsupported(
            OP,
            format!("two tensors side by side are for 1x1x1 of unit stride, got {op:?}"),
        ));
    }
    check_splits(OP, op, from.splits, from.prologue.as_ref())?;
    let splits = from.splits;
    ops_check::slice(OP, "filter", from.filter, splits * (op.c_out + op.input.c) * op.input.c, from.input.dtype())?;
    check::vector(OP, "shift", from.shift, splits * op.input.c)?;
    let beside = Beside::convolution(op);
    check::workspace(OP, workspace, super::workspace_bytes_fused(stream, &beside, Direction::GradInput, splits))?;
    match stream.device() {
        Device::Cpu => on_cpu(op, from, epilogue, grad_input),
        Device::Cuda(_) | Device::Simt => {
            let checker = launch::checker(OP, op, grad_input)?;
            checker.grad_epilogue(epilogue, op.input)?;
            check_tensors(&checker, op, from, grad_input)?;
            run(stream, OP, &beside, from, epilogue, grad_input, workspace)
        }
    }
}

fn check_tensors(checker: &Checker, op: &Conv3d, from: &Beside<'_>, grad_input: &Tensor) -> Result<()> {
    checker.tensor("grad_output", from.grad_output, op.output())?;
    checker.tensor("input", from.input, op.input)?;
    checker.tensor("grad_input", grad_input, op.input)?;
    from.prologue.map_or(Ok(()), |p| checker.prologue(&p, op.input))?;
    let tensors = [from.grad_output, from.input, grad_input];
    let sizes = tensors.iter().flat_map(|t| [t.shape().c, t.pitch_c()]);
    let is_aligned = |t: &&Tensor| t.memory().address().is_multiple_of(16);
    if sizes.into_iter().all(|size| size.is_multiple_of(8)) && tensors.iter().all(is_aligned) {
        return Ok(());
    }
    let message = "channels, pitches or addresses that are no multiples of 8 elements where tensors lie side by side";
    Err(Error::unsupported(checker.op, message))
}

fn run(
    stream: &Stream,
    name: &'static str,
    op: &Conv3d,
    from: &Beside<'_>,
    epilogue: &GradEpilogue<'_>,
    grad_input: &Tensor,
    workspace: &Slice,
) -> Result<()> {
    let Some(prologue) = from.prologue.filter(|p| p.join.is_none()) else {
        return Err(Error::unsupported(name, "tensors side by side without a prologue of the second, or with a join"));
    };
    let mut job = Job {
        stream,
        op,
        direction: Direction::GradInput,
        name,
        dtype: grad_input.dtype(),
        filter: from.filter,
        workspace,
        memory: Memory::default(),
        params: Params::zeroed(),
        on_load: OnLoad::Beside,
        splits: from.splits,
        sums: if epilogue.norms.is_empty() { 0 } else { 1 + epilogue.norms.len() },
        extra_tensors: 0,
        launches_before: 0,
        has_even_pitches: true,
        may_pair: false,
        sources: [None, Some(from.input)],
    };
    job.gather(from.grad_output, grad_input);
    job.params.prologue = PrologueParams {
        table: job.memory.read(prologue.scale_shift),
        second: job.memory.read(from.input.memory()),
        second_table: 0,
        store: 0,
        table_rows: 2,
        channels: op.input.c as i32,
        second_pitch: from.input.pitch_c() as i32,
        store_pitch: 0,
        has_relu: 1,
        second_first: (op.c_out - op.input.c) as i32,
    };
    launch::fill_grad_epilogue(&mut job, epilogue, grad_input);
    job.params.epilogue.bias = job.memory.read(from.shift);
    job.run()
}

/// In f32: one product after the other, then the shift.
fn on_cpu(op: &Conv3d, from: &Beside<'_>, epilogue: &GradEpilogue<'_>, grad_input: &Tensor) -> Result<()> {
    const OP: &str = "conv3d grad_input";
    check::tensor(OP, "grad_output", from.grad_output, op.output())?;
    check::tensor(OP, "input", from.input, op.input)?;
    check::tensor(OP, "grad_input", grad_input, op.input)?;
    let is_plain = matches!(epilogue.mask, super::Mask::None) && epilogue.norms.is_empty() && epilogue.add.is_none();
    if from.prologue.is_some() || !is_plain {
        return Err(Error::unsupported(OP, "a prologue or an epilogue on the cpu executor"));
    }
    let isa = Isa::chosen()?;
    let (c_in, c_out) = (op.input.c, op.c_out);
    let reads = [from.grad_output.memory(), from.input.memory(), from.filter, from.shift];
    with_host(reads, [grad_input.memory()], |[g, x, filter, shift], [mut dx]| {
        let (g, x) = (from.grad_output.view(g.get()?), from.input.view(x.get()?));
        let (filter, shift) = (filter.get::<f32>()?, shift.get::<f32>()?);
        let mut dx = grad_input.view_mut(dx.get_mut()?);
        for (split, clips) in clips_of_splits(op, from.splits).iter().enumerate() {
            let (of_g, of_x) = filter[split * (c_out + c_in) * c_in..][..(c_out + c_in) * c_in].split_at(c_out * c_in);
            let narrow = Conv3d { c_out: c_in, ..*op };
            for (op, y, w, adds) in [(op, g, of_g, false), (&narrow, x, of_x, true)] {
                let of_split = of_clips(op, clips);
                let mut scratch = vec![0.0; cpu::workspace_len(isa, &of_split, Direction::GradInput)];
                cpu::grad_input(
                    isa,
                    &of_split,
                    clips_of(y, clips),
                    w,
                    clips_of_mut(&mut dx, clips),
                    adds,
                    &mut scratch,
                );
            }
            let (pitch, dx) = (dx.pitch_c, clips_of_mut(&mut dx, clips));
            let shift = &shift[split * c_in..][..c_in];
            dx.data.chunks_mut(pitch).for_each(|row| row.iter_mut().zip(shift).for_each(|(dx, s)| *dx += s));
        }
        Ok(())
    })
}

/// Tables are for `splits`, of which the clips at hand may fill fewer.
fn check_splits(name: &'static str, op: &Conv3d, splits: usize, prologue: Option<&Prologue<'_>>) -> Result<()> {
    if splits == 0 {
        return Err(Error::shape(name, "splits must be at least 1, got 0"));
    }
    if let Some(p) = prologue.filter(|p| p.splits != splits) {
        return Err(Error::shape(name, format!("the prologue has {} splits, expected {splits}", p.splits)));
    }
    launch::check_filled(name, op, splits)
}

fn clips_of_splits(op: &Conv3d, splits: usize) -> Vec<std::ops::Range<usize>> {
    let each = op.batch(splits.max(1)).clips_per_split();
    (0..op.input.n).step_by(each).map(|first| first..(first + each).min(op.input.n)).collect()
}

/// The op of some of its clips.
fn of_clips(op: &Conv3d, clips: &std::ops::Range<usize>) -> Conv3d {
    Conv3d { input: ActivationShape { n: clips.len(), ..op.input }, part: None, ..*op }
}

/// Elements of the memory of some clips; behind the last position there is no gap.
fn elements(
    shape: ActivationShape,
    pitch_c: usize,
    len: usize,
    clips: &std::ops::Range<usize>,
) -> std::ops::Range<usize> {
    let per_clip = shape.t * shape.h * shape.w * pitch_c;
    clips.start * per_clip..(clips.end * per_clip).min(len)
}

fn clips_of<'a>(x: ActRef<'a>, clips: &std::ops::Range<usize>) -> ActRef<'a> {
    let data = &x.data[elements(x.shape, x.pitch_c, x.data.len(), clips)];
    ActRef { data, shape: ActivationShape { n: clips.len(), ..x.shape }, ..x }
}

fn clips_of_mut<'a>(x: &'a mut ActMut<'_>, clips: &std::ops::Range<usize>) -> ActMut<'a> {
    let range = elements(x.shape, x.pitch_c, x.data.len(), clips);
    ActMut { data: &mut x.data[range], shape: ActivationShape { n: clips.len(), ..x.shape }, pitch_c: x.pitch_c }
}
