//! The commands of the `fasa` binary.

pub mod tasks;
