//! Gram batch norm: the algebra in f64 against plain convolution and batch norm, both directions; exact, random, repeat and
//! conditioning tests over tests/cases/gram.toml; refusals.

mod algebra;
mod conditioning;
mod epilogue;
mod gradient;
mod refused;
mod rig;
mod values;
