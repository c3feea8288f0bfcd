//! GPU kernels for frequency-aware sparse attention: one CubeCL source for CUDA, Vulkan, Metal and WebGPU.
//!
//! A decode step of one layer (`step`) is one launch where cubes can wait for each other (`meet`), and else five, none of which
//! waits for the host:
//!
//! 1. `tip`: every sketch row is read once and scored against all query heads that share it.
//! 2. `combine`: the group's importance of every token, and the largest of each few tokens.
//! 3. `select`: the best N, without a sort.
//! 4. `attend`: attention over the chosen rows, split over the device, and
//! 5. the merge of its parts.
//!
//! Lengths can be kept on the device (`Length`),
//! so that a step can be recorded once and replayed.
//!
//! Buffers hold 32-bit words whatever their number format, so that one source serves devices without 16-bit types.
//! Every kernel has a naive oracle in `fasa-core`, and the tests compare with it.

#![cfg(feature = "kernels")]
// Kernels are another language: these idioms of the host do not exist there.
#![allow(clippy::collapsible_if, clippy::eq_op, clippy::manual_div_ceil, clippy::manual_is_multiple_of)]

pub mod append;
pub mod attend;
pub mod combine;
mod device;
#[cfg(feature = "cuda")]
pub mod driver;
mod error;
mod length;
pub mod linear;
mod meet;
pub mod numbers;
pub mod rows;
pub mod select;
mod spans;
pub mod step;
pub mod tape;
mod team;
pub mod tier;
pub mod tip;
pub mod write;

pub use device::{Gpu, Traits};
pub use error::{Error, Result};
pub use length::Length;
pub use numbers::Format;
