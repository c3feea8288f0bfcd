//! The file: rows of all layers and heads, segment after segment.
//!
//! A segment holds [`SEGMENT`] rows of every layer and head, those of one head one after the other: the file grows at its
//! end, a dense pass over a head reads long stretches, and a row is a key and its value side by side. Behind the last
//! segment is a byte that is never written, so no write makes a file that was cut as long as it was.

use super::{Error, Result, TierShape};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Rows per segment and head.
pub(super) const SEGMENT: usize = 512;

/// See above.
const END: u64 = 1;

#[derive(Debug)]
pub(super) struct RowFile {
    folder: PathBuf,
    file: File,
    shape: TierShape,
    segments: usize,
}

impl RowFile {
    pub(super) fn create(folder: &Path, shape: TierShape) -> Result<Self> {
        let file = match cfg!(unix) {
            true => tempfile::tempfile_in(folder),
            false => Err(io::Error::new(io::ErrorKind::Unsupported, "this system reads no files at an offset")),
        };
        let file = file.map_err(|source| Error::Create { folder: folder.to_owned(), source })?;
        Ok(Self { folder: folder.to_owned(), file, shape, segments: 0 })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn capacity(&self) -> usize {
        self.segments * SEGMENT
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes_of(self.segments)
    }

    fn bytes_of(&self, segments: usize) -> u64 {
        let rows = (self.shape.layers * self.shape.kv_heads * SEGMENT) as u64;
        match segments {
            0 => 0,
            _ => segments as u64 * rows * self.shape.row() as u64 + END,
        }
    }

    /// Room for `rows` rows of every head.
    pub(super) fn reserve(&mut self, rows: usize) -> Result<()> {
        let segments = rows.div_ceil(SEGMENT);
        if segments <= self.segments {
            return Ok(());
        }
        self.check()?;
        let (from, to) = (self.bytes(), self.bytes_of(segments));
        allocate(&self.file, from, to).map_err(|source| {
            // What was taken of a part of it is given back.
            let _ = self.file.set_len(from);
            Error::Full { folder: self.folder.clone(), bytes: to, source }
        })?;
        self.segments = segments;
        self.check()
    }

    /// Whether the file is as long as it was left.
    pub(super) fn check(&self) -> Result<()> {
        let (want, got) = (self.bytes(), self.file.metadata().map_err(|error| self.lost(error))?.len());
        match want == got {
            true => Ok(()),
            false => Err(Error::Changed { folder: self.folder.clone(), want, got }),
        }
    }

    /// Where a row of a head lies, and how many rows follow it without a gap, itself included.
    fn place(&self, layer: usize, head: usize, row: usize) -> (u64, usize) {
        let stretch = ((row / SEGMENT * self.shape.layers + layer) * self.shape.kv_heads + head) as u64;
        let within = row % SEGMENT;
        ((stretch * SEGMENT as u64 + within as u64) * self.shape.row() as u64, SEGMENT - within)
    }

    /// Fills `rows` with rows of a head, from `row` on.
    pub(super) fn read(&self, layer: usize, head: usize, row: usize, rows: &mut [u8]) -> Result<()> {
        let (mut row, mut rest) = (row, rows);
        while !rest.is_empty() {
            let (at, follow) = self.place(layer, head, row);
            let (now, later) = rest.split_at_mut((follow * self.shape.row()).min(rest.len()));
            match read_at(&self.file, now, at) {
                Ok(()) => {}
                // Shorter than it was a moment ago.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.check()?;
                    return Err(self.lost(error));
                }
                Err(error) => return Err(self.lost(error)),
            }
            row += follow;
            rest = later;
        }
        Ok(())
    }

    /// Asks the system to have a row in memory soon, without waiting. Only a hint.
    pub(super) fn announce(&self, layer: usize, head: usize, row: usize) {
        #[cfg(target_os = "linux")]
        {
            let len = std::num::NonZeroU64::new(self.shape.row() as u64);
            let _ = rustix::fs::fadvise(&self.file, self.place(layer, head, row).0, len, rustix::fs::Advice::WillNeed);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (layer, head, row);
    }

    /// Writes rows of a head, from `row` on.
    pub(super) fn write(&self, layer: usize, head: usize, row: usize, rows: &[u8]) -> Result<()> {
        let (mut row, mut rest) = (row, rows);
        while !rest.is_empty() {
            let (at, follow) = self.place(layer, head, row);
            let (now, later) = rest.split_at((follow * self.shape.row()).min(rest.len()));
            write_at(&self.file, now, at).map_err(|error| self.lost(error))?;
            row += follow;
            rest = later;
        }
        Ok(())
    }

    fn lost(&self, source: io::Error) -> Error {
        Error::Lost { folder: self.folder.clone(), source }
    }
}

/// Takes the disk's room for the bytes `from..to`, the end of the file.
fn allocate(file: &File, from: u64, to: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        loop {
            match fallocate(file, FallocateFlags::empty(), from, to - from) {
                Err(Errno::INTR) => continue,
                // Some file systems cannot.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => break,
                done => return Ok(done?),
            }
        }
    }
    check_room(file, to - from)?;
    let zeros = vec![0; 1 << 20];
    let mut at = from;
    while at < to {
        let some = (to - at).min(zeros.len() as u64) as usize;
        write_at(file, &zeros[..some], at)?;
        at += some as u64;
    }
    Ok(())
}

/// Refuses more than the file system has left, before it is filled for nothing.
fn check_room(file: &File, bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        let system = rustix::fs::fstatvfs(file)?;
        if system.f_bavail.saturating_mul(system.f_frsize) < bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, bytes);
    Ok(())
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(not(unix))]
fn read_at(_: &File, _: &mut [u8], _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(unix))]
fn write_at(_: &File, _: &[u8], _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
impl RowFile {
    /// Another handle to the file, for tests that damage it.
    pub(super) fn handle(&self) -> File {
        self.file.try_clone().expect("another handle")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_disk_has_is_refused_at_once() {
        let file = tempfile::tempfile().expect("a folder for temporary files");
        check_room(&file, 1).expect("room for a byte");
        #[cfg(target_os = "linux")]
        {
            let error = check_room(&file, 1 << 60).expect_err("an exabyte");
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
    }
}
