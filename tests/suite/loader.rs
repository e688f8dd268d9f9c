//! Tests of `loader`.
