//! The second tier: keys and values in a file, of which memory holds only the rows that steps choose again and again.
//!
//! A file of its own, without a name, keeps every row: [`Tier::write`] puts new ones there, and no other copy is needed. A
//! dense pass streams through it, a few hundred rows at a time. A FASA step reads the rows that it chose, each with one
//! call, unless the step before chose them too: recently chosen rows stay in memory, per head a few times as many as a
//! step keeps, so the first tokens and the last ones, which every step keeps, are always among them.
//!
//! The file is read and written, never mapped: how much memory the process takes is then decided here, a file that became
//! shorter is an error where a mapping would end the process, and the system keeps what it likes of the file in memory
//! that it can take back.

mod file;
mod layer;
mod recent;
mod tile;

pub use layer::TierLayer;

use crate::layer::Numbers;
use file::RowFile;
use recent::Recent;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use tile::Tile;

/// Why a tier fails. Each message names the folder, the problem and the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What the kernels refuse.
    #[error(transparent)]
    Core(#[from] fasa_core::Error),

    /// The file cannot be made.
    #[error("`{}`: cannot make a file for the tiered cache in this folder; name another one with `--cache-dir`", .folder.display())]
    Create {
        /// The folder.
        folder: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },

    /// There is no room for more rows.
    #[error("`{}`: the tiered cache needs {bytes} bytes in this folder and cannot have them; make room there, name a folder on another disk with `--cache-dir`, or shorten the context", .folder.display())]
    Full {
        /// The folder.
        folder: PathBuf,
        /// Bytes of the whole file.
        bytes: u64,
        /// The system's reason.
        source: std::io::Error,
    },

    /// The file has not the length that it was given: somebody else changed it.
    #[error("`{}`: the file of the tiered cache has {got} bytes instead of {want}: something else changed it; run again, and let nothing touch the open files of this program", .folder.display())]
    Changed {
        /// The folder.
        folder: PathBuf,
        /// Bytes that it should have.
        want: u64,
        /// Bytes that it has.
        got: u64,
    },

    /// A row cannot be read or written.
    #[error("`{}`: the file of the tiered cache cannot be used any more; check that disk, or name a folder on another one with `--cache-dir`", .folder.display())]
    Lost {
        /// The folder.
        folder: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// Results of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Number formats of a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
}

impl Format {
    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 => 2,
        }
    }
}

/// What a tier holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierShape {
    /// Layers.
    pub layers: usize,
    /// KV heads of each.
    pub kv_heads: usize,
    /// Numbers per key and per value.
    pub dim: usize,
    /// The format of each number.
    pub format: Format,
}

impl TierShape {
    /// Bytes of a key, or of a value.
    pub(crate) fn half_row(&self) -> usize {
        self.dim * self.format.bytes()
    }

    /// Bytes of a key and its value, which lie together.
    pub(crate) fn row(&self) -> usize {
        2 * self.half_row()
    }
}

/// What went between the file and the memory so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Chosen rows that were in memory.
    pub rows_at_hand: u64,
    /// Chosen rows that were read from the file.
    pub rows_fetched: u64,
    /// Bytes read, those of dense passes included.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
}

impl Traffic {
    /// The share of chosen rows that were in memory; `None` before any was chosen.
    pub fn hit_rate(&self) -> Option<f64> {
        let rows = self.rows_at_hand + self.rows_fetched;
        (rows > 0).then(|| self.rows_at_hand as f64 / rows as f64)
    }

    /// What was added since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            rows_at_hand: self.rows_at_hand - before.rows_at_hand,
            rows_fetched: self.rows_fetched - before.rows_fetched,
            bytes_read: self.bytes_read - before.bytes_read,
            bytes_written: self.bytes_written - before.bytes_written,
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    at_hand: AtomicU64,
    fetched: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
}

/// Keys and values of all layers of one text, in a file.
///
/// Every use of a layer first holds the file's length against what it should be. The rows of one head are read and kept
/// under a lock of its own, so heads may be worked on by several threads.
#[derive(Debug)]
pub struct Tier {
    shape: TierShape,
    file: RowFile,
    /// `[layers, kv_heads]`.
    recent: Vec<Mutex<Recent>>,
    counters: Counters,
}

impl Tier {
    /// An empty tier whose file lies in `folder`. It has no name there: it goes with the process, however that ends.
    ///
    /// # Errors
    /// [`Error::Create`] if the folder takes no file.
    pub fn create(folder: &Path, shape: TierShape) -> Result<Self> {
        let file = RowFile::create(folder, shape)?;
        let mut recent = Vec::new();
        recent.resize_with(shape.layers * shape.kv_heads, || Mutex::new(Recent::default()));
        Ok(Self { shape, file, recent, counters: Counters::default() })
    }

    /// What it holds.
    pub fn shape(&self) -> TierShape {
        self.shape
    }

    /// Where its file lies.
    pub fn folder(&self) -> &Path {
        self.file.folder()
    }

    /// Rows per head that fit.
    pub fn capacity(&self) -> usize {
        self.file.capacity()
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> u64 {
        self.file.bytes()
    }

    /// Bytes of memory that recently chosen rows take.
    pub fn resident_bytes(&self) -> u64 {
        self.recent.iter().map(|head| lock(head).bytes() as u64).sum()
    }

    /// What went between the file and the memory so far.
    pub fn traffic(&self) -> Traffic {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            rows_at_hand: of(&self.counters.at_hand),
            rows_fetched: of(&self.counters.fetched),
            bytes_read: of(&self.counters.read),
            bytes_written: of(&self.counters.written),
        }
    }

    /// Makes room for `rows` rows per head. The disk's room is really taken: what was reserved can be written.
    ///
    /// # Errors
    /// [`Error::Full`] if there is no room, [`Error::Changed`] if the file is not as it was left.
    pub fn reserve(&mut self, rows: usize) -> Result<()> {
        self.file.reserve(rows)
    }

    /// Writes rows of a layer from `position` on: `keys` and `values` are `[kv_heads, new, dim]`.
    ///
    /// # Errors
    /// [`Error::Core`] if an array has another size, or rows were not reserved; [`Error::Changed`] or [`Error::Lost`] if the
    /// file fails.
    pub fn write(&self, layer: usize, position: usize, keys: Numbers<'_>, values: Numbers<'_>) -> Result<()> {
        let TierShape { kv_heads, dim, .. } = self.shape;
        let per_row = kv_heads * dim;
        let new = keys.len() / per_row;
        let (keys, values) = (self.bytes_of(keys)?, self.bytes_of(values)?);
        let half = self.shape.half_row();
        for (what, got) in [("keys", keys.len()), ("values", values.len())] {
            let want = kv_heads * new * half;
            if got != want || new == 0 {
                return Err(fasa_core::Error::Length { what, want, got }.into());
            }
        }
        self.check_rows(layer, position..position + new)?;
        self.file.check()?;
        let mut rows = vec![0; new * self.shape.row()];
        for head in 0..kv_heads {
            let part = head * new * half..(head + 1) * new * half;
            let pairs = keys[part.clone()].chunks_exact(half).zip(values[part].chunks_exact(half));
            for (row, (key, value)) in rows.chunks_exact_mut(2 * half).zip(pairs) {
                row[..half].copy_from_slice(key);
                row[half..].copy_from_slice(value);
            }
            self.file.write(layer, head, position, &rows)?;
            let mut recent = lock(self.recent(layer, head));
            match new {
                1 => recent.put(position as u32, &rows),
                _ => recent.forget(position as u32..(position + new) as u32),
            }
        }
        self.counters.written.fetch_add((kv_heads * rows.len()) as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Reads rows of all heads of a layer: `keys` and `values` become `[kv_heads, rows, dim]`, as bytes.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn read(&self, layer: usize, rows: Range<usize>, keys: &mut [u8], values: &mut [u8]) -> Result<()> {
        self.check_rows(layer, rows.clone())?;
        self.file.check()?;
        let per_head = rows.len() * self.shape.half_row();
        for (what, got) in [("keys", keys.len()), ("values", values.len())] {
            let want = self.shape.kv_heads * per_head;
            if got != want || per_head == 0 {
                return Err(fasa_core::Error::Length { what, want, got }.into());
            }
        }
        let mut tile = Tile::default();
        for (head, (keys, values)) in keys.chunks_exact_mut(per_head).zip(values.chunks_exact_mut(per_head)).enumerate()
        {
            let mut from = rows.start;
            while from < rows.end {
                let count = tile.load(self, layer, head, from, rows.end - from)?;
                let at = (from - rows.start) * self.shape.half_row();
                let (some_keys, some_values) = tile.bytes(&self.shape);
                keys[at..at + some_keys.len()].copy_from_slice(some_keys);
                values[at..at + some_values.len()].copy_from_slice(some_values);
                from += count;
            }
        }
        Ok(())
    }

    /// The first `len` rows of a layer, for attention.
    ///
    /// # Errors
    /// [`Error::Core`] for no row, or more than there is room for; [`Error::Changed`] if the file is not as it was left.
    pub fn layer(&self, layer: usize, len: usize) -> Result<TierLayer<'_>> {
        self.check_rows(layer, 0..len)?;
        self.file.check()?;
        Ok(TierLayer::new(self, layer, len))
    }

    fn recent(&self, layer: usize, head: usize) -> &Mutex<Recent> {
        &self.recent[layer * self.shape.kv_heads + head]
    }

    fn check_rows(&self, layer: usize, rows: Range<usize>) -> Result<()> {
        if layer >= self.shape.layers || rows.is_empty() || rows.end > self.capacity() {
            let problem = "it has at least one row, and no more than were reserved";
            return Err(fasa_core::Error::Range { what: "tier", problem }.into());
        }
        Ok(())
    }

    fn bytes_of<'a>(&self, numbers: Numbers<'a>) -> Result<&'a [u8]> {
        match (numbers, self.shape.format) {
            (Numbers::F32(numbers), Format::F32) => Ok(bytemuck::cast_slice(numbers)),
            (Numbers::F16(numbers), Format::F16) => Ok(bytemuck::cast_slice(numbers)),
            _ => Err(fasa_core::Error::Range { what: "tier", problem: "it has another number format" }.into()),
        }
    }
}

fn lock(recent: &Mutex<Recent>) -> std::sync::MutexGuard<'_, Recent> {
    recent.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory for numbers of either format.
#[derive(Debug, Default)]
struct Words(Vec<u32>);

impl Words {
    /// At least so many bytes.
    fn resize(&mut self, bytes: usize) {
        self.0.resize(bytes.div_ceil(4), 0);
    }

    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }

    /// The first `count` numbers.
    fn numbers(&self, format: Format, count: usize) -> Numbers<'_> {
        match format {
            Format::F32 => Numbers::F32(self.of(count)),
            Format::F16 => Numbers::F16(self.of(count)),
        }
    }

    fn of<E: bytemuck::Pod>(&self, count: usize) -> &[E] {
        &bytemuck::cast_slice(&self.0)[..count]
    }
}

/// Whether what is written in `folder` stays in memory, so that a tier there saves none (tmpfs and ramfs on Linux).
pub fn is_in_memory(folder: &Path) -> bool {
    #[cfg(target_os = "linux")]
    {
        const TMPFS: i64 = 0x0102_1994;
        const RAMFS: i64 = 0x8584_58f6;
        #[allow(clippy::unnecessary_cast)] // another width on some machines
        rustix::fs::statfs(folder).is_ok_and(|system| matches!(system.f_type as i64, TMPFS | RAMFS))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = folder;
        false
    }
}

#[cfg(test)]
mod tests;
