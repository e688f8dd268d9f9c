//! The activations of grad_filter as its kernels read them.

use super::GradFilterSources;
use crate::device::{Slice, Tensor};
use crate::ops::conv3d::Conv3d;
use crate::ops::conv3d::params::PrologueParams;

/// One of the two activations, with what its prologue reads.
pub struct Operand<'a> {
    pub memory: Vec<&'a Slice>,
    pub pitch: usize,
    pub prologue: PrologueParams,
    /// Bytes that can be copied at once.
    pub granule: usize,
    /// Its first tensor is that of a pool's output.
    is_pooled: bool,
}

impl<'a> Operand<'a> {
    pub fn of_input(op: &Conv3d, from: &GradFilterSources<'a>) -> Operand<'a> {
        let mut operand = Operand::new(from.input);
        if let Some(p) = &from.prologue {
            operand.add_table(p.scale_shift, 2, op.input.c);
            operand.prologue.has_relu = 1;
            if let Some(join) = &p.join {
                operand.add_second(join.residual);
                if let Some(table) = join.residual_scale_shift {
                    operand.prologue.second_table = table.address();
                    operand.memory.push(table);
                }
            }
        }
        operand.limit_granule(op.input.c / op.groups, op.groups);
        operand
    }

    pub fn of_grad(op: &Conv3d, from: &GradFilterSources<'a>) -> Operand<'a> {
        let mut operand = Operand::new(from.grad_output);
        if let Some(table) = &from.grad_table {
            operand.add_table(table.table, 3, op.c_out);
            operand.add_second(table.y);
        }
        operand.limit_granule(op.c_out / op.groups, op.groups);
        if let Some(pool) = &from.pool {
            operand.memory.extend([pool.indices, pool.scale_shift]);
            operand.is_pooled = true;
        }
        operand
    }

    fn new(tensor: &'a Tensor) -> Operand<'a> {
        Operand {
            memory: vec![tensor.memory()],
            pitch: tensor.pitch_c(),
            prologue: bytemuck::Zeroable::zeroed(),
            granule: granule_of(tensor),
            is_pooled: false,
        }
    }

    fn add_table(&mut self, table: &'a Slice, rows: i32, channels: usize) {
        self.prologue.table = table.address();
        self.prologue.table_rows = rows;
        self.prologue.channels = channels as i32;
        self.memory.push(table);
    }

    fn add_second(&mut self, tensor: &'a Tensor) {
        self.prologue.second = tensor.memory().address();
        self.prologue.second_pitch = tensor.pitch_c() as i32;
        self.granule = self.granule.min(granule_of(tensor));
        self.memory.push(tensor.memory());
    }

    pub fn num_tensors(&self) -> usize {
        if self.prologue.second == 0 || self.is_pooled { 1 } else { 2 }
    }

    /// Groups begin at multiples of their channels.
    fn limit_granule(&mut self, channels: usize, groups: usize) {
        if groups > 1 {
            self.granule = self.granule.min(granule(2 * channels as u64));
        }
    }
}

/// The largest of 16, 8 and 2 that divides `bytes`.
fn granule(bytes: u64) -> usize {
    if bytes.is_multiple_of(16) {
        16
    } else if bytes.is_multiple_of(8) {
        8
    } else {
        2
    }
}

/// Bytes of this tensor that can be copied at once.
pub fn granule_of(tensor: &Tensor) -> usize {
    granule(tensor.memory().address()).min(granule(2 * tensor.pitch_c() as u64))
}
