//! Weights of other programs: formats, names, fitting to a model, and files that mean harm.

mod convert;
mod fit;
mod formats;
mod fuzz;
mod hostile;
mod momenta;
mod names;
pub mod torch;
pub mod writer;
