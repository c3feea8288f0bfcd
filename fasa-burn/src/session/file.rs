//! Tables with their checksums, written to a new file and read from one that may be damaged.

use super::SAVE_AGAIN;
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

const MAGIC: [u8; 8] = *b"FASASESS";
const VERSION: u32 = 1;
/// Magic, version, length and checksum of the header.
const FRONT: u64 = 20;
const CHECKSUM: u64 = 4;

/// The header holds the messages of a conversation, which are text of at most so many tokens.
const MAX_HEADER_BYTES: u32 = 1 << 28;

pub(super) struct Writer {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
    bytes: u64,
}

impl Writer {
    pub fn create(path: &Path, header: &[u8]) -> Result<Self> {
        let length = u32::try_from(header.len()).ok().filter(|length| *length <= MAX_HEADER_BYTES);
        let Some(length) = length else {
            return Err(Error::session(path, "would have a header above 256 MB", "save a shorter conversation"));
        };
        // Beside its final place, for a file can only be renamed within one file system.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = NamedTempFile::new_in(folder).map_err(|error| Error::io(path, error))?;
        let mut writer = Self { path: path.to_owned(), file: BufWriter::with_capacity(1 << 20, file), bytes: 0 };
        writer.write(&MAGIC)?;
        writer.write(&VERSION.to_le_bytes())?;
        writer.write(&length.to_le_bytes())?;
        writer.write(&crc32fast::hash(header).to_le_bytes())?;
        writer.write(header)?;
        Ok(writer)
    }

    /// A table and its checksum.
    pub fn table(&mut self, bytes: &[u8]) -> Result<()> {
        if cfg!(target_endian = "big") {
            return Err(Error::unsupported(
                &self.path,
                "a session on a big-endian machine",
                "use a little-endian machine",
            ));
        }
        self.write(bytes)?;
        self.write(&crc32fast::hash(bytes).to_le_bytes())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|error| Error::io(&self.path, error))
    }

    /// Gives the file its name; returns its size.
    pub fn finish(self) -> Result<u64> {
        let Self { path, file, bytes } = self;
        let io = |error| Error::io(&path, error);
        let file = file.into_inner().map_err(|error| io(error.into_error()))?;
        file.as_file().sync_all().map_err(io)?;
        file.persist(&path).map_err(|error| io(error.error))?;
        Ok(bytes)
    }
}

pub(super) struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    /// Bytes from the end of the header to the end of the file.
    left: u64,
}

impl Reader {
    /// Opens a file and reads its header, whose length is held against the file's before anything is allocated.
    pub fn open(path: &Path) -> Result<(Self, Vec<u8>)> {
        let io = |error| Error::io(path, error);
        let total = crate::checkpoint::regular_file_len(path)?;
        let mut file = BufReader::with_capacity(1 << 20, File::open(path).map_err(io)?);
        let mut front = [0; FRONT as usize];
        if total < FRONT {
            return Err(no_session(path));
        }
        file.read_exact(&mut front).map_err(io)?;
        let (magic, numbers) = front.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(no_session(path));
        }
        let mut numbers = numbers.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
        let mut number = || numbers.next().unwrap_or_default();
        let (version, length, checksum) = (number(), number(), number());
        if version != VERSION {
            let problem = format!("has version {version}, this program reads {VERSION}");
            return Err(Error::session(path, problem, SAVE_AGAIN));
        }
        if length > MAX_HEADER_BYTES || u64::from(length) > total - FRONT {
            let problem = format!("ends at byte {total}, inside its header of {length} bytes: it is truncated");
            return Err(Error::session(path, problem, SAVE_AGAIN));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(io)?;
        let left = total - FRONT - u64::from(length);
        let reader = Self { path: path.to_owned(), file, left };
        match crc32fast::hash(&header) == checksum {
            true => Ok((reader, header)),
            false => Err(reader.damaged("its header")),
        }
    }

    /// Refuses a file that is longer or shorter than tables of these sizes with their checksums.
    pub fn expect(&self, tables: impl Iterator<Item = u64>) -> Result<()> {
        let wanted = tables.fold(0u64, |sum, bytes| sum.saturating_add(bytes).saturating_add(CHECKSUM));
        if wanted == self.left {
            return Ok(());
        }
        let verdict = if self.left < wanted { "it is truncated" } else { "something was appended to it" };
        let problem = format!("has {} bytes behind its header, which describes {wanted}: {verdict}", self.left);
        Err(Error::session(&self.path, problem, SAVE_AGAIN))
    }

    /// Fills `bytes` with the next table.
    pub fn table(&mut self, bytes: &mut [u8]) -> Result<()> {
        let mut checksum = [0; CHECKSUM as usize];
        let read = self.file.read_exact(bytes).and_then(|()| self.file.read_exact(&mut checksum));
        read.map_err(|error| Error::io(&self.path, error))?;
        match crc32fast::hash(bytes) == u32::from_le_bytes(checksum) {
            true => Ok(()),
            false => Err(self.damaged("a table")),
        }
    }

    fn damaged(&self, what: &str) -> Error {
        Error::session(&self.path, format!("is damaged: the checksum of {what} does not fit"), SAVE_AGAIN)
    }
}

fn no_session(path: &Path) -> Error {
    Error::session(path, "is no saved session", "pass a file that `--save-session` wrote")
}
