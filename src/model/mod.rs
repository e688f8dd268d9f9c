//! Networks: a list of layers without shapes, plans of a step at one shape, and the network in device memory. Must not
//! know of schedules, data sets or files.
//!
//! | concept | type |
//! |---|---|
//! | what to build, in PySlowFast's terms | [`ModelConfig`] |
//! | layers and parameters, no shape | [`Model`] |
//! | tensors, ops and memory of a step at one shape | [`Plan`] |
//! | parameters and activations on a device, ready to run | [`Network`] |

mod build;
pub mod config;
mod from_config;
mod init;
pub mod layers;
pub mod network;
mod non_local;
mod pathways;
pub mod plan;

pub use config::{Arch, GramUse, HeadActivation, Loss, ModelConfig, Transform};
pub use layers::Model;
pub use network::{LossScale, NamedArray, Network, OptimizerState, PathwayInput, StepInputs, StepResults, StepTargets};
pub use non_local::NonLocal;
pub use pathways::slow_pathway_indices;
pub use plan::{Lowering, Mode, Plan};
