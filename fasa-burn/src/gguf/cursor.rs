//! Reading numbers and texts from bytes that may lie about their lengths.

use std::path::Path;

use super::header::Value;
use crate::error::{Error, Result};

/// The longest name of a tensor or a field; the format's own limits are 64 and 65,535.
const MAX_NAME: usize = 65_535;

pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, at: 0 }
    }

    /// Bytes read so far.
    pub fn at(&self) -> usize {
        self.at
    }

    pub fn error(&self, problem: impl Into<String>) -> Error {
        Error::checkpoint(self.path, problem, "download it again")
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8]> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(len).ok().filter(|len| *len <= left) {
            Some(len) => {
                self.at += len;
                Ok(&self.bytes[self.at - len..self.at])
            }
            None => Err(self.error(format!(
                "byte {} of the header is followed by {len} bytes, but the file has {left} more: it is truncated or damaged",
                self.at
            ))),
        }
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut number = [0; N];
        number.copy_from_slice(self.take(N as u64)?);
        Ok(number)
    }

    pub fn u32(&mut self) -> Result<u32> {
        self.number().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64> {
        self.number().map(u64::from_le_bytes)
    }

    /// A count of things that take at least `least` bytes each.
    pub fn count(&mut self, least: usize) -> Result<usize> {
        let (count, left) = (self.u64()?, self.bytes.len() - self.at);
        match usize::try_from(count).ok().filter(|count| *count <= left / least) {
            Some(count) => Ok(count),
            None => {
                Err(self.error(format!("the header lists {count} entries, more than the file's {left} bytes hold")))
            }
        }
    }

    pub fn text(&mut self) -> Result<&'a str> {
        let len = self.u64()?;
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes).map_err(|_| self.error(format!("the text before byte {} is no UTF-8", self.at)))
    }

    pub fn name(&mut self) -> Result<String> {
        let text = self.text()?;
        match text.len() <= MAX_NAME {
            true => Ok(text.to_owned()),
            false => Err(self.error(format!("a name in the header has {} bytes", text.len()))),
        }
    }

    pub fn value(&mut self) -> Result<Value> {
        let kind = self.u32()?;
        if kind != 9 {
            return self.scalar(kind);
        }
        let kind = self.u32()?;
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            _ => {
                return Err(
                    self.error(format!("the header has a list of type {kind}, which this program does not know"))
                );
            }
        };
        let count = self.count(least)?;
        if kind == 8 {
            let texts: Result<Vec<String>> = (0..count).map(|_| self.text().map(str::to_owned)).collect();
            return texts.map(Value::Texts);
        }
        let mut numbers = Vec::with_capacity(count);
        for _ in 0..count {
            numbers.push(match self.scalar(kind)? {
                Value::Unsigned(x) => x as f64,
                Value::Signed(x) => x as f64,
                Value::Float(x) => x,
                Value::Flag(x) => f64::from(u8::from(x)),
                Value::Text(_) | Value::Texts(_) | Value::Numbers(_) => continue,
            });
        }
        Ok(Value::Numbers(numbers))
    }

    fn scalar(&mut self, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.number()?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.number()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.number()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.number()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.number()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.number()?).into()),
            7 => Value::Flag(u8::from_le_bytes(self.number()?) != 0),
            8 => Value::Text(self.text()?.to_owned()),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.number()?)),
            12 => Value::Float(f64::from_le_bytes(self.number()?)),
            _ => {
                return Err(
                    self.error(format!("the header has a value of type {kind}, which this program does not know"))
                );
            }
        })
    }
}
