//! Tests of `resize`.
