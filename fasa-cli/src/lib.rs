//! The commands of the `fasa` binary.
//!
//! One file per command under [`commands`]; what they share lies beside it.

pub mod builtin;
pub mod calibration_text;
pub mod commands;
pub mod crossover;
pub mod eval;
pub mod gpu;
pub mod hub;
pub mod interrupt;
pub mod methods;
pub mod model;
pub mod page;
pub mod pictures;
pub mod report;
pub mod scoring;
pub mod settings;
pub mod sizes;
pub mod tasks;
pub mod terminal;
pub mod threads;
pub mod writing;
