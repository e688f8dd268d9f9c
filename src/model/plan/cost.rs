//! What an op and a step cost, counted: bytes that must move at least once, FLOPs, launches.

use std::collections::HashSet;

use super::fused::{FusedOp, reads_each_position_once};
use super::{Access, Place, Plan, StepOp, TensorId};
use crate::ops::conv3d::{Conv3d, Direction};

/// What an op or a step costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes read and written, each tensor and each parameter once an op, whatever the caches save or the tiles read again.
    pub bytes: u64,
    /// Two for each multiply-add of convolutions, attention and projections.
    pub flops: u64,
    /// Kernels started, at most: the sum of a filter gradient's parts counts, and the packing of a stem's filter.
    pub launches: u64,
}

impl std::ops::Add for Cost {
    type Output = Cost;

    fn add(self, other: Cost) -> Cost {
        Cost {
            bytes: self.bytes + other.bytes,
            flops: self.flops + other.flops,
            launches: self.launches + other.launches,
        }
    }
}

impl Plan {
    /// What the whole step costs; without input, optimizer and running statistics.
    pub fn cost(&self) -> Cost {
        self.ops().map(|op| self.cost_of(op)).fold(Cost::default(), std::ops::Add::add)
    }

    /// What `op`, one of this plan, costs.
    pub fn cost_of(&self, op: &StepOp) -> Cost {
        let mut seen = HashSet::new();
        let mut bytes = self.filter_bytes(op, self.lowering.dtype().size_bytes() as u64);
        op.visit(&mut |access| {
            let size = self.bytes_of(access.tensor());
            let (reads, writes) = match access {
                Access::Read(_) => (true, false),
                Access::Write(_) => (false, true),
                Access::ReadWrite(_) => (true, true),
            };
            for is_write in [(false, reads), (true, writes)].into_iter().filter(|w| w.1).map(|w| w.0) {
                if seen.insert((access.tensor(), is_write)) {
                    bytes += size;
                }
            }
        });
        Cost { bytes, flops: 2 * op.macs(), launches: self.launches_of(op) }
    }

    fn launches_of(&self, op: &StepOp) -> u64 {
        match op {
            StepOp::Fused(
                FusedOp::ConvGradFilter { .. }
                | FusedOp::ConvBackward { .. }
                | FusedOp::GramMoments { .. }
                | FusedOp::GramProducts { .. }
                | FusedOp::GramGradient { .. },
            ) => 2,
            StepOp::AttentionBackward { .. } => 2,
            StepOp::Fused(FusedOp::Conv { input, .. })
                if matches!(self.tensors[input.tensor].place, Place::Input(_)) =>
            {
                2
            }
            // Where it cannot store the gradient on its way, a launch before does.
            StepOp::Fused(FusedOp::ConvGradInput { op, store_dy: Some(_), .. }) if !reads_each_position_once(op) => 2,
            _ => 1,
        }
    }

    /// Bytes of a step as frameworks run it, in 16 bits: batch norm, ReLU, join and the sum of two gradients each by itself.
    /// Counted on a plain plan, tensor by tensor as [`Plan::cost`] does.
    pub fn framework_bytes(&self) -> u64 {
        self.ops().map(|op| self.framework_bytes_of(op)).sum()
    }

    fn framework_bytes_of(&self, op: &StepOp) -> u64 {
        // Passes over a batch norm's tensor: forward reads it twice and writes, a ReLU reads and writes, a join reads two and
        // writes; backward is a ReLU's three and a batch norm's five. A gradient that is added is written, then read with the
        // other, and their sum written.
        let relu = |has_relu: bool, passes: u64| if has_relu { passes } else { 0 };
        let half = |tensor: TensorId| self.bytes_of(tensor) / 2;
        match *op {
            StepOp::BatchNormTrain { ref op, input, residual, .. } => {
                half(input) * (3 + relu(op.relu, 2) + relu(residual.is_some(), 3))
            }
            StepOp::BatchNormBackward { ref op, input, .. } => half(input) * (5 + relu(op.relu, 3)),
            _ => {
                let mut bytes = self.filter_bytes(op, 2);
                op.visit(&mut |access| {
                    let passes = if matches!(access, Access::ReadWrite(_)) { 4 } else { 1 };
                    bytes += passes * half(access.tensor());
                });
                bytes
            }
        }
    }

    /// Bytes of the filter that a convolution reads, or of the f32 gradient that it writes; likewise of the projection.
    fn filter_bytes(&self, op: &StepOp, element_bytes: u64) -> u64 {
        let of_conv = |op: &Conv3d, direction: Direction| {
            op.filter_len() as u64 * if direction == Direction::GradFilter { 4 } else { element_bytes }
        };
        match op {
            StepOp::Conv { op, .. } => of_conv(op, Direction::Forward),
            StepOp::ConvGradFilter { op, .. } => of_conv(op, Direction::GradFilter),
            StepOp::ConvGradInput { op, .. } => of_conv(op, Direction::GradInput),
            StepOp::Fused(FusedOp::GramStatistics { op, .. }) => (op.c_in * op.norm.shape.c) as u64 * element_bytes,
            StepOp::Fused(FusedOp::GramGradient { op, .. }) => (op.c_in * op.norm.shape.c) as u64 * (element_bytes + 4),
            StepOp::Fused(FusedOp::ConvBackward { op, .. }) => {
                of_conv(op, Direction::GradFilter) + of_conv(op, Direction::GradInput)
            }
            StepOp::Fused(op) => op.convolution().map_or(0, |(op, direction)| of_conv(op, direction)),
            &StepOp::Linear { input, output, .. } => self.projection_len(input, output) * element_bytes,
            &StepOp::LinearBackward { input, grad_output, .. } => {
                self.projection_len(input, grad_output) * (element_bytes + 4)
            }
            _ => 0,
        }
    }

    fn projection_len(&self, input: TensorId, output: TensorId) -> u64 {
        (self.tensors[input].shape.c * self.tensors[output].shape.c) as u64
    }

    /// The input of a pathway counts with all the channels that are stored.
    fn bytes_of(&self, tensor: TensorId) -> u64 {
        let tensor = &self.tensors[tensor];
        let stored = match tensor.place {
            Place::Input(pathway) => self.tensors[self.inputs[pathway]].shape,
            Place::Arena { .. } => tensor.shape,
        };
        (stored.num_elements() * tensor.dtype.size_bytes()) as u64
    }
}
