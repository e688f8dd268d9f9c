//! The operations of a training step, one folder each, usable one by one on the caller's own buffers and stream.
//! Must not know of models, data sets or schedules.
//!
//! Every op follows one pattern: a small description (`Conv3d`, `BatchNorm`, …) that is checked when made, and functions
//! `forward`, `grad_input`, … that take a [`Stream`](crate::device::Stream), the description and the tensors. What a
//! function writes is overwritten unless its doc says "added to". Scratch memory is asked for by `workspace_bytes` and
//! passed in: no op allocates device memory. Its first [`TICKET_BYTES`] must be zero where kernels run, and are left zero.

pub mod attention;
pub mod batch_norm;
pub(crate) mod check;
pub mod conv3d;
mod divide;
pub mod dropout;
pub mod gram;
pub mod linear;
pub mod mixup;
pub mod pointwise;
pub mod pool3d;
pub mod resample;
pub mod resize;
pub(crate) mod row_plan;
pub(crate) mod rows;
pub mod sgd;
pub mod softmax_loss;
mod tickets;

pub use tickets::TICKET_BYTES;
