//! Weights of other programs: formats, names, fitting to a model, and files that mean harm.

mod fit;
mod formats;
mod hostile;
mod names;
mod writer;
