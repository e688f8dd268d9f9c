//! Tests of `softmax_loss`.
