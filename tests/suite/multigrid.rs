//! Tests of `multigrid`.
