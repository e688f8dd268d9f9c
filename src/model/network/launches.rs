//! Which kernels a step launches, and how long its ops take.

use super::Network;
use super::prepare::PreparedStep;
use crate::device::{Launched, nvtx, recorded};
use crate::error::Result;
use crate::model::plan::{Mode, StepOp};
use crate::shape::StepShape;

impl Network {
    /// The kernels that each op of a prepared step launches, in the order of [`Plan::ops`](crate::model::Plan::ops), those of its
    /// micro-batches one after the other. Queues the ops, whatever the inputs hold: meant for a device that is only described
    /// ([`CudaDevice::described`](crate::device::CudaDevice::described)). Nothing on the CPU.
    pub fn launches(&self, mode: Mode, shape: StepShape) -> Result<Vec<Vec<Launched>>> {
        let launched = |(step, op)| {
            let (outcome, launched) = recorded(|| self.launch(step, op));
            outcome.map(|()| launched)
        };
        self.ops_of(mode, shape)?.map(launched).collect()
    }

    /// Milliseconds of each op of a prepared step, in the same order: between events of the device, on the CPU by the wall clock. Runs
    /// the step's ops on whatever the inputs and labels hold. An op of a GPU that is shorter than what it takes to launch it seems
    /// to take as long as that.
    pub fn op_times_ms(&self, mode: Mode, shape: StepShape) -> Result<Vec<f64>> {
        let mut events = vec![self.stream.record()?];
        for (step, op) in self.ops_of(mode, shape)? {
            let _range = nvtx::range(|| step.plan.op_name(op));
            self.launch(step, op)?;
            events.push(self.stream.record()?);
        }
        events.windows(2).map(|pair| pair[0].elapsed_ms(&pair[1])).collect()
    }

    /// Of all micro-batches, where the step runs in several.
    fn ops_of(&self, mode: Mode, shape: StepShape) -> Result<impl Iterator<Item = (&PreparedStep, &StepOp)>> {
        let steps = &self.steps[self.micro_batches(self.step_idx(mode, shape)?)];
        Ok(steps.iter().flat_map(|step| step.plan.ops().map(move |op| (step, op))))
    }
}
