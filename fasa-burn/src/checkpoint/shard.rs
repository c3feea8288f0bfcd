//! One safetensors file: eight bytes with the header's length, the header in JSON, then the tensors without gaps.

use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::regular_file_len;
use crate::error::{Error, Result};

/// Bytes of the header's length, a little-endian u64 at the front.
const LENGTH_BYTES: usize = 8;

/// As in the safetensors library.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bytes read at a time, so that a large tensor is never in memory twice. A multiple of every element's size.
const READ_BYTES: usize = 1 << 20;

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
    /// Locked, because reading moves the file's position.
    File(Mutex<File>),
    Bytes(Cow<'static, [u8]>),
}

impl Shard {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let io = |error| Error::io(path, error);
        let total = regular_file_len(path)?;
        let mut file = File::open(path).map_err(io)?;
        let mut prefix = [0; LENGTH_BYTES];
        if total < LENGTH_BYTES as u64 {
            return Err(too_short(path, total));
        }
        file.read_exact(&mut prefix).map_err(io)?;
        let header_len = header_len(path, prefix, total)?;
        let mut header = vec![0; header_len];
        file.read_exact(&mut header).map_err(io)?;
        Ok(Self {
            path: path.to_owned(),
            source: Source::File(Mutex::new(file)),
            data_start: LENGTH_BYTES + header_len,
            metadata: parse_header(path, &header, total)?,
        })
    }

    pub(super) fn from_bytes(path: &Path, bytes: Cow<'static, [u8]>) -> Result<Self> {
        let total = bytes.len() as u64;
        let Some((prefix, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
            return Err(too_short(path, total));
        };
        let header_len = header_len(path, *prefix, total)?;
        let metadata = parse_header(path, &rest[..header_len], total)?;
        Ok(Self {
            path: path.to_owned(),
            source: Source::Bytes(bytes),
            data_start: LENGTH_BYTES + header_len,
            metadata,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn tensors(&self) -> impl Iterator<Item = (String, &TensorInfo)> {
        self.metadata.tensors().into_iter()
    }

    /// The elements of one of this file's tensors as `f32`.
    pub(super) fn read_f32(&self, name: &str, info: &TensorInfo) -> Result<Vec<f32>> {
        let convert: fn(&[u8], &mut Vec<f32>) = match info.dtype {
            Dtype::F32 => |bytes, out| extend(bytes, out, f32::from_le_bytes),
            Dtype::F16 => |bytes, out| extend(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => |bytes, out| extend(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            other => return Err(self.other_dtype(name, other)),
        };
        self.read(name, info, convert)
    }

    /// The elements of one of this file's tensors as `f16`, if none is too large.
    pub(super) fn read_f16(&self, name: &str, info: &TensorInfo) -> Result<Vec<f16>> {
        let mut overflow = None;
        let mut narrow = |x: f32| {
            let half = f16::from_f32(x);
            if half.is_infinite() && x.is_finite() {
                overflow.get_or_insert(x);
            }
            half
        };
        let values = match info.dtype {
            Dtype::F32 => self.read(name, info, |bytes, out| extend(bytes, out, |b| narrow(f32::from_le_bytes(b)))),
            Dtype::F16 => self.read(name, info, |bytes, out| extend(bytes, out, f16::from_le_bytes)),
            Dtype::BF16 => {
                self.read(name, info, |bytes, out| extend(bytes, out, |b| narrow(bf16::from_le_bytes(b).to_f32())))
            }
            other => Err(self.other_dtype(name, other)),
        }?;
        match overflow {
            Some(value) => Err(Error::Overflow { path: self.path.clone(), tensor: name.to_owned(), value }),
            None => Ok(values),
        }
    }

    fn other_dtype(&self, name: &str, dtype: Dtype) -> Error {
        Error::tensor(&self.path, name, format!("holds {dtype}"), "use a checkpoint in F32, F16 or BF16")
    }

    /// Reads a tensor piece by piece; `convert` appends a piece's elements.
    fn read<T>(&self, name: &str, info: &TensorInfo, mut convert: impl FnMut(&[u8], &mut Vec<T>)) -> Result<Vec<T>> {
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
        let (start, end) = (self.data_start + info.data_offsets.0, self.data_start + info.data_offsets.1);
        match &self.source {
            Source::Bytes(bytes) => convert(&bytes[start..end], &mut values),
            Source::File(file) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                read_in_pieces(&mut file, start, end, |piece| convert(piece, &mut values))
                    .map_err(|error| Error::io(&self.path, error))?;
            }
        }
        Ok(values)
    }
}

/// Appends the elements in `bytes`, whose length is a multiple of `N`.
fn extend<T, const N: usize>(bytes: &[u8], out: &mut Vec<T>, mut convert: impl FnMut([u8; N]) -> T) {
    out.extend(bytes.as_chunks::<N>().0.iter().map(|&b| convert(b)));
}

fn read_in_pieces(file: &mut File, start: usize, end: usize, mut take: impl FnMut(&[u8])) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(start as u64))?;
    let mut buffer = vec![0; READ_BYTES.min(end - start)];
    let mut left = end - start;
    while left > 0 {
        let piece = left.min(buffer.len());
        file.read_exact(&mut buffer[..piece])?;
        take(&buffer[..piece]);
        left -= piece;
    }
    Ok(())
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
