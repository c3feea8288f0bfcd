//! Attention of a cube to its share of the rows.

use super::weights::{add_up, sync_team, weigh};
use super::{Config, NOTHING, Source};
use crate::numbers::number;
use cubecl::prelude::*;

/// What the teams of a cube have found, `[parts, group, dim]` and `[teams, group]`.
#[derive(CubeType)]
pub(crate) struct Found {
    sums: Shared<[f32]>,
    /// How much a team's part counts for.
    shares: Shared<[f32]>,
    /// The largest score of each query head.
    highest: Shared<[f32]>,
    totals: Shared<[f32]>,
}

/// A number of a cube's result: relative to the largest score, with the sum of the weights.
#[derive(CubeType)]
pub(crate) struct Number {
    pub top: f32,
    pub sum: f32,
    pub all: f32,
}

/// Row of the cache that the team's row `at` is.
#[cube]
fn row_at(
    positions: &[u32],
    own: &Shared<[u32]>,
    at: u32,
    count: u32,
    list: usize,
    capacity: u32,
    #[comptime] config: Config,
) -> usize {
    let at = min(at, count - 1);
    // No position leads out of the cache, whatever it is.
    match comptime!(config.source) {
        Source::First => at as usize,
        Source::Chosen => min(positions[list * count as usize + at as usize], capacity - 1) as usize,
        Source::Own => min(own[at as usize], capacity - 1) as usize,
    }
}

/// A unit's share of the rows that it reads together, `rows` times `vectors`: row `first` of the list, and every so many
/// slots the next.
#[cube]
fn load_rows<N: Size>(
    cache: &[Vector<u32, N>],
    positions: &[u32],
    own: &Shared<[u32]>,
    first: u32,
    lane: usize,
    count: u32,
    list: usize,
    head: usize,
    capacity: u32,
    #[comptime] config: Config,
) -> Array<Vector<u32, N>> {
    let width = N::value();
    let row_vectors = comptime!(config.dim / (width * config.format.per_word()));
    let mut loaded = Array::<Vector<u32, N>>::new(comptime!(config.rows * config.vectors));
    #[unroll]
    for r in 0..comptime!(config.rows) {
        let at = first + comptime!((r * config.slots()) as u32);
        let token = row_at(positions, own, at, count, list, capacity, config);
        let base = (head * capacity as usize + token) * row_vectors;
        #[unroll]
        for v in 0..comptime!(config.vectors) {
            let vector = comptime!(v * config.lanes) + lane;
            loaded[r * comptime!(config.vectors) + v] = cache[base + min(vector, comptime!(row_vectors - 1))];
        }
    }
    loaded
}

/// Attention of the list's queries to rows `begin` up to `stop` of a list. Every unit of the cube must call.
#[cube]
pub(crate) fn attend_rows<N: Size>(
    queries: &[f32],
    keys: &[Vector<u32, N>],
    values: &[Vector<u32, N>],
    positions: &[u32],
    own: &Shared<[u32]>,
    list: usize,
    head: usize,
    begin: u32,
    stop: u32,
    count: u32,
    capacity: u32,
    scale: f32,
    #[comptime] config: Config,
) -> Found {
    let width = N::value();
    let (dim, group, padded, lanes) = comptime!((config.dim, config.group, config.padded, config.lanes));
    let (slots, rows, batches, tile) = comptime!((config.slots(), config.rows, config.batches, config.tile()));
    let per_word = comptime!(config.format.per_word());
    let vector_numbers = comptime!(width * per_word);
    let numbers = comptime!(config.vectors * vector_numbers);
    let team = (UNIT_POS as usize) / comptime!(config.team);
    let unit = (UNIT_POS as usize) % comptime!(config.team);
    let (slot, lane) = (unit / lanes, unit % lanes);

    let mut query = Array::<f32>::new(comptime!(group * numbers));
    let mut sums = Array::<f32>::new(comptime!(group * numbers));
    #[unroll]
    for g in 0..group {
        #[unroll]
        for i in 0..numbers {
            let vector = comptime!(i / vector_numbers) * lanes + lane;
            let c = vector * vector_numbers + comptime!(i % vector_numbers);
            let inside = c < dim;
            let x = queries[(list * group + g) * dim + select(inside, c, 0usize)];
            query[g * numbers + i] = select(inside, x * scale, 0.0f32);
            sums[g * numbers + i] = 0.0f32;
        }
    }
    let mut largest = Array::<f32>::new(group);
    let mut total = Array::<f32>::new(group);
    #[unroll]
    for g in 0..group {
        largest[g] = NOTHING;
        total[g] = 0.0f32;
    }
    let mut weights = Shared::<[f32]>::new_slice(comptime!(config.teams * tile * padded));
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(if config.plane > 0 {
        1
    } else {
        config.team * config.rows * config.padded
    }));
    let team_weights = team * comptime!(tile * padded);

    let mut begin = begin;
    // Rows on their way: keys of a tile batch by batch, then values, then keys of the next tile. Where a tile is one batch it
    // waits for its keys and values together.
    let ahead = comptime!(if config.batches == 1 { 2usize } else { config.ahead });
    let held = comptime!(config.rows * config.vectors);
    let mut coming = Array::<Vector<u32, N>>::new(comptime!(ahead * held));
    if comptime!(batches > 1) {
        #[unroll]
        for b in 0..ahead {
            let first_row = begin + team as u32 * comptime!(tile as u32) + (comptime!(b * rows * slots) + slot) as u32;
            let read = load_rows::<N>(keys, positions, own, first_row, lane, count, list, head, capacity, config);
            #[unroll]
            for i in 0..held {
                coming[b * held + i] = read[i];
            }
        }
    }
    // All teams take the same number of steps, since some devices let only the whole cube wait.
    while begin < stop {
        let first = begin + team as u32 * comptime!(tile as u32);
        if comptime!(batches == 1) {
            let first_row = first + slot as u32;
            let read = load_rows::<N>(keys, positions, own, first_row, lane, count, list, head, capacity, config);
            let next = load_rows::<N>(values, positions, own, first_row, lane, count, list, head, capacity, config);
            #[unroll]
            for i in 0..held {
                coming[i] = read[i];
                coming[held + i] = next[i];
            }
        }
        #[unroll]
        for b in 0..batches {
            let mut parts = Array::<f32>::new(comptime!(rows * padded));
            let mut loaded = Array::<Vector<u32, N>>::new(held);
            #[unroll]
            for i in 0..held {
                loaded[i] = coming[comptime!(b % ahead * held) + i];
            }
            if comptime!(batches > 1) {
                // What lies `ahead` batches ahead.
                let after = comptime!(b + ahead);
                let at = first + (comptime!(after % batches * rows * slots) + slot) as u32;
                let read = if comptime!(after < batches) {
                    load_rows::<N>(keys, positions, own, at, lane, count, list, head, capacity, config)
                } else {
                    load_rows::<N>(values, positions, own, at, lane, count, list, head, capacity, config)
                };
                #[unroll]
                for i in 0..held {
                    coming[comptime!(b % ahead * held) + i] = read[i];
                }
            }
            #[unroll]
            for r in 0..rows {
                #[unroll]
                for g in 0..padded {
                    parts[r * padded + g] = 0.0f32;
                }
                #[unroll]
                for i in 0..numbers {
                    let v = comptime!(i / vector_numbers);
                    let word =
                        loaded[r * comptime!(config.vectors) + v].extract(comptime!(i % vector_numbers / per_word));
                    let key = number(word, comptime!(i % per_word), config.format, config.native_half);
                    #[unroll]
                    for g in 0..group {
                        parts[r * padded + g] += query[g * numbers + i] * key;
                    }
                }
            }
            add_up(&mut parts, &mut weights, &mut scratch, team_weights, b, slot, lane, unit, config);
        }
        sync_team(config);
        weigh(
            &mut weights,
            &mut scratch,
            &mut largest,
            &mut total,
            &mut sums,
            team_weights,
            unit,
            first,
            stop,
            numbers,
            config,
        );
        sync_team(config);
        #[unroll]
        for b in 0..batches {
            let mut loaded = Array::<Vector<u32, N>>::new(held);
            let turn = comptime!((batches + b) % ahead * held);
            #[unroll]
            for i in 0..held {
                loaded[i] = coming[turn + i];
            }
            if comptime!(batches > 1) {
                let after = comptime!(b + ahead);
                let step = comptime!((if after < batches { 0 } else { config.teams * tile }) as u32);
                let at = first + step + (comptime!(after % batches * rows * slots) + slot) as u32;
                let read = if comptime!(after < batches) {
                    load_rows::<N>(values, positions, own, at, lane, count, list, head, capacity, config)
                } else {
                    load_rows::<N>(keys, positions, own, at, lane, count, list, head, capacity, config)
                };
                #[unroll]
                for i in 0..held {
                    coming[turn + i] = read[i];
                }
            }
            #[unroll]
            for r in 0..rows {
                let row = comptime!((b * rows + r) * slots) + slot;
                let mut weight = Array::<f32>::new(group);
                #[unroll]
                for g in 0..group {
                    weight[g] = weights[team_weights + row * padded + g];
                }
                #[unroll]
                for i in 0..numbers {
                    let v = comptime!(i / vector_numbers);
                    let word =
                        loaded[r * comptime!(config.vectors) + v].extract(comptime!(i % vector_numbers / per_word));
                    let value = number(word, comptime!(i % per_word), config.format, config.native_half);
                    #[unroll]
                    for g in 0..group {
                        sums[g * numbers + i] += weight[g] * value;
                    }
                }
            }
        }
        sync_team(config);
        begin += comptime!((config.teams * tile) as u32);
    }

    // What the slots of a plane have, then what the teams have, comes together.
    if comptime!(config.plane > 0) {
        #[unroll]
        for i in 0..comptime!(group * numbers) {
            let mut sum = sums[i];
            #[unroll]
            for s in 0..comptime!(slots.ilog2()) {
                sum += plane_shuffle_xor(sum, comptime!((lanes << s) as u32));
            }
            sums[i] = sum;
        }
        #[unroll]
        for g in 0..group {
            total[g] = plane_sum(total[g]);
        }
    }
    let mut found_sums = Shared::<[f32]>::new_slice(comptime!(config.parts() * group * dim));
    let mut tops = Shared::<[f32]>::new_slice(comptime!(config.teams * group));
    let mut totals = Shared::<[f32]>::new_slice(comptime!(if config.plane > 0 {
        config.teams * group
    } else {
        config.team * group
    }));
    let part = if comptime!(config.plane > 0) { team } else { slot };
    if comptime!(config.plane == 0) || slot == 0 {
        #[unroll]
        for g in 0..group {
            #[unroll]
            for i in 0..numbers {
                let c = (comptime!(i / vector_numbers) * lanes + lane) * vector_numbers + comptime!(i % vector_numbers);
                if c < dim {
                    found_sums[(part * group + g) * dim + c] = sums[g * numbers + i];
                }
            }
        }
    }
    if unit == 0 {
        #[unroll]
        for g in 0..group {
            tops[team * group + g] = largest[g];
        }
    }
    if comptime!(config.plane == 0) || unit == 0 {
        let at = if comptime!(config.plane > 0) { team } else { unit };
        #[unroll]
        for g in 0..group {
            totals[at * group + g] = total[g];
        }
    }
    sync_cube();
    // How much each team's part counts for.
    let mut shares = Shared::<[f32]>::new_slice(comptime!(config.teams * group));
    let mut highest = Shared::<[f32]>::new_slice(group);
    let mut i = UNIT_POS as usize;
    while i < comptime!(config.teams * group) {
        let g = i % group;
        let mut top = tops[g];
        for t in 1..comptime!(config.teams) {
            top = max(top, tops[t * group + g]);
        }
        shares[i] = (tops[i] - top).exp();
        if i < group {
            highest[g] = top;
        }
        i += comptime!(config.team * config.teams);
    }
    sync_cube();
    Found { sums: found_sums, shares, highest, totals }
}

/// Number `i` of the cube's result, `[group, dim]`.
#[cube]
pub(crate) fn number_found(found: &Found, i: usize, #[comptime] config: Config) -> Number {
    let (dim, group) = comptime!((config.dim, config.group));
    let g = i / dim;
    let mut sum = 0.0f32;
    let mut all = 0.0f32;
    if comptime!(config.plane > 0) {
        #[unroll]
        for t in 0..comptime!(config.teams) {
            let share = found.shares[t * group + g];
            sum += found.sums[t * comptime!(group * dim) + i] * share;
            all += found.totals[t * group + g] * share;
        }
    } else {
        for t in 0..comptime!(config.parts()) {
            sum += found.sums[t * comptime!(group * dim) + i];
        }
        for t in 0..comptime!(config.team) {
            all += found.totals[t * group + g];
        }
    }
    Number { top: found.highest[g], sum, all }
}
