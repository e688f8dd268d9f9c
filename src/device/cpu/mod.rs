//! Vector kernels of the CPU executor: the inner loops of convolution and linear layers. Must not know of ops.
//!
//! | file | what |
//! |---|---|
//! | `dispatch` | how a kernel is entered with its instruction set, memory that tasks share |
//! | `isa` | which instruction set is used, chosen at run time |
//! | `vector` | the few vector operations that kernels need, for each instruction set |
//! | `tap_sum` | `c[row] += sum over taps of a[row, tap] B[tap]`: forward and input gradient |
//! | `tap_grid` | where its rows come from and go to |
//! | `tap_tile`, `tap_pairs` | its kernels: for any, and for few columns |
//! | `outer_sum` | `acc += sum over positions of dy[p]' x[p]`: filter gradient |
//! | `transpose` | small blocks, for packing filters |
//! | `scratch` | memory that a call needs for itself |
//!
//! The functions here are safe to call: they check every range before a kernel runs on raw pointers. Each sum has one
//! fixed order for a given instruction set, whatever the number of threads.

mod dispatch;
mod isa;
mod outer_sum;
pub(crate) mod scratch;
mod tap_grid;
mod tap_pairs;
mod tap_sum;
mod tap_tile;
#[cfg(test)]
mod tests;
mod transpose;
mod vector;

pub use isa::Isa;
pub use outer_sum::{OuterSum, Run};
pub use tap_grid::{AxisMap, Grid, MANY_TAPS, TapMap};
pub use tap_sum::{Columns, Init, Panels, add_taps};
pub use transpose::{BLOCK, transpose_block};
