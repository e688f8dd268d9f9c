//! What keeps a step from harm without the host: gradient norm, check for what is not finite, loss scale, skipping.

use bytemuck::{Pod, Zeroable};

use crate::device::{Buffer, Device, Slice};
use crate::error::Result;

/// What one step leaves for the next, in device memory. Read it back when the host has time; a step never waits for it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct State {
    /// What the loss of the next step is multiplied with: see [`State::loss_scale`].
    pub loss_scale: f32,
    /// What the last step's gradients were multiplied with: 1 / its loss scale, times the clipping.
    pub factor: f32,
    /// l2 norm of the last step's gradients, without the loss scale, before clipping; NaN where one was not finite.
    pub grad_norm: f32,
    /// 1 where the last step was skipped.
    pub skipped: u32,
    /// Steps skipped so far.
    pub num_skipped: u32,
    /// Steps taken so far.
    pub num_taken: u32,
    /// Steps taken since the loss scale last changed.
    pub good_steps: u32,
    /// 1 where the last step started the momentum.
    pub first_step: u32,
    /// 1 where the step that should have started the momentum was skipped: the next one starts it.
    pub is_momentum_empty: u32,
}

const _: () = assert!(size_of::<State>() == 36);

impl State {
    /// Words of a state.
    pub const NUM_WORDS: usize = size_of::<State>() / 4;

    /// Before the first step.
    pub fn new(loss_scale: f32) -> State {
        State { loss_scale, ..State::zeroed() }
    }

    /// A copy in memory of `device`: u32 words, for [`Guard::state`].
    pub fn to_device(&self, device: &Device) -> Result<Slice> {
        Buffer::from_host::<u32>(device, bytemuck::cast_slice(&[*self]))
    }

    /// Waits for the device and reads it.
    pub fn read(words: &Slice) -> Result<State> {
        crate::ops::check::slice("sgd", "state", words, State::NUM_WORDS, crate::device::DType::U32)?;
        let words = words.read::<u32>()?;
        Ok(bytemuck::cast_slice::<u32, State>(&words)[0])
    }

    /// The u32 in device memory that tells whether the last step was skipped.
    pub fn skipped(words: &Slice) -> Result<Slice> {
        words.buffer().slice::<u32>(words.offset_bytes() + std::mem::offset_of!(State, skipped), 1)
    }

    /// The f32 in device memory that losses are multiplied with.
    pub fn loss_scale(words: &Slice) -> Result<Slice> {
        words.buffer().slice::<f32>(words.offset_bytes(), 1)
    }
}

/// When the loss scale changes. A scale is needed with f16 gradients, whose smallest number is 6e-8.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScaling {
    /// Factor after `growth_interval` steps in a row with finite gradients.
    pub growth: f32,
    /// Factor after a step with gradients that are not finite.
    pub backoff: f32,
    /// 0: the scale never changes.
    pub growth_interval: u32,
    /// It grows no further.
    pub max: f32,
}

impl LossScaling {
    /// The scale stays what it is.
    pub const FIXED: LossScaling = LossScaling { growth: 1.0, backoff: 1.0, growth_interval: 0, max: f32::INFINITY };
    /// Doubled after 2000 good steps, halved after a bad one.
    pub const DYNAMIC: LossScaling =
        LossScaling { growth: 2.0, backoff: 0.5, growth_interval: 2000, max: 16_777_216.0 };
}

/// A step that is checked before it is taken. Gradients are divided by the loss scale of `state`. If one of them is not
/// finite, or `skip_flag` is set, the step is skipped: parameters, momentum and copy stay as they are.
#[derive(Clone, Copy, Debug)]
pub struct Guard<'a> {
    /// [`State`] as u32 words.
    pub state: &'a Slice,
    /// f32, [`RangeTable::workspace_bytes`](super::RangeTable::workspace_bytes), the first
    /// [`TICKET_BYTES`](crate::ops::TICKET_BYTES) of it zero.
    pub workspace: &'a Slice,
    /// One u32 that batch norm sets where its statistics are not finite, and the loss where it is not. The step reads and clears it. A set flag skips the step
    /// but leaves the loss scale: an overflow in the forward pass is not its fault.
    pub skip_flag: Option<&'a Slice>,
    /// When the loss scale changes.
    pub scaling: LossScaling,
    /// Gradients with a larger norm are scaled down to it (torch's `clip_grad_norm_`); infinite for no limit.
    pub max_grad_norm: f32,
    /// Then every element is brought into `-max_grad_value ..= max_grad_value` (torch's `clip_grad_value_`); infinite for no
    /// limit.
    pub max_grad_value: f32,
}

impl Guard<'_> {
    /// `sum` of squares of the gradients without the loss scale, NaN where one of them is not finite: decides on the step.
    /// The same rule as `decide` in the kernel.
    pub(super) fn decide(&self, state: &mut State, sum: f64, is_flagged: bool, first_step: bool) {
        let is_finite = !sum.is_nan();
        state.grad_norm = sum.sqrt() as f32;
        let clip = match self.max_grad_norm {
            f32::INFINITY => 1.0,
            max => (max / (state.grad_norm + 1e-6)).min(1.0),
        };
        state.factor = clip / state.loss_scale;
        state.skipped = u32::from(!is_finite || is_flagged);
        state.num_skipped += state.skipped;
        state.num_taken += 1 - state.skipped;
        state.first_step = u32::from(first_step) | state.is_momentum_empty;
        state.is_momentum_empty = state.first_step & state.skipped;
        if self.scaling.growth_interval == 0 {
            return;
        }
        if !is_finite {
            state.loss_scale *= self.scaling.backoff;
            state.good_steps = 0;
        } else if state.skipped == 0 {
            state.good_steps += 1;
            if state.good_steps == self.scaling.growth_interval {
                state.loss_scale = (state.loss_scale * self.scaling.growth).min(self.scaling.max);
                state.good_steps = 0;
            }
        }
    }
}
