//! A Burn transformer with frequency-aware sparse attention (FASA).

pub mod checkpoint;
pub mod config;
pub mod error;
pub mod sampling;
pub mod text;
