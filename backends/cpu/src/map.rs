//! Files as memory: weights are read where the system keeps them anyway, without a copy of their own.

use memmap2::Mmap;
use std::fs::File;
use std::io;
use std::ops::Range;

/// A file mapped for reading.
///
/// The file must not change while it is mapped: what is read then is undefined, and if another process shortens it, the
/// system ends this program where it reads beyond the new end. Programs that replace a file by renaming another one do no
/// harm.
#[derive(Debug)]
pub struct Mapped(Mmap);

impl Mapped {
    /// Maps the whole file.
    ///
    /// # Errors
    /// The system's, for instance for an empty file or one that is none, like a pipe.
    pub fn open(file: &File) -> io::Result<Self> {
        // SAFETY: the mapping is private and for reading only, and lives as long as this value. That nobody changes the file
        // meanwhile cannot be checked; callers are told so above, and every program that maps weights relies on it.
        unsafe { Mmap::map(file) }.map(Self)
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Asks the system to read a part of the file ahead. Only a hint; a range outside the file is ignored.
    pub fn fetch(&self, range: Range<usize>) {
        #[cfg(unix)]
        if range.start < range.end && range.end <= self.0.len() {
            let _ = self.0.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Gives the memory of a part of the file back; it is read from the file again if it is looked at once more. Only a
    /// hint; a range outside the file is ignored.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if range.start < range.end && range.end <= self.0.len() {
            // SAFETY: the pages are those of a file, unchanged since they were read, so the system can drop them at any
            // time and read the same again; references into them stay valid.
            let _ =
                unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_is_its_bytes_also_after_a_release() {
        let path = std::env::temp_dir().join(format!("fasa-map-{}", std::process::id()));
        let bytes: Vec<u8> = (0..100_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        std::fs::write(&path, &bytes).expect("written");
        let mapped = Mapped::open(&File::open(&path).expect("there")).expect("mapped");
        assert!(mapped.bytes() == bytes);
        let (start, end) = (5, bytes.len() - 3);
        for range in [start..end, 0..bytes.len(), 9..9, bytes.len()..bytes.len() + 1, 70_000..70_001] {
            mapped.fetch(range.clone());
            mapped.release(range);
            assert!(mapped.bytes() == bytes);
        }
        // Renamed over, the mapping keeps the old file.
        let other = path.with_extension("new");
        std::fs::write(&other, b"short").expect("written");
        std::fs::rename(&other, &path).expect("renamed");
        assert!(mapped.bytes() == bytes);
        std::fs::write(&path, b"").expect("written");
        assert!(Mapped::open(&File::open(&path).expect("there")).map_or(true, |empty| empty.bytes().is_empty()));
        std::fs::remove_file(&path).expect("removed");
    }
}
