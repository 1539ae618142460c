//! Nothing: `tests/cosign.rs` is all there is.
