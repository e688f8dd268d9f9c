//! The time of a convolution on a device, with memory of its own: the caller's is not touched.

use half::{bf16, f16};

use crate::device::{Buffer, DType, Device, Slice, Stream, Tensor};
use crate::error::Result;
use crate::ops::conv3d::fused::{
    Epilogue, Evaluation, GradEpilogue, GradNorm, GradTable, Join, Mask, Prologue, Statistics,
};
use crate::ops::conv3d::method::{Method, with_method};
use crate::ops::conv3d::plan::{OnLoad, Request};
use crate::ops::conv3d::{Direction, forward_fused, grad_input_fused, workspace_bytes_fused};
use crate::ops::pointwise;
use crate::shape::ActivationShape;

/// Runs before the first that counts, and runs of which the median is taken.
const WARM_UP: usize = 2;
const RUNS: usize = 7;
/// What is written before each run, so that no run finds its operands in the caches: more than twice of any GPU's.
const FLUSH_BYTES: usize = 256 << 20;

/// The operands of a request.
pub(super) struct Trial<'a> {
    stream: &'a Stream,
    request: Request,
    source: Tensor,
    target: Tensor,
    /// The join's other tensor, or y of the gradient's table.
    second: Tensor,
    /// What the epilogue reads beside.
    more: Vec<Tensor>,
    filter: Slice,
    /// Of the prologue.
    table: Slice,
    /// Of the epilogue: one a norm.
    norms: Vec<NormArrays>,
    workspace: Slice,
    flush: Option<Tensor>,
}

/// Arrays of a batch norm after (forward) or before (backward) the convolution.
struct NormArrays {
    gamma: Slice,
    beta: Slice,
    stats: Slice,
    table: Slice,
    grads: [Slice; 2],
}

/// Values in [-1, 1): how much power multiplications take, and so their clock, depends on them.
fn random(device: &Device, dtype: DType, len: usize) -> Result<Slice> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    match dtype {
        DType::F16 => Buffer::from_host(device, &(0..len).map(|_| f16::from_f32(next())).collect::<Vec<_>>()),
        _ => Buffer::from_host(device, &(0..len).map(|_| bf16::from_f32(next())).collect::<Vec<_>>()),
    }
}

fn floats(device: &Device, len: usize) -> Result<Slice> {
    Buffer::from_host(device, &vec![0.5f32; len])
}

impl<'a> Trial<'a> {
    pub fn new(stream: &'a Stream, request: &Request) -> Result<Trial<'a>> {
        let (device, op, dtype) = (stream.device(), request.op, request.dtype);
        let tensor = |shape: ActivationShape| Tensor::new(random(device, dtype, shape.num_elements())?, shape, shape.c);
        let is_grad = request.direction == Direction::GradInput;
        let (from, to, rows) = if is_grad { (op.output(), op.input, 3) } else { (op.input, op.output(), 2) };
        let num_norms = if is_grad { request.sums.saturating_sub(1) } else { request.sums.min(1) };
        let norm = |_| -> Result<NormArrays> {
            Ok(NormArrays {
                gamma: floats(device, to.c)?,
                beta: floats(device, to.c)?,
                stats: floats(device, request.splits * 3 * to.c)?,
                table: floats(device, request.splits * rows * to.c)?,
                grads: [floats(device, to.c)?, floats(device, to.c)?],
            })
        };
        let bytes =
            |method| with_method(method, || workspace_bytes_fused(stream, &op, request.direction, request.splits));
        let bytes = super::METHODS.map(bytes).into_iter().max().unwrap_or(0);
        let flush = ActivationShape::new(1, 1, 1, FLUSH_BYTES / 16, 8);
        Ok(Trial {
            stream,
            request: *request,
            source: tensor(from)?,
            target: tensor(to)?,
            second: tensor(from)?,
            more: (0..request.extra_tensors.max(num_norms)).map(|_| tensor(to)).collect::<Result<_>>()?,
            filter: random(device, dtype, op.filter_len())?,
            table: floats(device, request.splits * rows * from.c)?,
            norms: (0..num_norms).map(norm).collect::<Result<_>>()?,
            workspace: Buffer::zeroed(device, bytes)?.slice::<u8>(0, bytes)?,
            // The emulator has no caches that matter.
            flush: (*device != Device::Simt).then(|| Tensor::zeroed(device, DType::Bf16, flush)).transpose()?,
        })
    }

    /// Median time with a method's kernel.
    pub fn microseconds(&self, method: Method) -> Result<f64> {
        with_method(method, || {
            for _ in 0..WARM_UP {
                self.run()?;
            }
            let mut times = vec![];
            for _ in 0..RUNS {
                self.flush.as_ref().map_or(Ok(()), |memory| pointwise::fill(self.stream, memory, 0.0))?;
                let start = self.stream.record()?;
                self.run()?;
                times.push(start.elapsed_ms(&self.stream.record()?)? * 1e3);
            }
            times.sort_by(f64::total_cmp);
            Ok(times[RUNS / 2])
        })
    }

    fn run(&self) -> Result<()> {
        match self.request.direction {
            Direction::GradInput => self.grad_input(),
            _ => self.forward(),
        }
    }

    fn forward(&self) -> Result<()> {
        let Request { op, on_load, splits, .. } = self.request;
        let join = Join { residual: &self.second, residual_scale_shift: None, output: None };
        let join = (on_load == OnLoad::Join).then_some(join);
        let prologue = (on_load != OnLoad::Plain).then_some(Prologue { scale_shift: &self.table, splits, join });
        let epilogue = match (&self.norms[..], self.more.first()) {
            ([norm, ..], _) => Epilogue::Statistics(Statistics {
                splits,
                eps: 1e-5,
                gamma: &norm.gamma,
                beta: &norm.beta,
                running: None,
                stats: &norm.stats,
                scale_shift: &norm.table,
                skip: None,
            }),
            (_, Some(residual)) => {
                Epilogue::Evaluation(Evaluation { bias: None, residual: Some(residual), relu: true })
            }
            _ => Epilogue::None,
        };
        let (source, target) = (&self.source, &self.target);
        forward_fused(self.stream, &op, source, prologue.as_ref(), &self.filter, &epilogue, target, &self.workspace)
    }

    /// Beside the norms' tensors, the first is the mask, the second is added.
    fn grad_input(&self) -> Result<()> {
        let Request { op, on_load, splits, .. } = self.request;
        let table = GradTable { table: &self.table, y: &self.second, splits, store_dy: None };
        let table = (on_load != OnLoad::Plain).then_some(table);
        fn norm<'n>((arrays, y): (&'n NormArrays, &'n Tensor)) -> GradNorm<'n> {
            let [grad_gamma, grad_beta] = arrays.grads.each_ref();
            let NormArrays { gamma, stats, table: grad_table, .. } = arrays;
            GradNorm { y, stats, gamma, grad_table, grad_gamma, grad_beta }
        }
        let norms: Vec<GradNorm<'_>> = self.norms.iter().zip(&self.more).map(norm).collect();
        let mut others = self.more[norms.len()..].iter();
        let mask = others.next().map_or(Mask::None, Mask::Output);
        let epilogue = GradEpilogue { add: others.next(), mask, splits, norms: &norms };
        let (source, target) = (&self.source, &self.target);
        grad_input_fused(self.stream, &op, source, table.as_ref(), &self.filter, &epilogue, target, &self.workspace)
    }
}
