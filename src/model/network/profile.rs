//! Where the time of a step goes.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::Network;
use crate::model::plan::{OpKind, Plan, StepOp};

/// Time by kind of op and by layer, since profiling began.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// Sum of times, number of ops and multiply-adds of each kind.
    pub by_kind: BTreeMap<OpKind, (Duration, usize, u64)>,
    /// The same by kind and name of the tensor that the op is about.
    pub by_layer: BTreeMap<(OpKind, String), (Duration, usize, u64)>,
}

impl Profile {
    pub(super) fn add(&mut self, op: &StepOp, plan: &Plan, time: Duration) {
        let name = plan.tensors[op.subject()].name.clone();
        for entry in [self.by_kind.entry(op.kind()).or_default(), self.by_layer.entry((op.kind(), name)).or_default()] {
            *entry = (entry.0 + time, entry.1 + 1, entry.2 + op.macs());
        }
    }

    /// Sum of all times.
    pub fn total(&self) -> Duration {
        self.by_kind.values().map(|(time, ..)| *time).sum()
    }
}

/// One line a kind, then the 15 slowest layers.
impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total().as_secs_f64().max(1e-12);
        let row = |f: &mut fmt::Formatter<'_>, name: String, (time, count, macs): (Duration, usize, u64)| {
            let s = time.as_secs_f64();
            write!(f, "{name:<64} {:9.2} ms {:5.1} % {count:5} ops", s * 1e3, 100.0 * s / total)?;
            if macs > 0 {
                write!(f, " {:7.1} GFLOP/s", 2.0 * macs as f64 / s.max(1e-12) / 1e9)?;
            }
            writeln!(f)
        };
        for (kind, &entry) in &self.by_kind {
            row(f, format!("{kind:?}"), entry)?;
        }
        let mut layers: Vec<_> = self.by_layer.iter().collect();
        layers.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.0));
        for ((kind, name), &entry) in layers.into_iter().take(15) {
            row(f, format!("{kind:?} {name}"), entry)?;
        }
        Ok(())
    }
}

impl Network {
    /// Starts (or restarts) timing of every op; each op is then waited for, which on a GPU slows the step down.
    pub fn start_profile(&mut self) {
        self.profile = Some(Profile::default());
    }

    /// Ends timing and returns what was measured.
    pub fn take_profile(&mut self) -> Option<Profile> {
        self.profile.take()
    }
}
