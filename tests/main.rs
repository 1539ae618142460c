//! The tests of the scripts, in one program: it is linked once, and while one test waits for a container or a code another runs.

#[macro_use]
mod support;

mod acceptance;
mod attacks;
mod calculator;
mod doctor;
mod documentation;
mod drift;
mod durability;
mod engines;
mod errors;
mod flow;
mod fresh;
mod gate;
mod grants;
mod host;
mod multiplexers;
mod phone;
mod programs;
mod races;
mod reference_solution;
mod roll_forward;
mod scone_image;
mod scone_platform;
mod scripts_alone;
mod signer;
mod terminal;
mod threat_model;
mod web;
