//! The book of rows that lie on the device, kept by the device itself: what [`Slots`](super::Slots) is on the host.

use crate::device::{Gpu, buffer};
use crate::error::{Result, ensure};
use crate::length::{Length, tokens};
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Units of a cube at most: each compares some slots with all chosen rows.
const UNITS: u32 = 1024;

/// No position, no slot.
const NONE: u32 = u32::MAX;

/// Which rows of a layer's heads lie in which slot. A step is one launch, one cube per head.
///
/// A row that was chosen again outlives those that a single step wanted. The last token's row always counts as missing, for it is new.
#[derive(Debug, Clone)]
pub struct Book {
    heads: usize,
    slots: usize,
    /// `[heads, slots]`: the position, and whether it was chosen again.
    held: Handle,
    again: Handle,
    /// Per head: where the search for slots goes on.
    hands: Handle,
    /// Per head: rows that were missing in this step, and in all; rows that were there in all.
    counts: Handle,
}

/// What a step needs.
#[derive(Debug, Clone)]
pub struct Assigned {
    /// Slots of the chosen rows, in their order: `[heads, per_head]`.
    pub slots: Handle,
    /// Position and slot of rows that must be brought, `[heads, per_head, 2]`.
    pub(super) missing: Handle,
    /// How many per head: the first of three numbers.
    pub(super) counts: Handle,
}

impl Assigned {
    /// Position and slot of the rows that must be brought, per head. Waits for the device: for tests.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if the device fails.
    pub fn missing(&self, gpu: &Gpu) -> Result<Vec<Vec<[u32; 2]>>> {
        let failed = crate::Error::Device("failed to return what it found");
        let read = gpu.client.read(vec![self.missing.clone(), self.counts.clone()]).map_err(|_| failed)?;
        let [pairs, counts] = [0, 1].map(|i| words(&read[i]));
        let per_head = pairs.len() / 2 / (counts.len() / 3);
        let heads = pairs.chunks_exact(2 * per_head).zip(counts.chunks_exact(3));
        let of_head = |(pairs, counts): (&[u32], &[u32])| {
            pairs.chunks_exact(2).take(counts[0] as usize).map(|pair| [pair[0], pair[1]]).collect()
        };
        Ok(heads.map(of_head).collect())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Config {
    /// Room in shared memory for chosen rows and for slots.
    chosen: usize,
    slots: usize,
    units: u32,
    device_len: bool,
}

impl Config {
    fn new(gpu: &Gpu, slots: usize, per_head: usize, device_len: bool) -> Self {
        let units = UNITS.min(gpu.traits.max_units);
        Self { chosen: per_head.next_power_of_two(), slots: slots.next_power_of_two(), units, device_len }
    }

    /// Bytes of shared memory.
    fn shared(self) -> usize {
        4 * (4 * self.chosen + self.slots + 2 * self.units as usize)
    }
}

impl Book {
    /// Of no row yet, with `slots` for each head.
    pub fn new(gpu: &Gpu, heads: usize, slots: usize) -> Self {
        let filled = |words: usize, with: u32| gpu.client.create_from_slice(bytemuck::cast_slice(&vec![with; words]));
        let (held, again) = (filled(heads * slots, NONE), filled(heads * slots, 0));
        Self { heads, slots, held, again, hands: filled(heads, 0), counts: filled(3 * heads, 0) }
    }

    /// Whether the device can keep a book of so many slots for so many chosen rows.
    pub fn fits(gpu: &Gpu, slots: usize, per_head: usize) -> bool {
        slots >= per_head
            && slots < 65_536
            && Config::new(gpu, slots, per_head, false).shared() <= gpu.traits.shared_memory
    }

    /// Bytes of its memory.
    pub fn bytes(&self) -> u64 {
        [&self.held, &self.again, &self.hands, &self.counts].into_iter().map(Handle::size_in_used).sum()
    }

    /// Rows that were there, and rows that had to be brought, since the book was begun. Waits for the device.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if the device fails.
    pub fn totals(&self, gpu: &Gpu) -> Result<[u64; 2]> {
        let failed = crate::Error::Device("failed to return what it counted");
        let bytes = gpu.client.read_one(self.counts.clone()).map_err(|_| failed)?;
        let counts = words(&bytes);
        let sum = |at: usize| counts[..3 * self.heads].iter().skip(at).step_by(3).map(|n| u64::from(*n)).sum();
        Ok([sum(2), sum(1)])
    }

    /// Finds slots for the rows at `positions`, `[heads, per_head]`, of the first `len` tokens.
    ///
    /// Time: O(slots * per_head / units). One launch.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if there are fewer slots than chosen rows, or too many for the device.
    pub fn assign(&self, gpu: &Gpu, positions: &Handle, per_head: usize, len: &Length) -> Result<Assigned> {
        ensure(per_head > 0 && Self::fits(gpu, self.slots, per_head), "slots", "too few, or too many for the device")?;
        let config = Config::new(gpu, self.slots, per_head, len.is_on_device());
        let (slots, missing) = (gpu.words(self.heads * per_head), gpu.words(2 * self.heads * per_head));
        // SAFETY: the lengths are those of the allocations; the kernel writes below them: slots of a head below `slots`, chosen rows
        // below `per_head`.
        unsafe {
            assign_kernel::launch_unchecked(
                &gpu.client,
                CubeCount::Static(self.heads as u32, 1, 1),
                CubeDim::new_1d(config.units),
                buffer(positions, self.heads * per_head),
                buffer(len.handle().unwrap_or(positions), 1),
                buffer(&self.held, self.heads * self.slots),
                buffer(&self.again, self.heads * self.slots),
                buffer(&self.hands, self.heads),
                buffer(&slots, self.heads * per_head),
                buffer(&missing, 2 * self.heads * per_head),
                buffer(&self.counts, 3 * self.heads),
                len.most() as u32,
                per_head as u32,
                self.slots as u32,
                config,
            );
        }
        Ok(Assigned { slots, missing, counts: self.counts.clone() })
    }
}

/// Words that the device returned.
fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
}

#[cube(launch_unchecked)]
fn assign_kernel(
    positions: &[u32],
    length: &[u32],
    held: &mut [u32],
    again: &mut [u32],
    hands: &mut [u32],
    out: &mut [u32],
    missing: &mut [u32],
    counts: &mut [u32],
    most: u32,
    per_head: u32,
    slots: u32,
    #[comptime] config: Config,
) {
    let units = comptime!(config.units);
    let last = tokens(length, most, config.device_len) - 1;
    let (first, base) = (CUBE_POS_X * per_head, CUBE_POS_X * slots);
    let mut chosen = Shared::<[u32]>::new_slice(config.chosen);
    let mut place = Shared::<[u32]>::new_slice(config.chosen);
    let mut lacking = Shared::<[u32]>::new_slice(config.chosen);
    let mut free = Shared::<[u32]>::new_slice(config.chosen);
    // Bit 0: a row of this step lies there; bit 1: its row was chosen again.
    let mut flags = Shared::<[u32]>::new_slice(config.slots);
    let mut before = Shared::<[u32]>::new_slice(comptime!(2 * config.units as usize));

    let mut j = UNIT_POS;
    while j < per_head {
        chosen[j as usize] = positions[(first + j) as usize];
        place[j as usize] = NONE;
        j += units;
    }
    sync_cube();
    let mut s = UNIT_POS;
    while s < slots {
        let position = held[(base + s) as usize];
        let mut flag = again[(base + s) as usize] * 2;
        if position == last {
            // What was there before the context was cut.
            held[(base + s) as usize] = NONE;
            flag = 0u32;
        } else if position != NONE {
            for j in 0..per_head {
                if chosen[j as usize] == position {
                    place[j as usize] = s;
                }
            }
        }
        flags[s as usize] = flag;
        s += units;
    }
    sync_cube();
    let mut j = UNIT_POS;
    while j < per_head {
        let s = place[j as usize];
        if s != NONE {
            flags[s as usize] = 3u32;
        }
        j += units;
    }
    sync_cube();

    // Each unit counts some slots, from the hand on, and some rows; then all know what those before them counted.
    let hand = hands[CUBE_POS_X as usize];
    let (slots_each, rows_each) = ((slots + units - 1) / units, (per_head + units - 1) / units);
    let (slot_from, row_from) = (UNIT_POS * slots_each, UNIT_POS * rows_each);
    let mut ours = 0u32.runtime();
    let mut rows = 0u32.runtime();
    for k in slot_from..min(slot_from + slots_each, slots) {
        let flag = flags[((hand + k) % slots) as usize];
        if flag == 0 {
            ours += 1;
        } else if flag == 2 {
            ours += 65_536;
        }
    }
    for j in row_from..min(row_from + rows_each, per_head) {
        if place[j as usize] == NONE {
            rows += 1;
        }
    }
    before[UNIT_POS as usize] = ours;
    before[(units + UNIT_POS) as usize] = rows;
    sync_cube();
    let mut step = 1u32.runtime();
    while step < units {
        let mut more_slots = 0u32;
        let mut more_rows = 0u32;
        if UNIT_POS >= step {
            more_slots = before[(UNIT_POS - step) as usize];
            more_rows = before[(units + UNIT_POS - step) as usize];
        }
        sync_cube();
        before[UNIT_POS as usize] += more_slots;
        before[(units + UNIT_POS) as usize] += more_rows;
        sync_cube();
        step *= 2;
    }
    let all = before[comptime!(2 * config.units as usize - 1)];
    let idle = before[comptime!(config.units as usize - 1)] & 65_535;
    let ranks = before[UNIT_POS as usize] - ours;
    let mut once = ranks & 65_535;
    // Rows that were chosen again go when there are no others.
    let mut twice = idle + (ranks >> 16);
    for k in slot_from..min(slot_from + slots_each, slots) {
        let s = (hand + k) % slots;
        let flag = flags[s as usize];
        if flag == 0 {
            if once < all {
                free[once as usize] = s;
            }
            once += 1;
        } else if flag == 2 {
            if twice < all {
                free[twice as usize] = s;
            }
            twice += 1;
        }
    }
    let mut rank = before[(units + UNIT_POS) as usize] - rows;
    for j in row_from..min(row_from + rows_each, per_head) {
        if place[j as usize] == NONE {
            lacking[rank as usize] = j;
            rank += 1;
        }
    }
    sync_cube();
    let mut r = UNIT_POS;
    while r < all {
        let (j, s) = (lacking[r as usize], free[r as usize]);
        let position = chosen[j as usize];
        place[j as usize] = s;
        held[(base + s) as usize] = position;
        flags[s as usize] = 0u32;
        let to = ((first + r) * 2) as usize;
        missing[to] = position;
        missing[to + 1] = s;
        if r == all - 1 {
            hands[CUBE_POS_X as usize] = (s + 1) % slots;
        }
        r += units;
    }
    sync_cube();
    let mut s = UNIT_POS;
    while s < slots {
        let flag = flags[s as usize];
        again[(base + s) as usize] = select(flag == 3 || (flag == 2 && all <= idle), 1u32, 0u32);
        s += units;
    }
    let mut j = UNIT_POS;
    while j < per_head {
        out[(first + j) as usize] = place[j as usize];
        j += units;
    }
    if UNIT_POS == 0 {
        let at = (3 * CUBE_POS_X) as usize;
        counts[at] = all;
        counts[at + 1] += all;
        counts[at + 2] += per_head - all;
    }
}
