//! What a step sends to the device, and where it is put.

use super::{HostRows, HostShape};
use crate::attend::Cache;
use crate::device::{Gpu, buffer};
use crate::error::{Result, ensure};
use cubecl::bytes::Bytes;
use cubecl::prelude::*;
use cubecl::server::Handle;
use rayon::prelude::*;

/// Units of a cube.
const UNITS: u32 = 64;

/// So many rows are worth waking other threads for.
const MANY: usize = 96;

/// One layer's buffer for the device: the slots of the chosen rows, then where the rows that were missing go, then those rows, each a
/// key and its value.
#[derive(Debug)]
pub struct Packet {
    words: Vec<u32>,
    slots: usize,
    rows: usize,
}

impl Packet {
    /// `slots` are the chosen rows' slots, list after list. `missing` names head, position and slot of each row that the device lacks.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if a number of a row is no whole word.
    pub fn gather(rows: &HostRows, layer: usize, slots: &[u32], missing: &[[u32; 3]], per_head: usize) -> Result<Self> {
        let HostShape { heads, .. } = rows.shape();
        let row = rows.shape().row();
        ensure(row.is_multiple_of(4), "dim", "a row has whole words")?;
        let (words, head) = (row / 2, slots.len() + missing.len());
        let mut packet = Vec::with_capacity(head + missing.len() * words);
        packet.extend_from_slice(slots);
        packet.extend(missing.iter().map(|[head, _, slot]| head * per_head as u32 + slot));
        packet.resize(head + missing.len() * words, 0);
        let copy = |(out, [head, position, _]): (&mut [u32], &[u32; 3])| {
            let out: &mut [u8] = bytemuck::cast_slice_mut(out);
            let [key, value] = rows.row(layer, *head as usize, *position as usize);
            out[..row].copy_from_slice(key);
            out[row..].copy_from_slice(value);
        };
        ensure(missing.iter().all(|m| (m[0] as usize) < heads), "head", "there are fewer")?;
        // Rows lie far from each other: threads wait for memory side by side.
        match missing.len() >= MANY {
            true => packet[head..].par_chunks_exact_mut(words).zip(missing).for_each(copy),
            false => packet[head..].chunks_exact_mut(words).zip(missing).for_each(copy),
        }
        Ok(Self { words: packet, slots: slots.len(), rows: missing.len() })
    }

    /// Bytes that travel.
    pub fn bytes(&self) -> usize {
        4 * self.words.len()
    }
}

/// Sends a packet and puts its rows into `cache`, whose capacity is the slots per head. Returns the chosen rows' slots, for
/// [`Rows::Chosen`](crate::attend::Rows::Chosen). One transfer, one launch.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if a slot lies outside of the cache, or no row was chosen.
pub fn place(gpu: &Gpu, packet: Packet, cache: &Cache) -> Result<Handle> {
    let Packet { words: packet, slots, rows } = packet;
    let (words, per_head) = (cache.words()?, cache.capacity);
    ensure(slots > 0, "slots", "nothing was chosen")?;
    ensure(packet.len() == slots + rows + 2 * rows * words, "packet", "its rows are of another shape")?;
    let inside = |places: &[u32], most: usize| places.iter().all(|place| (*place as usize) < most);
    ensure(inside(&packet[..slots], per_head), "slots", "one lies outside of the cache")?;
    ensure(inside(&packet[slots..slots + rows], cache.heads * per_head), "slots", "one lies outside of the cache")?;
    let (out, len) = (gpu.words(slots), packet.len());
    let sent = gpu.client.create(Bytes::from_elems(packet));
    let cubes = rows + slots.div_ceil(UNITS as usize);
    // SAFETY: the lengths are those of the packet, of `Cache` and of the allocation above; rows go to slots that were checked.
    unsafe {
        place_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::Static(cubes.min(32_768) as u32, cubes.div_ceil(32_768) as u32, 1),
            CubeDim::new_1d(UNITS),
            buffer(&sent, len),
            buffer(&cache.keys, cache.heads * per_head * words),
            buffer(&cache.values, cache.heads * per_head * words),
            buffer(&out, slots),
            slots as u32,
            rows as u32,
            words as u32,
        );
    }
    Ok(out)
}

/// A cube puts one row in its place; those behind the rows copy slots.
#[cube(launch_unchecked)]
fn place_kernel(
    packet: &[u32],
    keys: &mut [u32],
    values: &mut [u32],
    out: &mut [u32],
    slots: u32,
    rows: u32,
    words: u32,
) {
    let cube = CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X;
    if cube < rows {
        let to = packet[(slots + cube) as usize] * words;
        let from = slots + rows + cube * 2 * words;
        let mut i = UNIT_POS;
        while i < words {
            keys[(to + i) as usize] = packet[(from + i) as usize];
            values[(to + i) as usize] = packet[(from + words + i) as usize];
            i += UNITS;
        }
    } else {
        let i = (cube - rows) * UNITS + UNIT_POS;
        if i < slots {
            out[i as usize] = packet[i as usize];
        }
    }
}
