//! A plan as text: what will run, where it lies, what it costs.

use std::fmt;

use super::{Lowering, Mode, OpKind, Place, Plan, StepOp};

const GIB: f64 = (1u64 << 30) as f64;

impl Plan {
    /// One line: shape, work and memory.
    pub fn summary(&self) -> String {
        let mode = match self.mode {
            Mode::Train => "train",
            Mode::Eval => "eval",
        };
        let (cost, gmacs) = (self.cost(), (self.forward_macs + self.backward_macs) as f64 / 1e9);
        let form = match self.lowering {
            Lowering::Plain => "plain f32".into(),
            Lowering::Fused(dtype) => format!("fused {dtype:?}").to_lowercase(),
        };
        format!(
            "{mode} {}: {form}, {} ops, {} launches, {gmacs:.2} GMAC, {:.2} GB moved, arena {:.3} GiB, workspace {:.3} GiB",
            self.shape,
            self.forward.len() + self.backward.len(),
            cost.launches,
            cost.bytes as f64 / 1e9,
            self.arena_bytes as f64 / GIB,
            self.workspace_bytes as f64 / GIB
        )
    }

    /// Kind of `op`, one of this plan, and the name of the tensor that it is about.
    pub fn op_name(&self, op: &StepOp) -> String {
        format!("{:?} {}", op.kind(), self.tensors[op.subject()].name)
    }

    /// Number of ops and multiply-adds of each kind, in the order of [`OpKind`].
    pub fn work_by_kind(&self) -> Vec<(OpKind, usize, u64)> {
        let mut work: std::collections::BTreeMap<OpKind, (usize, u64)> = Default::default();
        for op in self.ops() {
            let entry = work.entry(op.kind()).or_default();
            *entry = (entry.0 + 1, entry.1 + op.macs());
        }
        work.into_iter().map(|(kind, (count, macs))| (kind, count, macs)).collect()
    }
}

/// The summary, then one line an op: kind, tensor, sizes, place in the arena and lifetime of what it is about.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.summary())?;
        for (i, op) in self.ops().enumerate() {
            let tensor = &self.tensors[op.subject()];
            write!(f, "{i:5} {:<18} {:<44} {}", format!("{:?}", op.kind()), tensor.name, tensor.shape)?;
            if let Place::Arena { storage, offset_c, pitch_c } = tensor.place {
                let s = &self.storages[storage];
                write!(f, " at {} live {}..={}", s.offset_bytes, s.first_op, s.last_op)?;
                if pitch_c != tensor.shape.c {
                    write!(f, " channel {offset_c} of {pitch_c}")?;
                }
            }
            let cost = self.cost_of(op);
            writeln!(f, ", {:.2} MB, {:.3} GFLOP", cost.bytes as f64 / 1e6, cost.flops as f64 / 1e9)?;
        }
        Ok(())
    }
}
