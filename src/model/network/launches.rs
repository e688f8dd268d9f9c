//! Which kernels a step launches.

use super::Network;
use crate::device::{Launched, recorded};
use crate::error::Result;
use crate::model::plan::Mode;
use crate::shape::StepShape;

impl Network {
    /// The kernels that each op of a prepared step launches, in the order of [`Plan::ops`](crate::model::Plan::ops). Queues the ops,
    /// whatever the inputs hold: meant for a device that is only described
    /// ([`CudaDevice::described`](crate::device::CudaDevice::described)). Nothing on the CPU.
    pub fn launches(&self, mode: Mode, shape: StepShape) -> Result<Vec<Vec<Launched>>> {
        let step = self.step(mode, shape)?;
        let launched = |op| {
            let (outcome, launched) = recorded(|| self.launch(step, op));
            outcome.map(|()| launched)
        };
        step.plan.ops().map(launched).collect()
    }
}
