//! What the scripts share.

pub mod child;
pub mod code;
pub mod enrolment;
pub mod outcome;
pub mod platform;
pub mod policy;
pub mod qr_code;
pub mod root;
pub mod state;
