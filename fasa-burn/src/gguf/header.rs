//! The front of a GGUF file: metadata, and where the tensors are.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use fasa_cpu::map::Mapped;

use super::cursor::Cursor;
use super::quant::Format;
use crate::checkpoint::regular_file_len;
use crate::error::{Error, Result};

const MAGIC: u32 = u32::from_le_bytes(*b"GGUF");

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Unsigned integers of any width.
    Unsigned(u64),
    /// Signed integers.
    Signed(i64),
    /// Numbers with a fraction.
    Float(f64),
    /// True or false.
    Flag(bool),
    /// A text.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
    /// A list of anything else.
    Numbers(Vec<f64>),
}

impl Value {
    /// A number, whichever way it is written.
    pub fn number(&self) -> Option<f64> {
        match self {
            Value::Unsigned(x) => Some(*x as f64),
            Value::Signed(x) => Some(*x as f64),
            Value::Float(x) => Some(*x),
            _ => None,
        }
    }

    /// An integer that is not negative.
    pub fn integer(&self) -> Option<u64> {
        match self {
            Value::Unsigned(x) => Some(*x),
            Value::Signed(x) => u64::try_from(*x).ok(),
            _ => None,
        }
    }

    /// A text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Where a tensor lies, and how it is stored.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// As in `transformers`: the outermost dimension first.
    pub shape: Vec<usize>,
    pub format: Format,
    /// In bytes from the start of the file.
    pub start: usize,
    pub end: usize,
}

/// A GGUF file whose front has been read and checked against its length.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    file: Mapped,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Place>,
}

impl Gguf {
    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Checkpoint`] if it is damaged or no GGUF file, [`Error::Unsupported`]
    /// for a version or a way of quantizing that is not read here.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |error| Error::io(path, error);
        if regular_file_len(path)? < 24 {
            return Err(Error::checkpoint(path, "the file is too short for GGUF", "download it again"));
        }
        let file = Mapped::open(&File::open(path).map_err(io)?).map_err(io)?;
        let (metadata, tensors) = parse(path, file.bytes())?;
        Ok(Self { path: path.to_owned(), file, metadata, tensors })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A field of the metadata.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.metadata.get(name)
    }

    /// The names of all fields, in alphabetical order.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// `general.architecture`.
    ///
    /// # Errors
    /// [`Error::Config`] without it.
    pub fn architecture(&self) -> Result<&str> {
        let name = "general.architecture";
        self.get(name).and_then(Value::text).ok_or_else(|| {
            Error::config(&self.path, name, "is missing or no text", "convert the model again with llama.cpp")
        })
    }

    pub(crate) fn tensors(&self) -> &BTreeMap<String, Place> {
        &self.tensors
    }

    pub(crate) fn file(&self) -> &Mapped {
        &self.file
    }
}

/// Metadata and tensors of a file's bytes.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<(BTreeMap<String, Value>, BTreeMap<String, Place>)> {
    let mut cursor = Cursor::new(path, bytes);
    if cursor.u32()? != MAGIC {
        return Err(Error::checkpoint(path, "this is no GGUF file", "name a .gguf file, or download it again"));
    }
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        let mend = "use a file of version 2 or 3 (little-endian)";
        return Err(Error::unsupported(path, format!("version {version} of GGUF"), mend));
    }
    // A tensor has a name's length, a dimension's count, a type and an offset at least; a field a length, a type, a byte.
    let (tensor_count, field_count) = (cursor.count(24)?, cursor.count(13)?);
    let mut metadata = BTreeMap::new();
    for _ in 0..field_count {
        let name = cursor.name()?;
        let value = cursor.value()?;
        if metadata.insert(name.clone(), value).is_some() {
            return Err(cursor.error(format!("field `{name}` comes twice")));
        }
    }
    let mut places = Vec::new();
    for _ in 0..tensor_count {
        places.push(place(&mut cursor, path)?);
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(value) => match value.integer().filter(|n| n.is_power_of_two() && *n <= 1 << 20) {
            Some(alignment) => alignment as usize,
            None => return Err(cursor.error("field `general.alignment` is no power of two up to 1,048,576")),
        },
    };
    let data_start = cursor.at().next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for (name, shape, format, offset, len) in places {
        let start = usize::try_from(offset).ok().and_then(|offset| data_start.checked_add(offset));
        let end = start.and_then(|start| start.checked_add(len)).filter(|end| *end <= bytes.len());
        let (Some(start), Some(end)) = (start, end) else {
            let problem =
                format!("should lie {offset} bytes behind the header, beyond the end of the file: it is truncated");
            return Err(Error::tensor(path, &name, problem, "download it again"));
        };
        if tensors.insert(name.clone(), Place { shape, format, start, end }).is_some() {
            return Err(Error::tensor(path, &name, "comes twice", "download it again"));
        }
    }
    Ok((metadata, tensors))
}

/// Name, shape, format, offset and length in bytes of the next tensor.
fn place(cursor: &mut Cursor<'_>, path: &Path) -> Result<(String, Vec<usize>, Format, u64, usize)> {
    let name = cursor.name()?;
    let dimensions = cursor.u32()?;
    if !(1..=4).contains(&dimensions) {
        return Err(cursor.error(format!("tensor `{name}` has {dimensions} dimensions")));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        shape.push(usize::try_from(cursor.u64()?).unwrap_or(usize::MAX));
    }
    let (number, offset) = (cursor.u32()?, cursor.u64()?);
    let Some(format) = Format::of(number) else {
        return Err(Error::unsupported(
            path,
            format!("tensor `{name}` in GGUF type {number}"),
            format!("use a file in {}", Format::names()),
        ));
    };
    let row = shape[0];
    shape.reverse();
    let elements = shape.iter().try_fold(1usize, |product, n| product.checked_mul(*n));
    let len = elements.filter(|_| row.is_multiple_of(format.block())).and_then(|elements| format.bytes(elements));
    match len {
        Some(len) => Ok((name, shape, format, offset, len)),
        None => Err(cursor.error(format!("tensor `{name}` has the shape {shape:?}, which {format:?} cannot hold"))),
    }
}
