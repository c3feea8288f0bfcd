//! The N best of a row of importances, without a sort. One cube per row, one launch.
//!
//! The Nth best of the largest-of-a-span values is a bar that at least N tokens reach, and, in contexts much longer than
//! N, hardly more: only spans that reach it are looked at, and their tokens above the bar are ranked against each other. Rows
//! where too many tokens reach the bar (equal importances, or all good ones in few spans) are searched as a whole, digit by
//! digit. Both are exact, ties go to the lower position.

use crate::combine::Importance;
use crate::device::{Gpu, buffer};
use crate::error::{Result, ensure};
use crate::numbers::order_key;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Candidates that are ranked against each other at most.
const CANDIDATES: usize = 2048;

/// Values of a digit.
const BINS: usize = 2048;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Config {
    units: u32,
    plane: u32,
    span: usize,
    /// Whether the spans' largest may be asked first.
    quick: bool,
}

/// Positions of the `budget` best of every row, `[rows, budget]`, in no particular order.
///
/// Time: O(len / span + budget * span) where importances differ, O(len) in the worst case. Space: the positions.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the budget is 0 or exceeds the tokens.
pub fn best(gpu: &Gpu, importance: &Importance, budget: usize) -> Result<Handle> {
    ensure(budget > 0 && budget <= importance.len, "budget", "1 up to the tokens seen")?;
    let (rows, stride, span) = (importance.rows, importance.stride, importance.span);
    let positions = gpu.words(rows * budget);
    let spans = importance.len.div_ceil(span);
    let config = Config {
        units: gpu.traits.max_units,
        plane: gpu.traits.plane,
        span,
        quick: budget <= CANDIDATES / 2 && spans >= budget,
    };
    // SAFETY: the lengths are those that `combine` allocated; positions are written below `budget` only.
    unsafe {
        select_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::Static(rows as u32, 1, 1),
            CubeDim::new_1d(config.units),
            buffer(&importance.values, rows * stride),
            buffer(&importance.largest, rows * stride / span),
            buffer(&positions, rows * budget),
            importance.len as u32,
            spans as u32,
            stride as u32,
            budget as u32,
            config,
        );
    }
    Ok(positions)
}

/// What a search over digits has found.
#[derive(CubeType)]
struct Found {
    /// The key of the kth largest, as far as its digits were asked for; the other digits 0.
    key: u32,
    /// How many of the values with this key belong to the k largest.
    taken: u32,
}

#[cube(launch_unchecked)]
fn select_kernel(
    importance: &[f32],
    largest: &[f32],
    positions: &mut [u32],
    len: u32,
    spans: u32,
    stride: u32,
    budget: u32,
    #[comptime] config: Config,
) {
    let row = CUBE_POS_X as usize;
    let from = row * stride as usize;
    let bins = Shared::<[Atomic<u32>]>::new_slice(BINS);
    let mut state = Shared::<[u32]>::new_slice(64usize);
    let counter = Shared::<[Atomic<u32>]>::new_slice(1usize);
    let mut keys = Shared::<[u32]>::new_slice(CANDIDATES);
    let mut places = Shared::<[u32]>::new_slice(CANDIDATES);
    let out = row * budget as usize;
    let mut candidates = comptime!(CANDIDATES as u32 + 1).runtime();
    if comptime!(config.quick) {
        let span = comptime!(config.span as u32);
        let spans_from = row * stride as usize / comptime!(config.span);
        let bar = kth_largest(largest, spans_from, spans, budget, 0u32, &bins, &mut state, 2u32, false, config);
        if UNIT_POS == 0 {
            counter[0].store(0u32);
        }
        sync_cube();
        // Spans that reach the bar go to `bins`, which is free now.
        let mut i = UNIT_POS;
        while i < spans {
            if order_key(largest[spans_from + i as usize]) >= bar.key {
                let at = counter[0].fetch_add(1u32);
                if at < comptime!(BINS as u32) {
                    bins[at as usize].store(i);
                }
            }
            i += comptime!(config.units);
        }
        sync_cube();
        let chosen = min(counter[0].load(), comptime!(BINS as u32));
        let all_chosen = counter[0].load() <= comptime!(BINS as u32);
        sync_cube();
        if UNIT_POS == 0 {
            counter[0].store(select(all_chosen, 0u32, comptime!(CANDIDATES as u32 + 1)));
        }
        sync_cube();
        let mut i = UNIT_POS;
        while i < chosen * span {
            let t = bins[(i / span) as usize].load() * span + i % span;
            let key = order_key(importance[from + t as usize]);
            if t < len && key >= bar.key {
                let at = counter[0].fetch_add(1u32);
                if at < comptime!(CANDIDATES as u32) {
                    keys[at as usize] = key;
                    places[at as usize] = t;
                }
            }
            i += comptime!(config.units);
        }
        sync_cube();
        if UNIT_POS == 0 {
            state[60] = counter[0].load();
        }
        sync_cube();
        candidates = workgroup_uniform_load(&state[60]);
    }
    if candidates <= comptime!(CANDIDATES as u32) {
        rank(&keys, &places, &bins, candidates, positions, out, budget, config);
    } else {
        search(importance, from, len, &bins, &counter, &mut state, positions, out, budget, config);
    }
}

/// Every candidate counts those that are before it: its place among the best.
#[cube]
fn rank(
    keys: &Shared<[u32]>,
    places: &Shared<[u32]>,
    before: &Shared<[Atomic<u32>]>,
    candidates: u32,
    positions: &mut [u32],
    out: usize,
    budget: u32,
    #[comptime] config: Config,
) {
    let mut i = UNIT_POS;
    while i < candidates {
        before[i as usize].store(0u32);
        i += comptime!(config.units);
    }
    sync_cube();
    // Four units share the comparisons of a candidate.
    let parts = 4u32;
    let abreast = comptime!(config.units / 4);
    let per_part = (candidates + parts - 1) / parts;
    let part = UNIT_POS / abreast;
    let end = min((part + 1) * per_part, candidates);
    let mut i = UNIT_POS % abreast;
    while i < candidates {
        let (key, place) = (keys[i as usize], places[i as usize]);
        let mut count = 0u32;
        let mut j = part * per_part;
        while j < end {
            let other = keys[j as usize];
            let first = other > key || (other == key && places[j as usize] < place);
            count += select(first, 1u32, 0u32);
            j += 1u32;
        }
        before[i as usize].fetch_add(count);
        i += abreast;
    }
    sync_cube();
    let mut i = UNIT_POS;
    while i < candidates {
        let at = before[i as usize].load();
        if at < budget {
            positions[out + at as usize] = places[i as usize];
        }
        i += comptime!(config.units);
    }
}

/// Looks at the whole row, once per digit.
#[cube]
fn search(
    importance: &[f32],
    from: usize,
    len: u32,
    bins: &Shared<[Atomic<u32>]>,
    counter: &Shared<[Atomic<u32>]>,
    state: &mut Shared<[u32]>,
    positions: &mut [u32],
    out: usize,
    budget: u32,
    #[comptime] config: Config,
) {
    let bar = kth_largest(importance, from, len, budget, 0u32, bins, state, 3u32, false, config);
    // Of those on the bar the lowest positions, whose complements are the largest.
    let last = kth_largest(importance, from, len, bar.taken, bar.key, bins, state, 3u32, true, config);
    if UNIT_POS == 0 {
        counter[0].store(0u32);
    }
    sync_cube();
    let mut t = UNIT_POS;
    while t < len {
        let key = order_key(importance[from + t as usize]);
        if key > bar.key || (key == bar.key && !t >= last.key) {
            let at = counter[0].fetch_add(1u32);
            if at < budget {
                positions[out + at as usize] = t;
            }
        }
        t += comptime!(config.units);
    }
}

/// The `k`th largest key of `count` values, over its first `digits` digits of 11, 11 and 10 bits. `by_position` looks at the
/// complements of the positions of values that have the key `only`.
#[cube]
fn kth_largest(
    values: &[f32],
    from: usize,
    count: u32,
    k: u32,
    only: u32,
    bins: &Shared<[Atomic<u32>]>,
    state: &mut Shared<[u32]>,
    #[comptime] digits: u32,
    #[comptime] by_position: bool,
    #[comptime] config: Config,
) -> Found {
    let mut prefix = 0u32;
    let mut wanted = k;
    #[unroll]
    for digit in 0..digits {
        let shift = comptime!(match digit {
            0 => 21u32,
            1 => 10,
            _ => 0,
        });
        let above = comptime!(match digit {
            0 => 31u32,
            1 => 21,
            _ => 10,
        });
        let mask = comptime!(if digit == 2 { 1023u32 } else { 2047 });
        let mut i = UNIT_POS;
        while i < comptime!(BINS as u32) {
            bins[i as usize].store(0u32);
            i += comptime!(config.units);
        }
        sync_cube();
        let mut i = UNIT_POS;
        while i < count {
            let value = order_key(values[from + i as usize]);
            let key = if comptime!(by_position) { !i } else { value };
            let counted = if comptime!(by_position) { value == only } else { true.runtime() };
            let fits = if comptime!(digit == 0) { true.runtime() } else { (key >> above) == (prefix >> above) };
            if counted && fits {
                bins[((key >> shift) & mask) as usize].fetch_add(1u32);
            }
            i += comptime!(config.units);
        }
        sync_cube();
        find_bin(bins, state, wanted, config);
        sync_cube();
        prefix |= state[40] << shift;
        wanted = state[41];
        sync_cube();
    }
    Found { key: prefix, taken: wanted }
}

/// Finds the bin of the `wanted`th largest, counted from the last bin: its number to `state[40]`, how many of the bin are
/// wanted to 41, how many it holds to 42.
#[cube]
fn find_bin(bins: &Shared<[Atomic<u32>]>, state: &mut Shared<[u32]>, wanted: u32, #[comptime] config: Config) {
    if comptime!(config.plane == 32 && config.units == 1024) {
        let last = comptime!(BINS as u32 - 1) - 2 * UNIT_POS;
        let upper = bins[last as usize].load();
        let lower = bins[(last - 1) as usize].load();
        let both = upper + lower;
        let within = plane_inclusive_sum(both);
        let plane = UNIT_POS / 32;
        if UNIT_POS_PLANE == 31 {
            state[plane as usize] = within;
        }
        sync_cube();
        let others = state[UNIT_POS_PLANE as usize];
        let before = plane_sum(select(UNIT_POS_PLANE < plane, others, 0u32)) + within - both;
        if before < wanted && wanted <= before + both {
            let in_upper = wanted <= before + upper;
            state[40] = select(in_upper, last, last - 1);
            state[41] = select(in_upper, wanted - before, wanted - before - upper);
            state[42] = select(in_upper, upper, lower);
        }
    } else {
        // 32 units sum 64 bins each, one looks for the right sum and then for the right bin.
        if UNIT_POS < 32 {
            let mut sum = 0u32;
            for i in 0..64u32 {
                sum += bins[(UNIT_POS * 64 + i) as usize].load();
            }
            state[UNIT_POS as usize] = sum;
        }
        sync_cube();
        if UNIT_POS == 0 {
            let mut left = wanted;
            let mut part = 31u32;
            while part > 0 && state[part as usize] < left {
                left -= state[part as usize];
                part -= 1u32;
            }
            let mut bin = part * 64 + 63;
            while bin > part * 64 && bins[bin as usize].load() < left {
                left -= bins[bin as usize].load();
                bin -= 1u32;
            }
            state[40] = bin;
            state[41] = left;
            state[42] = bins[bin as usize].load();
        }
    }
}
