//! The call of a row: random memory that all rows read, memory that they write, and the op with what is fused to it.

use vcycle::Result;
use vcycle::device::{Buffer, DType, Device, Element, Slice, Stream, Tensor};
use vcycle::ops::TICKET_BYTES;
use vcycle::ops::conv3d::{
    self, Direction, Epilogue, Evaluation, GradEpilogue, GradFilterSources, GradNorm, GradTable, Join, Mask, Prologue,
    Statistics,
};
use vcycle::shape::ActivationShape;

use super::list::{Form, Input, MaskOf, Row};

/// Slices begin at multiples of so many elements, so that all are aligned as buffers are.
const ALIGNMENT: usize = 256;

/// Memory that each row takes from the start on.
struct Pool {
    all: Slice,
    taken: usize,
}

impl Pool {
    /// `len` random values in [-1, 1): one block of them again and again.
    fn random(device: &Device, dtype: DType, len: usize) -> Result<Pool> {
        fn fill<T: Element>(all: &Slice, block: &[T]) -> Result<()> {
            (0..all.len()).step_by(block.len()).try_for_each(|start| {
                let len = block.len().min(all.len() - start);
                all.part(start, len)?.write(&block[..len])
            })
        }
        let all = Buffer::zeroed(device, len * dtype.size_bytes())?.slice_of(dtype, 0, len)?;
        // No power of two, so that operands do not repeat each other.
        let block = crate::cases::random(len.clamp(1, 9_999_991), 1);
        match dtype {
            DType::Bf16 => fill(&all, &block.into_iter().map(half::bf16::from_f32).collect::<Vec<_>>())?,
            DType::F16 => fill(&all, &block.into_iter().map(half::f16::from_f32).collect::<Vec<_>>())?,
            _ => fill(&all, &block)?,
        }
        Ok(Pool { all, taken: 0 })
    }

    fn slice(&mut self, len: usize) -> Result<Slice> {
        let slice = self.all.part(self.taken, len)?;
        self.taken += len.next_multiple_of(ALIGNMENT);
        Ok(slice)
    }

    fn tensor(&mut self, shape: ActivationShape) -> Result<Tensor> {
        Tensor::new(self.slice(shape.num_elements())?, shape, shape.c)
    }
}

/// What all rows share. What a row writes is no other row's input, so that inputs stay random.
pub struct Memory {
    inputs: Pool,
    outputs: Pool,
    tables: Pool,
    table_outputs: Pool,
    workspace: Slice,
}

impl Memory {
    /// Enough for each of `rows`.
    pub fn new(stream: &Stream, rows: &[Row], dtype: DType) -> Result<Memory> {
        let padded = |len: usize| len.next_multiple_of(ALIGNMENT);
        let activations = |r: &Row| padded(r.op.input.num_elements()) + padded(r.op.output().num_elements());
        let tables = |r: &Row| 4 * padded(3 * r.grid.splits * r.op.input.c.max(r.op.c_out));
        let filter = |r: &Row| padded(r.op.filter_len());
        let most = |len: &dyn Fn(&Row) -> usize| rows.iter().map(len).max().unwrap_or(0);
        let random = |dtype, len| Pool::random(stream.device(), dtype, len);
        let scratch_bytes = most(&|row| {
            let plain = conv3d::workspace_bytes(stream, &row.op, row.direction);
            plain.max(conv3d::workspace_bytes_fused(stream, &row.op, row.direction, row.grid.splits))
        });
        let scratch_len = scratch_bytes.max(TICKET_BYTES).div_ceil(4);
        Ok(Memory {
            inputs: random(dtype, most(&|r| 4 * activations(r) + filter(r)))?,
            outputs: random(dtype, most(&activations))?,
            tables: random(DType::F32, most(&|r| 2 * tables(r)))?,
            table_outputs: random(DType::F32, most(&|r| 2 * tables(r) + filter(r)))?,
            workspace: Buffer::zeroed(stream.device(), 4 * scratch_len)?.slice::<f32>(0, scratch_len)?,
        })
    }
}

/// One row, ready to be called. Tensors that a form does not use are there all the same: they cost nothing.
pub struct Work<'a> {
    row: &'a Row,
    x: Tensor,
    residual: Tensor,
    filter: Slice,
    grad_output: Tensor,
    y: Tensor,
    new_x: Tensor,
    new_y: Tensor,
    scale_shift: [Slice; 2],
    grad_table: Slice,
    stats: [Slice; 2],
    gamma: Slice,
    grad_filter: Slice,
    new_stats: Slice,
    new_scale_shift: Slice,
    new_grad_tables: [Slice; 2],
    new_grad_gamma: Slice,
    new_bias: Slice,
    workspace: Slice,
}

impl<'a> Work<'a> {
    /// Takes its memory, of which the rows before no longer need theirs.
    pub fn new(memory: &mut Memory, row: &'a Row) -> Result<Work<'a>> {
        let Memory { inputs, outputs, tables, table_outputs, workspace } = memory;
        for pool in [&mut *inputs, outputs, tables, table_outputs] {
            pool.taken = 0;
        }
        let (input, output, splits) = (row.op.input, row.op.output(), row.grid.splits);
        let (c_in, c_out) = (input.c, output.c);
        Ok(Work {
            row,
            x: inputs.tensor(input)?,
            residual: inputs.tensor(input)?,
            filter: inputs.slice(row.op.filter_len())?,
            grad_output: inputs.tensor(output)?,
            y: inputs.tensor(output)?,
            new_x: outputs.tensor(input)?,
            new_y: outputs.tensor(output)?,
            scale_shift: [tables.slice(2 * splits * c_in)?, tables.slice(2 * splits * c_in)?],
            grad_table: tables.slice(3 * splits * c_out)?,
            stats: [tables.slice(3 * splits * c_in)?, tables.slice(3 * splits * c_in)?],
            gamma: tables.slice(c_in.max(c_out))?,
            grad_filter: table_outputs.slice(row.op.filter_len())?,
            new_stats: table_outputs.slice(3 * splits * c_out)?,
            new_scale_shift: table_outputs.slice(2 * splits * c_out)?,
            new_grad_tables: [table_outputs.slice(3 * splits * c_in)?, table_outputs.slice(3 * splits * c_in)?],
            new_grad_gamma: table_outputs.slice(4 * c_in)?,
            new_bias: table_outputs.slice(c_out)?,
            workspace: workspace.clone(),
        })
    }

    /// Queues it once.
    pub fn run(&self, stream: &Stream) -> Result<()> {
        let (op, workspace) = (&self.row.op, &self.workspace);
        let Some(form) = self.row.form else {
            return match self.row.direction {
                Direction::Forward => conv3d::forward(stream, op, &self.x, &self.filter, None, &self.new_y, workspace),
                Direction::GradInput => {
                    conv3d::grad_input(stream, op, &self.grad_output, &self.filter, &self.new_x, false, workspace)
                }
                Direction::GradFilter => {
                    conv3d::grad_filter(stream, op, &self.x, &self.grad_output, &self.grad_filter, None, workspace)
                }
            };
        };
        match self.row.direction {
            Direction::Forward => self.forward(stream, &form),
            Direction::GradInput => self.grad_input(stream, &form),
            Direction::GradFilter => {
                let (prologue, grad_table) = (self.prologue(&form), self.grad_table(&form));
                let (input, grad_output) = (&self.x, &self.grad_output);
                let from = GradFilterSources { input, prologue, grad_output, grad_table, pool: None };
                let grad_bias = form.bias.then_some(&self.new_bias);
                conv3d::grad_filter_fused(stream, op, &from, &self.grad_filter, grad_bias, workspace)
            }
        }
    }

    fn prologue(&self, form: &Form) -> Option<Prologue<'_>> {
        let join = match form.input {
            Input::Stored => return None,
            Input::Normalised => None,
            Input::Join { normalises_shortcut, stores } => Some(Join {
                residual: &self.residual,
                residual_scale_shift: normalises_shortcut.then_some(&self.scale_shift[1]),
                output: stores.then_some(&self.new_x),
            }),
        };
        Some(Prologue { scale_shift: &self.scale_shift[0], splits: self.row.grid.splits, join })
    }

    fn grad_table(&self, form: &Form) -> Option<GradTable<'_>> {
        let (splits, store_dy) = (self.row.grid.splits, form.stores_grad.then_some(&self.new_y));
        form.grad_norm.then_some(GradTable { table: &self.grad_table, y: &self.y, splits, store_dy })
    }

    fn forward(&self, stream: &Stream, form: &Form) -> Result<()> {
        let gamma = self.gamma.part(0, self.row.op.c_out)?;
        let epilogue = match (form.statistics, form.bias) {
            (false, false) => Epilogue::None,
            (false, true) => Epilogue::Evaluation(Evaluation { bias: Some(&gamma), ..Default::default() }),
            (true, _) => Epilogue::Statistics(Statistics {
                splits: self.row.grid.splits,
                eps: 1e-5,
                gamma: &gamma,
                beta: &gamma,
                running: None,
                stats: &self.new_stats,
                scale_shift: &self.new_scale_shift,
                skip: None,
            }),
        };
        let (op, prologue) = (&self.row.op, self.prologue(form));
        let (x, y) = (&self.x, &self.new_y);
        conv3d::forward_fused(stream, op, x, prologue.as_ref(), &self.filter, &epilogue, y, &self.workspace)
    }

    /// What the ReLU and the batch norms before the layer saw stands for itself and its output alike.
    fn grad_input(&self, stream: &Stream, form: &Form) -> Result<()> {
        let c_in = self.row.op.input.c;
        let gamma = self.gamma.part(0, c_in)?;
        let sums = [0, 1, 2, 3].map(|i| self.new_grad_gamma.part(i * c_in, c_in));
        let [grad_gamma, grad_beta, grad_gamma_2, grad_beta_2] = sums;
        let sums = [(grad_gamma?, grad_beta?), (grad_gamma_2?, grad_beta_2?)];
        let norm = |i: usize| GradNorm {
            y: [&self.x, &self.residual][i],
            stats: &self.stats[i],
            gamma: &gamma,
            grad_table: &self.new_grad_tables[i],
            grad_gamma: &sums[i].0,
            grad_beta: &sums[i].1,
        };
        let norms = [norm(0), norm(1)];
        let epilogue = GradEpilogue {
            add: form.accumulate.then_some(&self.new_x),
            mask: match form.mask {
                MaskOf::None => Mask::None,
                MaskOf::Output => Mask::Output(&self.x),
                MaskOf::Recomputed => Mask::Recomputed { scale_shift: &self.scale_shift[0], y: &self.x },
            },
            splits: self.row.grid.splits,
            norms: &norms[..form.norms],
        };
        let (op, table) = (&self.row.op, self.grad_table(form));
        let (g, x) = (&self.grad_output, &self.new_x);
        conv3d::grad_input_fused(stream, op, g, table.as_ref(), &self.filter, &epilogue, x, &self.workspace)
    }
}
