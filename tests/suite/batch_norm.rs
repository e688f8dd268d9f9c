//! Tests of `batch_norm`.
