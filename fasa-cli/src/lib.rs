//! The commands of the `fasa` binary.

pub mod calibration_text;
pub mod tasks;
