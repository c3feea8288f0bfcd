//! Rows that the device reads out of the host's memory by itself, and writes there: no step waits for the host.
//!
//! CUDA only: its pinned memory has the same addresses on the device. What is read comes over the link, 16 bytes per unit.

use super::host::BLOCK;
use super::{Assigned, HostRows};
use crate::attend::Cache;
use crate::device::{Gpu, buffer};
use crate::error::{Result, ensure};
use crate::length::{Length, tokens};
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Units of a cube.
const UNITS: u32 = 128;

/// Where the blocks of a layer lie.
#[derive(Debug, Clone)]
pub struct Mapped {
    /// Two words per block: its address.
    addresses: Handle,
    blocks: usize,
    heads: usize,
    row: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Config {
    /// Words that a unit moves at once.
    width: usize,
    heads: usize,
    /// Words of a key, or a value.
    words: usize,
    /// Lists per KV head.
    lists: usize,
    device_len: bool,
}

impl Mapped {
    /// That of a layer; `None` where the device cannot read the host's memory.
    pub fn new(gpu: &Gpu, rows: &HostRows, layer: usize) -> Option<Self> {
        if gpu.client.name() != "cuda" || rows.is_pinned() != Some(true) {
            return None;
        }
        let shape = rows.shape();
        let addresses = rows.addresses(layer);
        if addresses.iter().any(|address| !address.is_multiple_of(16)) {
            return None;
        }
        let words: Vec<u32> = addresses.iter().flat_map(|a| [*a as u32, (*a >> 32) as u32]).collect();
        let handle = gpu.client.create_from_slice(bytemuck::cast_slice(&words));
        Some(Self { addresses: handle, blocks: addresses.len(), heads: shape.heads, row: shape.row() })
    }

    fn config(&self, lists: usize, len: &Length) -> Result<Config> {
        ensure(self.row.is_multiple_of(4), "dim", "a row has whole words")?;
        ensure(len.most() > 0 && len.most() <= self.blocks * BLOCK, "len", "the host has fewer rows")?;
        let words = self.row / 4;
        let width = if words.is_multiple_of(4) { 4 } else { 1 };
        Ok(Config { width, heads: self.heads, words, lists, device_len: len.is_on_device() })
    }

    /// Writes the row of the last of `len` tokens to the host: `new` has one row per head. One launch.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if shapes disagree or the host has fewer rows.
    pub fn store(&self, gpu: &Gpu, new: &Cache, len: &Length) -> Result<()> {
        let config = self.config(1, len)?;
        ensure((new.heads, new.capacity, new.words()?) == (self.heads, 1, config.words), "new", "one row per head")?;
        let vectors = self.heads * config.words / config.width;
        // SAFETY: the lengths are those of the shapes; addresses are those of blocks that `HostRows` keeps, and the row lies in one.
        unsafe {
            store_kernel::launch_unchecked(
                &gpu.client,
                CubeCount::Static(vectors.div_ceil(UNITS as usize) as u32, 2, 1),
                CubeDim::new_1d(UNITS),
                config.width,
                buffer(&new.keys, vectors),
                buffer(&new.values, vectors),
                buffer(&self.addresses, 2 * self.blocks),
                buffer(len.handle().unwrap_or(&new.keys), 1),
                len.most() as u32,
                config,
            );
        }
        Ok(())
    }

    /// Reads the rows at `positions`, `[heads * lists, count]`, of the first `len` tokens into `into`, `[heads * lists, count, dim]`
    /// each. The last token's row is taken from `new`, which has one per head. One launch.
    ///
    /// # Errors
    /// As [`store`](Self::store).
    pub fn fetch(
        &self,
        gpu: &Gpu,
        positions: &Handle,
        count: usize,
        new: &Cache,
        len: &Length,
        into: &Cache,
    ) -> Result<()> {
        ensure(into.heads.is_multiple_of(self.heads) && into.heads > 0, "into", "lists share the heads equally")?;
        let config = self.config(into.heads / self.heads, len)?;
        ensure(into.capacity == count && into.words()? == config.words, "into", "it has other rows")?;
        ensure((new.heads, new.capacity, new.words()?) == (self.heads, 1, config.words), "new", "one row per head")?;
        let row = config.words / config.width;
        let vectors = into.heads * count * row;
        let cubes = vectors.div_ceil(UNITS as usize);
        // SAFETY: as in `store`; positions are below the length, and the kernel checks it.
        unsafe {
            fetch_kernel::launch_unchecked(
                &gpu.client,
                CubeCount::Static(cubes.min(32_768) as u32, cubes.div_ceil(32_768) as u32, 2),
                CubeDim::new_1d(UNITS),
                config.width,
                buffer(positions, into.heads * count),
                buffer(&new.keys, self.heads * row),
                buffer(&new.values, self.heads * row),
                buffer(&self.addresses, 2 * self.blocks),
                buffer(len.handle().unwrap_or(positions), 1),
                buffer(&into.keys, vectors),
                buffer(&into.values, vectors),
                len.most() as u32,
                count as u32,
                config,
            );
        }
        Ok(())
    }
}

impl Mapped {
    /// Brings the rows that a book found missing, of `per_head` chosen ones, into its slots: `kept` is `[heads, slots, dim]`. The last
    /// token's row is taken from `new`, which has one per head. One launch.
    ///
    /// # Errors
    /// As [`store`](Self::store).
    pub fn bring(
        &self,
        gpu: &Gpu,
        assigned: &Assigned,
        per_head: usize,
        new: &Cache,
        len: &Length,
        kept: &Cache,
    ) -> Result<()> {
        let config = self.config(1, len)?;
        ensure((kept.heads, kept.words()?) == (self.heads, config.words), "kept", "it has other rows")?;
        ensure((new.heads, new.capacity, new.words()?) == (self.heads, 1, config.words), "new", "one row per head")?;
        let row = config.words / config.width;
        let vectors = self.heads * kept.capacity * row;
        // SAFETY: as in `store`; slots are below the capacity, as `Book` gives them, and missing rows are `per_head` at most.
        unsafe {
            bring_kernel::launch_unchecked(
                &gpu.client,
                CubeCount::Static((per_head * row).div_ceil(UNITS as usize) as u32, self.heads as u32, 2),
                CubeDim::new_1d(UNITS),
                config.width,
                buffer(&assigned.missing, 2 * self.heads * per_head),
                buffer(&assigned.counts, 3 * self.heads),
                buffer(&new.keys, self.heads * row),
                buffer(&new.values, self.heads * row),
                buffer(&self.addresses, 2 * self.blocks),
                buffer(len.handle().unwrap_or(&assigned.missing), 1),
                buffer(&kept.keys, vectors),
                buffer(&kept.values, vectors),
                len.most() as u32,
                per_head as u32,
                kept.capacity as u32,
                config,
            );
        }
        Ok(())
    }
}

/// Address of the first word of a row.
#[cube]
fn address(addresses: &[u32], side: u32, head: u32, position: u32, #[comptime] config: Config) -> u64 {
    let block = (position / comptime!(BLOCK as u32)) as usize;
    let start = u64::cast_from(addresses[2 * block]) + (u64::cast_from(addresses[2 * block + 1]) << 32u64);
    let row =
        (side * comptime!(config.heads as u32) + head) * comptime!(BLOCK as u32) + position % comptime!(BLOCK as u32);
    start + u64::cast_from(row) * comptime!(4 * config.words as u64)
}

/// Ordinary loads, which the units of a plane share out in whole lines: what the host or a launch before wrote is seen by all of them.
#[cube]
fn load<N: Size>(address: u64, #[comptime] width: usize) -> Vector<u32, N> {
    let loaded: Vector<u32, N>;
    if comptime!(width == 4) {
        gpu_asm!("ld.global.v4.u32 {}, [{}];", out(_) loaded, in(_) address, options(readonly));
    } else {
        gpu_asm!("ld.global.u32 {}, [{}];", out(_) loaded, in(_) address, options(readonly));
    }
    loaded
}

#[cube]
fn store<N: Size>(address: u64, words: Vector<u32, N>, #[comptime] width: usize) {
    if comptime!(width == 4) {
        gpu_asm!("st.global.v4.u32 [{}], {};", in(_) address, in(_) words);
    } else {
        gpu_asm!("st.global.u32 [{}], {};", in(_) address, in(_) words);
    }
}

#[cube(launch_unchecked)]
fn store_kernel<N: Size>(
    keys: &[Vector<u32, N>],
    values: &[Vector<u32, N>],
    addresses: &[u32],
    length: &[u32],
    most: u32,
    #[comptime] config: Config,
) {
    let position = tokens(length, most, config.device_len) - 1;
    let of_row = comptime!((config.words / config.width) as u32);
    let i = CUBE_POS_X * UNITS + UNIT_POS;
    if i < comptime!(config.heads as u32) * of_row {
        let at = address(addresses, CUBE_POS_Y, i / of_row, position, config);
        let at = at + u64::cast_from(i % of_row) * comptime!(4 * config.width as u64);
        if CUBE_POS_Y == 0 {
            store::<N>(at, keys[i as usize], config.width);
        } else {
            store::<N>(at, values[i as usize], config.width);
        }
    }
}

#[cube(launch_unchecked)]
fn fetch_kernel<N: Size>(
    positions: &[u32],
    new_keys: &[Vector<u32, N>],
    new_values: &[Vector<u32, N>],
    addresses: &[u32],
    length: &[u32],
    keys: &mut [Vector<u32, N>],
    values: &mut [Vector<u32, N>],
    most: u32,
    count: u32,
    #[comptime] config: Config,
) {
    let last = tokens(length, most, config.device_len) - 1;
    let of_row = comptime!((config.words / config.width) as u32);
    let i = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * UNITS + UNIT_POS;
    let (row, part) = (i / of_row, i % of_row);
    if row < comptime!((config.heads * config.lists) as u32) * count {
        let head = row / count / comptime!(config.lists as u32);
        let position = min(positions[row as usize], last);
        if position == last {
            let own = (head * of_row + part) as usize;
            if CUBE_POS_Z == 0 {
                keys[i as usize] = new_keys[own];
            } else {
                values[i as usize] = new_values[own];
            }
        } else {
            let at = address(addresses, CUBE_POS_Z, head, position, config);
            let words = load::<N>(at + u64::cast_from(part) * comptime!(4 * config.width as u64), config.width);
            if CUBE_POS_Z == 0 {
                keys[i as usize] = words;
            } else {
                values[i as usize] = words;
            }
        }
    }
}

#[cube(launch_unchecked)]
fn bring_kernel<N: Size>(
    missing: &[u32],
    counts: &[u32],
    new_keys: &[Vector<u32, N>],
    new_values: &[Vector<u32, N>],
    addresses: &[u32],
    length: &[u32],
    keys: &mut [Vector<u32, N>],
    values: &mut [Vector<u32, N>],
    most: u32,
    per_head: u32,
    slots: u32,
    #[comptime] config: Config,
) {
    let last = tokens(length, most, config.device_len) - 1;
    let of_row = comptime!((config.words / config.width) as u32);
    let (i, head) = (CUBE_POS_X * UNITS + UNIT_POS, CUBE_POS_Y);
    let (row, part) = (i / of_row, i % of_row);
    if row < min(counts[(3 * head) as usize], per_head) {
        let at = ((head * per_head + row) * 2) as usize;
        let position = min(missing[at], last);
        let to = ((head * slots + min(missing[at + 1], slots - 1)) * of_row + part) as usize;
        if position == last {
            let own = (head * of_row + part) as usize;
            if CUBE_POS_Z == 0 {
                keys[to] = new_keys[own];
            } else {
                values[to] = new_values[own];
            }
        } else {
            let from = address(addresses, CUBE_POS_Z, head, position, config);
            let words = load::<N>(from + u64::cast_from(part) * comptime!(4 * config.width as u64), config.width);
            if CUBE_POS_Z == 0 {
                keys[to] = words;
            } else {
                values[to] = words;
            }
        }
    }
}
