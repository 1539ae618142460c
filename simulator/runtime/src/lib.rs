//! The simulated SCONE runtime. Software only: it protects nobody from root.
//!
//! `main.rs` tells the story of a start; each step is a module here. What the runtime and CAS say to each other is in the crate
//! `scone-protocol`.
#![cfg_attr(not(test), warn(clippy::too_many_lines))]

pub mod barrier;
pub mod failure;
pub mod files;
pub mod measurement;
pub mod program;
pub mod root;
pub mod supervise;
pub mod sys;
pub mod volume;
