//! The training loop.

mod clock;
pub mod log;
mod output;

pub use clock::{Clock, process_cpu_s};
pub use output::{OutputDir, Summary};
