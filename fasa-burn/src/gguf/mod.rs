//! GGUF: weights, numbers and tokenizer of a model in one file, as llama.cpp keeps them.
//!
//! The file is translated into what the rest of the crate reads: its metadata into a `config.json` ([`Gguf::config`]) and a
//! `tokenizer.json` ([`Gguf::tokenizer`]), its tensors into those of `transformers` under their names, with the rows of llama's
//! queries and keys in their half-split order again. Quantized tensors are dequantized while they are read.
//!
//! No length in the file is believed before it has been held against the bytes that are left.

mod config;
mod cursor;
mod header;
mod names;
mod quant;
mod read;
mod tokenizer;

pub use header::{Gguf, Value};
use quant::Format;
pub(crate) use read::Entry;

/// Whether a path names a GGUF file.
pub fn is_gguf(path: &std::path::Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}
