//! Reads Python pickles and executes nothing: a pickle is a program for a small stack machine, and this machine knows only
//! the instructions and the few classes that files of weights need. Every other class is refused by its full name.
//!
//! | question | file |
//! |---|---|
//! | which instructions there are, and how much they may do | `machine.rs` |
//! | texts as protocol 0 writes them | `text.rs` |
//! | which classes and functions a pickle may name, and what they become | `classes.rs` |
//! | what a pickle can hold | `value.rs` |
//! | bytes, numbers and lines, never more than the file has | `source.rs` |
//!
//! All objects lie in one list and name each other by their place in it: a list that holds itself is no harm, and nothing
//! here recurses. The bounds are the file's size and [`MAX_STEPS`].

mod classes;
mod machine;
mod source;
mod text;
mod value;

pub(super) use machine::load;
pub(super) use source::Source;
pub(super) use value::{Object, Pickle, TensorRef, Value};

/// Most instructions of one pickle: ten times what the largest checkpoint of a video network has. An instruction
/// makes at most one object, so this bounds memory to a few hundred MB beyond the bytes of the file itself.
pub(super) const MAX_STEPS: usize = 1_000_000;

/// What is wrong with a pickle or a file; the caller adds the file's name.
pub(super) type Outcome<T> = Result<T, String>;
