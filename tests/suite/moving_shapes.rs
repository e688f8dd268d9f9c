//! Tests of `moving_shapes`.
