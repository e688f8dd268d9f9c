//! Tests of `pointwise`.
