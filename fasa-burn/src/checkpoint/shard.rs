//! One safetensors file: eight bytes with the header's length, the header in JSON, then the tensors without gaps.

use std::borrow::Cow;
use std::fs::File;
use std::path::{Path, PathBuf};

use fasa_cpu::map::Mapped;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::convert::{Bf16, F16, F32, Kept, convert, copy};
use super::regular_file_len;
use crate::error::{Error, Result};

/// Bytes of the header's length, a little-endian u64 at the front.
const LENGTH_BYTES: usize = 8;

/// As in the safetensors library.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bytes that are converted together; those of a mapped file are given back before the next, so that a large tensor is never
/// in memory twice. A multiple of every element's size and of a page.
const PIECE_BYTES: usize = 16 << 20;

/// Elements that are worth a thread.
const SPLIT: usize = 1 << 16;

const DOWNLOAD_AGAIN: &str = "download it again";

/// A safetensors file whose header has been checked against the file's length.
#[derive(Debug)]
pub(super) struct Shard {
    path: PathBuf,
    source: Source,
    /// Where the tensors begin, in bytes from the start of the file.
    data_start: usize,
    metadata: Metadata,
}

#[derive(Debug)]
enum Source {
    Mapped(Mapped),
    Bytes(Cow<'static, [u8]>),
}

impl Source {
    fn bytes(&self) -> &[u8] {
        match self {
            Source::Mapped(mapped) => mapped.bytes(),
            Source::Bytes(bytes) => bytes,
        }
    }
}

impl Shard {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let io = |error| Error::io(path, error);
        let total = regular_file_len(path)?;
        if total < LENGTH_BYTES as u64 {
            return Err(too_short(path, total)); // an empty file cannot even be mapped
        }
        let file = File::open(path).map_err(io)?;
        Self::new(path, Source::Mapped(Mapped::open(&file).map_err(io)?))
    }

    pub(super) fn from_bytes(path: &Path, bytes: Cow<'static, [u8]>) -> Result<Self> {
        Self::new(path, Source::Bytes(bytes))
    }

    fn new(path: &Path, source: Source) -> Result<Self> {
        let bytes = source.bytes();
        let total = bytes.len() as u64;
        let Some((prefix, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
            return Err(too_short(path, total));
        };
        let header_len = header_len(path, *prefix, total)?;
        let metadata = parse_header(path, &rest[..header_len], total)?;
        Ok(Self { path: path.to_owned(), source, data_start: LENGTH_BYTES + header_len, metadata })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn tensors(&self) -> impl Iterator<Item = (String, &TensorInfo)> {
        self.metadata.tensors().into_iter()
    }

    /// The elements of one of this file's tensors as `f32`.
    pub(super) fn read_f32(&self, name: &str, info: &TensorInfo) -> Result<Vec<f32>> {
        match info.dtype {
            Dtype::F32 => self.read(name, info, convert::<F32, f32, 4>),
            Dtype::F16 => self.read(name, info, convert::<F16, f32, 2>),
            Dtype::BF16 => self.read(name, info, convert::<Bf16, f32, 2>),
            other => Err(self.other_dtype(name, other)),
        }
    }

    /// The elements of one of this file's tensors as `f16`, if none is too large.
    pub(super) fn read_f16(&self, name: &str, info: &TensorInfo) -> Result<Vec<f16>> {
        match info.dtype {
            Dtype::F32 => self.read(name, info, convert::<F32, f16, 4>),
            Dtype::F16 => self.read(name, info, |elements, out| copy(elements, out, f16::from_le_bytes)),
            Dtype::BF16 => self.read(name, info, convert::<Bf16, f16, 2>),
            other => Err(self.other_dtype(name, other)),
        }
    }

    /// The elements of one of this file's tensors as `bf16`, if none is too large.
    pub(super) fn read_bf16(&self, name: &str, info: &TensorInfo) -> Result<Vec<bf16>> {
        match info.dtype {
            Dtype::F32 => self.read(name, info, convert::<F32, bf16, 4>),
            Dtype::F16 => self.read(name, info, convert::<F16, bf16, 2>),
            Dtype::BF16 => self.read(name, info, |elements, out| copy(elements, out, bf16::from_le_bytes)),
            other => Err(self.other_dtype(name, other)),
        }
    }

    fn other_dtype(&self, name: &str, dtype: Dtype) -> Error {
        Error::tensor(&self.path, name, format!("holds {dtype}"), "use a checkpoint in F32, F16 or BF16")
    }

    /// Reads a tensor of elements of `N` bytes piece by piece, on all threads of the pool. `convert` names a number that does
    /// not fit; then nothing more is read.
    fn read<T: Kept, const N: usize>(
        &self,
        name: &str,
        info: &TensorInfo,
        convert: impl Fn(&[[u8; N]], &mut [T]) -> std::result::Result<(), f32> + Sync,
    ) -> Result<Vec<T>> {
        // The header has been checked, so this is no more than the file holds; the machine may still lack the memory.
        let elements: usize = info.shape.iter().product();
        let mut values: Vec<T> = Vec::new();
        values.try_reserve_exact(elements).map_err(|_| {
            Error::tensor(
                &self.path,
                name,
                format!("has {elements} elements, and there is no memory for them"),
                "use a smaller model or a machine with more memory",
            )
        })?;
        let (mut at, end) = (self.data_start + info.data_offsets.0, self.data_start + info.data_offsets.1);
        if let Source::Mapped(mapped) = &self.source {
            mapped.fetch(at..end);
        }
        while at < end {
            let piece = at..end.min(at + PIECE_BYTES);
            let elements = self.source.bytes()[piece.clone()].as_chunks::<N>().0;
            let from = values.len();
            values.resize(from + elements.len(), T::default());
            let pieces = values[from..].par_chunks_mut(SPLIT).zip(elements.par_chunks(SPLIT));
            pieces.try_for_each(|(out, elements)| convert(elements, out)).map_err(|value| Error::Overflow {
                path: self.path.clone(),
                tensor: name.to_owned(),
                value,
            })?;
            if let Source::Mapped(mapped) = &self.source {
                mapped.release(piece.clone());
            }
            at = piece.end;
        }
        Ok(values)
    }
}

fn too_short(path: &Path, total: u64) -> Error {
    Error::checkpoint(path, format!("the file has {total} bytes, which is no safetensors file"), DOWNLOAD_AGAIN)
}

/// The header's length, held against the file's before anything is allocated.
fn header_len(path: &Path, prefix: [u8; LENGTH_BYTES], total: u64) -> Result<usize> {
    let claimed = u64::from_le_bytes(prefix);
    if claimed > MAX_HEADER_BYTES {
        return Err(Error::checkpoint(
            path,
            format!("the header claims {claimed} bytes, so this is no safetensors file"),
            DOWNLOAD_AGAIN,
        ));
    }
    if claimed > total.saturating_sub(LENGTH_BYTES as u64) {
        return Err(Error::checkpoint(
            path,
            format!("the file ends at byte {total}, inside its header of {claimed} bytes: it is truncated"),
            DOWNLOAD_AGAIN,
        ));
    }
    Ok(claimed as usize)
}

/// Parses the header. `Metadata` checks while it parses that the tensors follow each other without gaps and that each
/// is as long as its shape and type say; here the end of the last is held against the end of the file.
fn parse_header(path: &Path, header: &[u8], total: u64) -> Result<Metadata> {
    let metadata: Metadata = serde_json::from_slice(header)
        .map_err(|error| Error::checkpoint(path, format!("the header is damaged: {error}"), DOWNLOAD_AGAIN))?;
    let described = (metadata.data_len() as u64).saturating_add((LENGTH_BYTES + header.len()) as u64);
    if described != total {
        let verdict = if total < described { "it is truncated" } else { "something was appended to it" };
        return Err(Error::checkpoint(
            path,
            format!("the file has {total} bytes, but its header describes {described}: {verdict}"),
            DOWNLOAD_AGAIN,
        ));
    }
    Ok(metadata)
}
