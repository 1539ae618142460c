//! The simulated SCONE runtime. Software only: it protects nobody from root.
pub mod protocol;
