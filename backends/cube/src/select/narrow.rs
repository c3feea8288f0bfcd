//! Search for the Nth largest of many numbers by histograms, and the tokens that reach it.

use super::{BINS, Config, Importances, Over};
use crate::numbers::order_key;
use crate::spans::token;
use crate::team::cube_scan;
use cubecl::prelude::*;

/// Spans below have no token.
const EMPTY: f32 = -3.39e38;

/// Shared memory of a selection.
#[derive(CubeType)]
pub(super) struct Pool {
    /// Importances of candidates.
    pub keys: Shared<[u32]>,
    /// Their positions.
    pub places: Shared<[u32]>,
    /// Spans that are looked at.
    pub list: Shared<[u32]>,
    /// Counts of a histogram.
    pub bins: Shared<[Atomic<u32>]>,
    /// What units tell each other.
    pub state: Shared<[u32]>,
    /// The smallest and the largest key; in the end the key of the last token taken, and its complemented position if others
    /// have the same key.
    pub ends: Shared<[Atomic<u32>]>,
}

/// What a search has found.
#[derive(CubeType)]
pub(super) struct Bar {
    /// At least as many numbers as were wanted have this key or a larger one.
    pub key: u32,
    /// Wanted ones of the last bin.
    pub left: u32,
    /// Numbers in the last bin; if they are more than `left`, all of them have the key, or the slack was enough.
    pub content: u32,
}

/// What number `i` is ranked by; 0 if it does not take part.
#[cube]
fn item_key(
    pool: &mut Pool,
    values: &[f32],
    maxima: &[f32],
    importances: &Importances,
    i: u32,
    only: u32,
    #[comptime] over: Over,
) -> u32 {
    match comptime!(over) {
        Over::Spans => {
            let largest = maxima[importances.first_span + i as usize];
            select(largest > EMPTY, order_key(largest), 0u32)
        }
        Over::Listed | Over::Pool => pool.keys[i as usize],
        Over::PoolTies => select(pool.keys[i as usize] == only, !pool.places[i as usize], 0u32),
        Over::Row => row_key(values, importances, i),
        Over::RowTies => select(row_key(values, importances, i) == only, !i, 0u32),
    }
}

/// What token `t` is ranked by; 0 if it is guaranteed. What is no number loses against every number.
#[cube]
fn row_key(values: &[f32], importances: &Importances, t: u32) -> u32 {
    let free = t >= importances.sinks && t < importances.recent_from;
    let t = min(t, importances.len - 1);
    select(free, max(order_key(values[importances.first_token + t as usize]), 1u32), 0u32)
}

/// The keys of numbers that a unit reads together; 0 past the last.
#[cube]
fn item_keys(
    pool: &mut Pool,
    values: &[f32],
    maxima: &[f32],
    importances: &Importances,
    base: u32,
    count: u32,
    only: u32,
    #[comptime] over: Over,
    #[comptime] config: Config,
) -> Array<u32> {
    let mut keys = Array::<u32>::new(comptime!(over.steps() as usize));
    #[unroll]
    for step in 0..comptime!(over.steps()) {
        let i = base + step * comptime!(config.units) + UNIT_POS;
        let key = item_key(pool, values, maxima, importances, min(i, count - 1), only, over);
        keys[step as usize] = select(i < count, key, 0u32);
    }
    keys
}

/// Counts the keys between `from` and `to` in bins.
#[cube]
fn count_keys(
    pool: &mut Pool,
    values: &[f32],
    maxima: &[f32],
    importances: &Importances,
    count: u32,
    only: u32,
    from: u32,
    to: u32,
    shift: u32,
    #[comptime] over: Over,
    #[comptime] config: Config,
) {
    let mut base = 0u32.runtime();
    while base < count {
        let found = item_keys(pool, values, maxima, importances, base, count, only, over, config);
        #[unroll]
        for step in 0..comptime!(over.steps()) {
            let key = found[step as usize];
            if key >= from && key <= to {
                pool.bins[((key - from) >> shift) as usize].fetch_add(1u32);
            }
        }
        base += comptime!(over.steps() * config.units);
    }
}

/// The key that the `wanted`th largest of `count` numbers has, or a lower one that at most `slack` more numbers reach.
#[cube]
pub(super) fn narrow(
    pool: &mut Pool,
    values: &[f32],
    maxima: &[f32],
    importances: &Importances,
    count: u32,
    wanted: u32,
    slack: u32,
    only: u32,
    #[comptime] over: Over,
    #[comptime] config: Config,
) -> Bar {
    if UNIT_POS < 2 {
        pool.ends[UNIT_POS as usize].store(select(UNIT_POS == 0, 0xffff_ffffu32, 0u32));
    }
    sync_cube();
    let mut low = 0xffff_ffffu32.runtime();
    let mut high = 0u32.runtime();
    // Keys of spans are kept where those of candidates will be.
    let kept = count <= comptime!(config.candidates as u32);
    let mut base = 0u32.runtime();
    while base < count {
        let found = item_keys(pool, values, maxima, importances, base, count, only, over, config);
        #[unroll]
        for step in 0..comptime!(over.steps()) {
            let key = found[step as usize];
            low = select(key > 0, min(low, key), low);
            high = max(high, key);
            if comptime!(matches!(over, Over::Spans)) {
                let i = base + step * comptime!(config.units) + UNIT_POS;
                if kept && i < count {
                    pool.keys[i as usize] = key;
                }
            }
        }
        base += comptime!(over.steps() * config.units);
    }
    if comptime!(config.plane > 0) {
        low = plane_min(low);
        high = plane_max(high);
        if (UNIT_POS % config.plane) == 0 {
            pool.ends[0usize].fetch_min(low);
            pool.ends[1usize].fetch_max(high);
        }
    } else {
        pool.ends[0usize].fetch_min(low);
        pool.ends[1usize].fetch_max(high);
    }
    sync_cube();
    let mut from = pool.ends[0usize].load();
    let mut to = pool.ends[1usize].load();
    let mut left = wanted;
    let mut content = 0u32.runtime();
    let mut going = true.runtime();
    while going {
        let mut i = UNIT_POS;
        while i < comptime!(BINS as u32) {
            pool.bins[i as usize].store(0u32);
            i += comptime!(config.units);
        }
        let digits = 32u32 - (to - from).leading_zeros();
        let shift = max(digits, comptime!(BINS.ilog2())) - comptime!(BINS.ilog2());
        sync_cube();
        if comptime!(matches!(over, Over::Spans)) {
            if kept {
                count_keys(pool, values, maxima, importances, count, only, from, to, shift, Over::Pool, config);
            } else {
                count_keys(pool, values, maxima, importances, count, only, from, to, shift, over, config);
            }
        } else {
            count_keys(pool, values, maxima, importances, count, only, from, to, shift, over, config);
        }
        sync_cube();
        find_bin(&pool.bins, &mut pool.state, left, config);
        sync_cube();
        let first = comptime!(config.units as usize);
        from += pool.state[first] << shift;
        left = pool.state[first + 1];
        content = pool.state[first + 2];
        to = min(to - from, (1u32 << shift) - 1u32) + from;
        if UNIT_POS == 0 {
            let enough = shift == 0 || content - left <= slack;
            pool.state[comptime!(config.units as usize + 3)] = select(enough, 0u32, 1u32);
        }
        going = workgroup_uniform_load(&pool.state[comptime!(config.units as usize + 3)]) == 1;
    }
    Bar { key: from, left, content }
}

/// Finds the bin of the `wanted`th largest, counted from the last bin: its number, how many of the bin are wanted and how
/// many it holds, to `state` from `units` on.
#[cube]
fn find_bin(bins: &Shared<[Atomic<u32>]>, state: &mut Shared<[u32]>, wanted: u32, #[comptime] config: Config) {
    let answer = comptime!(config.units as usize);
    // Where fewer take part than are wanted the first bin is the answer.
    if UNIT_POS < 3 {
        state[answer + UNIT_POS as usize] = 0u32;
    }
    if comptime!(config.plane > 0) {
        // Unit 0 has the last bins.
        let per_unit = comptime!(BINS as u32 / config.units);
        let last = comptime!(BINS as u32 - 1) - per_unit * UNIT_POS;
        let mut mine = Array::<u32>::new(comptime!(per_unit as usize));
        let mut sum = 0u32.runtime();
        #[unroll]
        for i in 0..per_unit {
            mine[i as usize] = bins[(last - i) as usize].load();
            sum += mine[i as usize];
        }
        let within = plane_inclusive_sum(sum);
        let planes = comptime!(config.units / config.plane);
        if (UNIT_POS % config.plane) == comptime!(config.plane - 1) {
            state[(UNIT_POS / config.plane) as usize] = within;
        }
        sync_cube();
        let others = state[min(UNIT_POS % config.plane, planes - 1) as usize];
        let mut before =
            plane_sum(select((UNIT_POS % config.plane) < UNIT_POS / config.plane, others, 0u32)) + within - sum;
        if before < wanted && wanted <= before + sum {
            #[unroll]
            for i in 0..per_unit {
                let here = mine[i as usize];
                if before < wanted && wanted <= before + here {
                    state[answer] = last - i;
                    state[answer + 1] = wanted - before;
                    state[answer + 2] = here;
                }
                before += here;
            }
        }
    } else {
        // 32 units sum 64 bins each, one looks for the right sum and then for the right bin.
        let per_unit = comptime!(BINS as u32 / 32);
        if UNIT_POS < 32 {
            let mut sum = 0u32.runtime();
            for i in 0..per_unit {
                sum += bins[(UNIT_POS * per_unit + i) as usize].load();
            }
            state[UNIT_POS as usize] = sum;
        }
        sync_cube();
        if UNIT_POS == 0 {
            let mut left = wanted;
            let mut part = 31u32.runtime();
            while part > 0 && state[part as usize] < left {
                left -= state[part as usize];
                part -= 1u32;
            }
            let mut bin = part * per_unit + (per_unit - 1);
            while bin > part * per_unit && bins[bin as usize].load() < left {
                left -= bins[bin as usize].load();
                bin -= 1u32;
            }
            state[answer] = bin;
            state[answer + 1] = left;
            state[answer + 2] = bins[bin as usize].load();
        }
    }
}

/// Notes those of `count` numbers that may be or are among the best, in an order that does not change from run to run, and
/// returns how many there are; those past the first `room` are not noted.
#[cube]
pub(super) fn collect(
    pool: &mut Pool,
    positions: &mut [u32],
    values: &[f32],
    maxima: &[f32],
    importances: &Importances,
    count: u32,
    floor: u32,
    out: usize,
    room: u32,
    #[comptime] over: Over,
    #[comptime] config: Config,
) -> u32 {
    let kept = count <= comptime!(config.candidates as u32);
    let (bar, tie) = (pool.ends[0usize].load(), pool.ends[1usize].load());
    let mut found = 0u32.runtime();
    let mut base = 0u32.runtime();
    while base < count {
        let rounds = min((count - base + comptime!(config.units - 1)) / comptime!(config.units), 32u32);
        let mut flags = 0u32.runtime();
        let mut round = 0u32.runtime();
        while round < rounds {
            #[unroll]
            for step in 0..comptime!(over.steps()) {
                let i = base + (round + step) * comptime!(config.units) + UNIT_POS;
                let there = round + step < rounds && i < count;
                let i = min(i, count - 1);
                let taken = is_taken(pool, values, maxima, importances, i, kept, floor, bar, tie, over, config);
                flags |= select(there && taken, 1u32, 0u32) << (min(round + step, 31u32));
            }
            round += comptime!(over.steps());
        }
        let sums = cube_scan(flags.count_ones(), &mut pool.state, config.units, config.plane);
        let mut at = found + sums.before;
        while flags != 0 {
            let round = 31u32 - flags.leading_zeros();
            flags ^= 1u32 << round;
            let i = base + round * comptime!(config.units) + UNIT_POS;
            if at < room {
                match comptime!(over) {
                    Over::Spans => pool.list[at as usize] = i,
                    Over::Listed => {
                        let t = listed_token(pool, i, config);
                        pool.keys[at as usize] = row_key(values, importances, t);
                        pool.places[at as usize] = t;
                    }
                    Over::Pool => positions[out + at as usize] = pool.places[i as usize],
                    _ => positions[out + at as usize] = i,
                }
            }
            at += 1u32;
        }
        found += sums.all;
        base += comptime!(config.units * 32);
    }
    sync_cube();
    found
}

/// Token `i` of the spans that were chosen.
#[cube]
fn listed_token(pool: &mut Pool, i: u32, #[comptime] config: Config) -> u32 {
    let tokens = comptime!(config.spans.tokens() as u32);
    token(pool.list[(i / tokens) as usize], i % tokens, config.spans)
}

/// Whether number `i` may be, of [`Over::Pool`] and [`Over::Row`] whether it is, among the best.
#[cube]
fn is_taken(
    pool: &mut Pool,
    values: &[f32],
    maxima: &[f32],
    importances: &Importances,
    i: u32,
    kept: bool,
    floor: u32,
    bar: u32,
    tie: u32,
    #[comptime] over: Over,
    #[comptime] config: Config,
) -> bool {
    match comptime!(over) {
        Over::Spans => {
            let key = if kept { pool.keys[i as usize] } else { order_key(maxima[importances.first_span + i as usize]) };
            key >= max(floor, 1u32)
        }
        Over::Listed => row_key(values, importances, listed_token(pool, i, config)) >= max(floor, 1u32),
        Over::Pool => {
            let key = pool.keys[i as usize];
            key > bar || (key == bar && !pool.places[i as usize] >= tie)
        }
        _ => {
            let key = row_key(values, importances, i);
            key > bar || (key == bar && !i >= tie)
        }
    }
}
