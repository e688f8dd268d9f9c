//! Tests of `pool3d`.
