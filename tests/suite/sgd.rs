//! Tests of `sgd`.
