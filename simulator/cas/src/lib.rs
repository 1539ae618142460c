//! A software-only stand-in for SCONE CAS and the `scone` command line: the same policies, the same answers, no protection
//! from root. How to read it: `session` is the language, `cas` decides, `signing` is signed sessions, `codes` judges codes, `store` and `audit` remember,
//! `server` and `tls` are the two ports, `daemon` starts and stops it all, `cli` is the `scone` command.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::too_many_lines))]

pub mod audit;
pub mod cas;
pub mod cli;
pub mod clock;
pub mod codes;
pub mod daemon;
pub mod server;
pub mod session;
pub mod signing;
pub mod store;
pub mod tls;

/// What whoever starts or attests the simulator is told, once.
pub const SOFTWARE_ONLY: &str =
    "scone-sim: WARNING: this CAS is software only: it protects nobody from root and attests nothing in hardware";
