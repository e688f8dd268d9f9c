//! Tests of `conv3d`.
