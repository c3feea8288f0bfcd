//! Tensors of a GGUF file as numbers.

use half::{bf16, f16};
use rayon::prelude::*;

use super::header::{Gguf, Place};
use super::names::{ROPE_FACTORS, Rows, interleaved, translate};
use crate::checkpoint::Kept;
use crate::error::{Error, Result};

/// Bytes that are dequantized together, then given back to the system.
const PIECE_BYTES: usize = 16 << 20;

/// A tensor by its name in `transformers`.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// In the file.
    pub name: String,
    pub rows: Rows,
    pub shape: Vec<usize>,
    /// Whether half precision holds it about as well as the file does.
    pub is_half: bool,
}

impl Gguf {
    /// All tensors by their names in `transformers`; those without such a name keep their own, so that they are reported
    /// as unknown.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an architecture that is not translated, [`Error::Config`] without the numbers of heads.
    pub(crate) fn entries(&self) -> Result<Vec<(String, Entry)>> {
        let architecture = self.architecture()?;
        let interleaved = interleaved(architecture, self.path())?;
        let heads = |name: &str| self.get(&format!("{architecture}.attention.{name}")).and_then(super::Value::integer);
        let query_heads = heads("head_count").unwrap_or(1);
        let kv_heads = heads("head_count_kv").unwrap_or(query_heads);
        let mut entries = Vec::new();
        for (name, place) in self.tensors() {
            if name == ROPE_FACTORS {
                continue; // read with the configuration
            }
            let heads = match name.rsplit('.').nth(1) {
                Some("attn_q") if interleaved => Some(query_heads),
                Some("attn_k") if interleaved => Some(kv_heads),
                _ => None,
            };
            let rows = match heads {
                None => Rows::Same,
                Some(heads) => {
                    let heads = usize::try_from(heads).unwrap_or(usize::MAX);
                    // Every head has an even number of rows.
                    if heads == 0
                        || !place.shape[0].is_multiple_of(heads)
                        || !(place.shape[0] / heads).is_multiple_of(2)
                    {
                        let problem = format!("has {} rows for {heads} heads", place.shape[0]);
                        return Err(Error::tensor(
                            self.path(),
                            name,
                            problem,
                            "convert the model again with llama.cpp",
                        ));
                    }
                    Rows::Interleaved(heads)
                }
            };
            let entry = Entry {
                name: name.clone(),
                rows,
                shape: place.shape.clone(),
                is_half: place.format != super::Format::F32,
            };
            entries.push((translate(name).unwrap_or_else(|| name.clone()), entry));
        }
        Ok(entries)
    }

    /// A tensor by its own name, its rows as they lie.
    pub(super) fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.read(name, Rows::Same)
    }

    /// A tensor in row-major order as `f32`.
    pub(crate) fn entry_f32(&self, entry: &Entry) -> Result<Vec<f32>> {
        self.read(&entry.name, entry.rows)
    }

    /// A tensor in row-major order as `f16`, if no number is too large.
    pub(crate) fn entry_f16(&self, entry: &Entry) -> Result<Vec<f16>> {
        self.read(&entry.name, entry.rows)
    }

    /// A tensor in row-major order as `bf16`, if no number is too large.
    pub(crate) fn entry_bf16(&self, entry: &Entry) -> Result<Vec<bf16>> {
        self.read(&entry.name, entry.rows)
    }

    fn read<T: Kept>(&self, name: &str, rows: Rows) -> Result<Vec<T>> {
        let Some(Place { shape, format, start, end }) = self.tensors().get(name) else {
            return Err(Error::tensor(self.path(), name, "is missing", "use a file with the whole model"));
        };
        let elements: usize = shape.iter().product();
        // A bias is reordered number by number.
        let columns = match shape.as_slice() {
            [_] if rows != Rows::Same => 1,
            _ => shape.last().copied().unwrap_or(1).max(1),
        };
        let total = elements / columns;
        let mut out: Vec<T> = Vec::new();
        out.try_reserve_exact(elements).map_err(|_| {
            let problem = format!("has {elements} elements, and there is no memory for them");
            Error::tensor(self.path(), name, problem, "use a smaller model or a machine with more memory")
        })?;
        out.resize(elements, T::default());
        let row_bytes = (end - start) / total.max(1);
        let bytes = &self.file().bytes()[*start..*end];
        self.file().fetch(*start..*end);
        let group = (PIECE_BYTES / row_bytes.max(1)).max(1);
        for (piece, out) in out.chunks_mut(group * columns).enumerate() {
            let rows_of_piece = out.par_chunks_mut(columns).enumerate();
            let converted = rows_of_piece.try_for_each_init(
                || Vec::with_capacity(columns),
                |numbers, (row, out)| {
                    let row = rows.source(piece * group + row, total);
                    numbers.clear();
                    format.dequantize(&bytes[row * row_bytes..(row + 1) * row_bytes], numbers);
                    T::keep(&numbers[..out.len()], out)
                },
            );
            converted.map_err(|value| Error::Overflow {
                path: self.path().to_owned(),
                tensor: name.to_owned(),
                value,
            })?;
            let done = start + piece * group * row_bytes;
            self.file().release(done..(done + group * row_bytes).min(*end));
        }
        Ok(out)
    }
}
