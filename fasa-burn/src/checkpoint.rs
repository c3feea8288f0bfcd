//! Weights on disk: one safetensors file, a folder with one or with an index and its shards, or a GGUF file.
//!
//! Opening maps the files and checks their headers; a tensor's bytes are looked at when it is asked for, converted piece by
//! piece into what is wanted, and given back, so the peak is a piece above what the model keeps. No length in a file is
//! believed before it has been held against the file's real size. Files must not be changed while they are loaded
//! ([`fasa_cpu::map`]); replacing them by renaming does no harm.

mod convert;
mod index;
mod shard;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorInfo};

use crate::error::{Error, Result};
use crate::gguf::{self, Entry as GgufEntry, Gguf};
pub(crate) use convert::Kept;
use shard::Shard;

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// The tensors of a checkpoint by name, read on demand.
#[derive(Debug)]
pub struct Checkpoint {
    /// What was opened, for errors that concern no single file.
    path: PathBuf,
    shards: Vec<Shard>,
    gguf: Option<Gguf>,
    /// Sorted by name, so that listings and reports come in the same order every time.
    tensors: BTreeMap<String, Tensor>,
}

#[derive(Debug)]
struct Tensor {
    place: Place,
    /// Whether it has been given out.
    read: AtomicBool,
}

#[derive(Debug)]
enum Place {
    /// In a safetensors file, by its number.
    Shard(usize, TensorInfo),
    /// In the GGUF file.
    Gguf(GgufEntry),
}

impl Tensor {
    fn new(place: Place) -> Self {
        Self { place, read: AtomicBool::new(false) }
    }

    fn shape(&self) -> &[usize] {
        match &self.place {
            Place::Shard(_, info) => &info.shape,
            Place::Gguf(entry) => &entry.shape,
        }
    }

    fn is_half(&self) -> bool {
        match &self.place {
            Place::Shard(_, info) => matches!(info.dtype, Dtype::F16 | Dtype::BF16),
            Place::Gguf(entry) => entry.is_half,
        }
    }
}

impl Checkpoint {
    /// Opens a `.safetensors` file, a `.gguf` file, or a folder (with `model.safetensors`, else with
    /// `model.safetensors.index.json` and the shards it names), and checks every header against its file.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read; [`Error::Unsupported`] for other file formats; [`Error::Checkpoint`] if
    /// a file is truncated or damaged, a shard is missing, or index and shards disagree.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let kind = fs::metadata(path).map_err(|error| Error::io(path, error))?;
        if kind.is_dir() {
            let single = path.join(SINGLE_FILE);
            let index = path.join(INDEX_FILE);
            return if single.exists() {
                Self::from_shards(path, vec![Shard::open(&single)?])
            } else if index.exists() {
                Self::open_index(path, &index)
            } else {
                Err(Error::checkpoint(
                    path,
                    format!("the folder holds neither {SINGLE_FILE} nor {INDEX_FILE}"),
                    "name the folder of a checkpoint in safetensors format (convert .bin weights first), or a .gguf file itself",
                ))
            };
        }
        if gguf::is_gguf(path) {
            return Self::from_gguf(Gguf::open(path)?);
        }
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            return Err(Error::unsupported(
                path,
                "a checkpoint in this format",
                "name a .safetensors file, the folder that holds it, or a .gguf file",
            ));
        }
        Self::from_shards(path, vec![Shard::open(path)?])
    }

    /// Opens a safetensors file that is already in memory, such as one embedded in the program; `name` is its name in
    /// errors.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the bytes are truncated or damaged.
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        let path = Path::new(name);
        Self::from_shards(path, vec![Shard::from_bytes(path, bytes.into())?])
    }

    fn open_index(folder: &Path, index: &Path) -> Result<Self> {
        let weight_map = index::read(index)?;
        let mut shards = Vec::new();
        let mut number_of = BTreeMap::new();
        for file in weight_map.values() {
            if let Entry::Vacant(entry) = number_of.entry(file.as_str()) {
                let path = folder.join(file);
                if !path.exists() {
                    return Err(Error::checkpoint(
                        index,
                        format!("names the shard `{file}`, which is not in the folder"),
                        "download the missing shard into the same folder",
                    ));
                }
                entry.insert(shards.len());
                shards.push(Shard::open(&path)?);
            }
        }
        let checkpoint = Self::from_shards(folder, shards)?;
        for (name, file) in &weight_map {
            let found = checkpoint.tensors.get(name).and_then(|tensor| match &tensor.place {
                Place::Shard(number, _) => Some(*number),
                Place::Gguf(_) => None,
            });
            if found != number_of.get(file.as_str()).copied() {
                return Err(Error::tensor(
                    index,
                    name,
                    format!("should be in the shard `{file}`, but is not"),
                    "download the index and all shards of the same revision again",
                ));
            }
        }
        Ok(checkpoint)
    }

    fn from_shards(path: &Path, shards: Vec<Shard>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (number, shard) in shards.iter().enumerate() {
            for (name, info) in shard.tensors() {
                let tensor = Tensor::new(Place::Shard(number, info.clone()));
                match tensors.entry(name) {
                    Entry::Vacant(entry) => entry.insert(tensor),
                    Entry::Occupied(entry) => {
                        let first = match &entry.get().place {
                            Place::Shard(first, _) => shards[*first].path(),
                            Place::Gguf(_) => path,
                        };
                        return Err(Error::tensor(
                            shard.path(),
                            entry.key(),
                            format!("is also in `{}`", first.display()),
                            "keep the shards of one revision only",
                        ));
                    }
                };
            }
        }
        Ok(Self { path: path.to_owned(), shards, gguf: None, tensors })
    }

    /// The tensors of a GGUF file, by their names in `transformers`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an architecture that is not translated; [`Error::Checkpoint`] for two tensors that
    /// would have one name.
    pub fn from_gguf(file: Gguf) -> Result<Self> {
        let path = file.path().to_owned();
        let mut tensors = BTreeMap::new();
        for (name, entry) in file.entries()? {
            if tensors.insert(name.clone(), Tensor::new(Place::Gguf(entry))).is_some() {
                return Err(Error::tensor(&path, &name, "comes twice", "download it again"));
            }
        }
        Ok(Self { path, shards: Vec::new(), gguf: Some(file), tensors })
    }

    /// The folder, the file or the name it was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The shape of a tensor, if there is one of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(Tensor::shape)
    }

    /// Whether all matrices are stored in 16 bits, F16 or BF16, or quantized to fewer.
    pub fn is_half(&self) -> bool {
        let mut matrices = self.tensors.values().filter(|tensor| tensor.shape().len() > 1).peekable();
        matrices.peek().is_some() && matrices.all(Tensor::is_half)
    }

    /// Reads a tensor in row-major order as `f32`: F16 and BF16 exactly, quantized ones dequantized.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if there is no such tensor, its shape is not `shape`, its elements are neither F32, F16
    /// nor BF16, or there is no memory for it; [`Error::Io`] if the file cannot be read any more.
    pub fn tensor_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.read(name, shape, Shard::read_f32, Gguf::entry_f32)
    }

    /// Reads a tensor in row-major order as `f16`. Numbers of F32 and BF16 are rounded to the nearest; the smallest become
    /// zero.
    ///
    /// # Errors
    /// As [`tensor_f32`](Self::tensor_f32), and [`Error::Overflow`] for a finite number beyond the largest of `f16`.
    pub fn tensor_f16(&self, name: &str, shape: &[usize]) -> Result<Vec<f16>> {
        self.read(name, shape, Shard::read_f16, Gguf::entry_f16)
    }

    /// Reads a tensor in row-major order as `bf16`. Numbers of F32 and F16 are rounded to the nearest.
    ///
    /// # Errors
    /// As [`tensor_f16`](Self::tensor_f16), for the largest number of `bf16`.
    pub fn tensor_bf16(&self, name: &str, shape: &[usize]) -> Result<Vec<bf16>> {
        self.read(name, shape, Shard::read_bf16, Gguf::entry_bf16)
    }

    fn read<T>(
        &self,
        name: &str,
        shape: &[usize],
        of_shard: impl FnOnce(&Shard, &str, &TensorInfo) -> Result<Vec<T>>,
        of_gguf: impl FnOnce(&Gguf, &GgufEntry) -> Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        let Some(tensor) = self.tensors.get(name) else {
            return Err(Error::tensor(
                &self.path,
                name,
                "is missing",
                "use the weights that belong to this config.json",
            ));
        };
        let path = match &tensor.place {
            Place::Shard(number, _) => self.shards[*number].path(),
            Place::Gguf(_) => &self.path,
        };
        if tensor.shape() != shape {
            return Err(Error::tensor(
                path,
                name,
                format!("has the shape {:?}, expected {shape:?}", tensor.shape()),
                "use the config.json that belongs to these weights",
            ));
        }
        let values = match (&tensor.place, &self.gguf) {
            (Place::Shard(number, info), _) => of_shard(&self.shards[*number], name, info)?,
            (Place::Gguf(entry), Some(file)) => of_gguf(file, entry)?,
            (Place::Gguf(_), None) => unreachable!("such a place comes with its file"),
        };
        tensor.read.store(true, Ordering::Relaxed);
        Ok(values)
    }

    /// The tensors that have not been given out yet, in alphabetical order. After loading, these
    /// are the ones that the model does not know.
    pub fn unread(&self) -> Vec<&str> {
        self.tensors
            .iter()
            .filter(|(_, tensor)| !tensor.read.load(Ordering::Relaxed))
            .map(|(name, _)| name.as_str())
            .collect()
    }
}

/// The size of a regular file. Anything else (a folder, a pipe) is refused before opening, which could block.
pub(crate) fn regular_file_len(path: &Path) -> Result<u64> {
    let metadata = fs::metadata(path).map_err(|error| Error::io(path, error))?;
    if metadata.is_file() {
        Ok(metadata.len())
    } else {
        let reason = std::io::Error::other("it is not a regular file");
        Err(Error::io(path, reason))
    }
}

/// Reads a whole small file that goes with a checkpoint, refusing one above `max_bytes`.
pub(crate) fn read_whole(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    regular_file_len(path)?;
    let file = fs::File::open(path).map_err(|error| Error::io(path, error))?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too long from one that just fits, whatever its size claims.
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(|error| Error::io(path, error))?;
    if bytes.len() as u64 > max_bytes {
        let reason = std::io::Error::other(format!("it is longer than {max_bytes} bytes"));
        return Err(Error::io(path, reason));
    }
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
