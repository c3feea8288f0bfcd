//! Selection alone, from importances that are there: some cubes per list.

use super::bar::{FORCED, Search, Share, clear_bins, count_rank, find_bar, share, token_at};
use super::choose::{choose, note};
use super::mail::{Boxes, close, open, sweep, take};
use super::{Mail, UNITS};
use crate::combine::Importance;
use crate::device::{Gpu, buffer};
use crate::length::tokens;
use crate::numbers::order_key;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Values that a unit asks for together.
const TOGETHER: u32 = 8;

/// Tokens that a list may have at most.
pub(crate) const MOST: usize = 4096;

/// How to search lists of up to `len` tokens for `budget` of them, if a cube has room for its share.
pub(crate) fn plan(gpu: &Gpu, mail: &Mail, len: usize, budget: usize) -> Option<Search> {
    let layout = mail.layout;
    let units = UNITS.min(gpu.traits.max_units);
    // In steps of whole rounds, so that kernels are compiled for a few lengths only.
    let tokens = layout.tokens(len).next_multiple_of(units as usize * TOGETHER as usize);
    let most = if layout.ties < 1024 { 256 } else { MOST };
    let words = tokens + most + 4 * layout.ties + layout.bins + 2 * units as usize;
    let fits = words * 4 <= gpu.traits.shared_memory && budget <= most;
    fits.then_some(Search { units, plane: gpu.traits.plane, tokens, most, layout })
}

/// Chooses from the values of `importance`, whose shapes were checked.
pub(crate) fn launch(
    gpu: &Gpu,
    importance: &Importance,
    mail: &Mail,
    search: Search,
    budget: usize,
    positions: &Handle,
) {
    let len = importance.len.most();
    // SAFETY: the lengths are those that `rank` was given and `Mail::empty` allocated; positions are written below `budget`
    // only, no token past the length is read, and no more cubes are launched than run at once.
    unsafe {
        values_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::Static(search.layout.cubes as u32, importance.rows as u32, 1),
            CubeDim::new_1d(search.units),
            buffer(&importance.values, importance.rows * importance.stride),
            buffer(importance.len.handle().unwrap_or(&importance.values), 1),
            buffer(positions, importance.rows * budget),
            buffer(&mail.words, importance.rows * search.layout.of_list()),
            len as u32,
            importance.stride as u32,
            budget as u32,
            importance.sinks as u32,
            importance.recent as u32,
            search,
            importance.len.is_on_device(),
        );
    }
}

#[cube(launch_unchecked)]
fn values_kernel(
    values: &[f32],
    length: &[u32],
    positions: &mut [u32],
    mail: &mut [Atomic<u32>],
    most_tokens: u32,
    stride: u32,
    budget: u32,
    sinks: u32,
    recent: u32,
    #[comptime] search: Search,
    #[comptime] device_len: bool,
) {
    let (cube, list) = (CUBE_POS_X, CUBE_POS_Y as usize);
    let len = tokens(length, most_tokens, device_len);
    let boxes = open(mail, list, search.layout);
    let mut share = share(cube, len, search);
    let forced = sinks + recent;
    let recent_from = max(len, recent) - recent;
    let mut low = 0xffff_ffffu32.runtime();
    let mut high = 0u32.runtime();
    let mut base = UNIT_POS;
    while base < share.count {
        let mut read = Array::<f32>::new(comptime!(TOGETHER as usize));
        #[unroll]
        for k in 0..TOGETHER {
            let t = token_at(base + k * comptime!(search.units), cube, search.layout);
            read[k as usize] = values[list * stride as usize + min(t, len - 1u32) as usize];
        }
        #[unroll]
        for k in 0..TOGETHER {
            let i = base + k * comptime!(search.units);
            let t = token_at(i, cube, search.layout);
            let key = max(order_key(read[k as usize]), 1u32);
            let free = t >= sinks && t < recent_from;
            let inside = i < share.count && t < len;
            if i < share.count {
                share.keys[i as usize] = select(inside, select(free, key, FORCED), 0u32);
            }
            low = select(inside && free, min(low, key), low);
            high = select(inside && free, max(high, key), high);
        }
        base += comptime!(search.units * TOGETHER);
    }
    sweep(mail, &boxes, cube as usize, false, search.units, search.layout);
    let ends = meet_ends(mail, &boxes, &mut share, low, high, search);
    clear_bins(&mut share, search);
    let digits = 32u32 - (ends.high - ends.low).leading_zeros();
    let shift = max(digits, comptime!(search.layout.bins.ilog2())) - comptime!(search.layout.bins.ilog2());
    sync_cube();
    let mut i = UNIT_POS;
    while i < share.count {
        let key = share.keys[i as usize];
        if key != 0u32 && key != FORCED {
            count_rank(&mut share, key, ends.low, shift, search);
        }
        i += comptime!(search.units);
    }
    sync_cube();
    let bar = find_bar(&mut share, mail, &boxes, len, budget - forced, len - forced, ends.low, shift, search);
    let chosen = choose(&mut share, mail, &boxes, &bar, search);
    note(&mut share, mail, &boxes, &chosen, positions, list * budget as usize, budget, search);
    sync_cube();
    close(mail, &boxes, cube as usize, bar.rounds);
}

/// The smallest and the largest key.
#[derive(CubeType)]
struct Ends {
    low: u32,
    high: u32,
}

/// Those of the list, from those of this unit.
#[cube]
fn meet_ends(
    mail: &mut [Atomic<u32>],
    boxes: &Boxes,
    share: &mut Share,
    low: u32,
    high: u32,
    #[comptime] search: Search,
) -> Ends {
    let cubes = comptime!(search.layout.cubes as u32);
    let ends = Shared::<[Atomic<u32>]>::new_slice(4usize);
    if UNIT_POS < 4 {
        ends[UNIT_POS as usize].store(select(UNIT_POS % 2 == 0, 0xffff_ffffu32, 0u32));
    }
    sync_cube();
    if comptime!(search.plane > 0) {
        sync_plane();
        let (low, high) = (plane_min(low), plane_max(high));
        if UNIT_POS % search.plane == 0 {
            ends[0usize].fetch_min(low);
            ends[1usize].fetch_max(high);
        }
    } else {
        ends[0usize].fetch_min(low);
        ends[1usize].fetch_max(high);
    }
    sync_cube();
    if UNIT_POS == 0 {
        let at = boxes.now + share.cube as usize * 2;
        mail[at].store(ends[0usize].load());
        // No key is the largest number, and 0 stands for nothing told.
        mail[at + 1].store(ends[1usize].load() + 1u32);
    }
    let mut i = UNIT_POS;
    while i < cubes {
        ends[2usize].fetch_min(take(mail, boxes.now + i as usize * 2, &boxes.lost));
        ends[3usize].fetch_max(take(mail, boxes.now + i as usize * 2 + 1, &boxes.lost) - 1u32);
        i += comptime!(search.units);
    }
    sync_cube();
    let (low, high) = (ends[2usize].load(), ends[3usize].load());
    Ends { low: min(low, high), high: max(low, high) }
}
