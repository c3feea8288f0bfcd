//! CPU kernels for frequency-aware sparse attention, over plain slices.
//!
//! One decode step of one layer: [`dense_decode`] reads every cached row, [`fasa_decode`] scores the sketch, selects, and
//! reads the chosen rows only. [`policy_decode`] does the same for any [`CachePolicy`](fasa_core::policy::CachePolicy).
//! Work is spread over rayon's current thread pool. Nothing here knows a tensor library.
//!
//! Each kernel is written once as portable code over fixed-width lanes and compiled several times for the instruction
//! sets that the machine may turn out to have ([`isa`]); the naive versions in `fasa-core` are the oracle in the tests.
#![deny(missing_docs)]

pub mod attention;
pub mod exp;
pub mod fasa;
pub mod isa;
pub mod layer;
pub mod policy;
pub mod selected;
mod tip;

pub use attention::dense_decode;
pub use fasa::fasa_decode;
pub use layer::{LayerCache, LayerSketch};
pub use policy::policy_decode;
pub use selected::Selected;
