//! The simulated SCONE runtime. Software only: it protects nobody from root.
//!
//! `main.rs` tells the story of a start; each step is a module here. [`protocol`] is shared with CAS.

pub mod barrier;
pub mod cas;
pub mod failure;
pub mod program;
pub mod protocol;
pub mod root;
pub mod supervise;
pub mod sys;
pub mod volume;
