//! The simulated SCONE runtime. Software only: it protects nobody from root.
//!
//! `main.rs` tells the story of a start; each step is a module here. What CAS and
//! the runtime say to each other is the crate `scone-protocol`.

pub mod barrier;
pub mod failure;
pub mod program;
pub mod root;
pub mod supervise;
pub mod sys;
pub mod volume;
