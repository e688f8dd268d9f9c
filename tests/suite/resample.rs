//! Tests of `resample`.
