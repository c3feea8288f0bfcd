//! What the device runs.

use super::{Config, NOTHING};
use crate::length::tokens;
use crate::numbers::number;
use crate::team::{Exchange, Reduce, exchange, exchange_first, exchange_owner};
use cubecl::prelude::*;

/// Waits for the other units of the team.
#[cube]
fn sync_team(#[comptime] config: Config) {
    if comptime!(config.plane > 0) {
        sync_plane();
    } else {
        sync_cube();
    }
}

/// Row of the cache that the team's row `at` is.
#[cube]
fn row_at(positions: &[u32], at: u32, count: u32, list: usize, capacity: u32, #[comptime] config: Config) -> usize {
    let at = min(at, count - 1);
    // No position leads out of the cache, whatever it is.
    if comptime!(config.chosen) {
        min(positions[list * count as usize + at as usize], capacity - 1) as usize
    } else {
        at as usize
    }
}

/// A unit's share of the rows that it reads together, `rows` times `vectors`: row `first` of the list, and every so many
/// slots the next.
#[cube]
fn load_rows<N: Size>(
    cache: &[Vector<u32, N>],
    positions: &[u32],
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
        let token = row_at(positions, at, count, list, capacity, config);
        let base = (head * capacity as usize + token) * row_vectors;
        #[unroll]
        for v in 0..comptime!(config.vectors) {
            let vector = comptime!(v * config.lanes) + lane;
            loaded[r * comptime!(config.vectors) + v] = cache[base + min(vector, comptime!(row_vectors - 1))];
        }
    }
    loaded
}

/// Attention to a cube's share of the rows: whole, or its part with the state that [`merge_kernel`] needs.
#[cube(launch_unchecked)]
pub(super) fn attend_kernel<N: Size>(
    queries: &[f32],
    keys: &[Vector<u32, N>],
    values: &[Vector<u32, N>],
    positions: &[u32],
    out: &mut [f32],
    states: &mut [f32],
    length: &[u32],
    capacity: u32,
    most_rows: u32,
    per_cube: u32,
    lists: u32,
    scale: f32,
    #[comptime] config: Config,
) {
    let list = CUBE_POS_Y as usize;
    let count = tokens(length, most_rows, config.device_len);
    let stop = min(count, (CUBE_POS_X + 1) * per_cube);
    let at = list * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    let (begin, head) = (CUBE_POS_X * per_cube, list / lists as usize);
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
    // All teams take the same number of steps, since some devices let only the whole cube wait.
    while begin < stop {
        let first = begin + team as u32 * comptime!(tile as u32);
        // Where a team has few rows it waits for keys and values together.
        let mut ahead = Array::<Vector<u32, N>>::new(comptime!(if batches == 1 { rows * config.vectors } else { 1 }));
        #[unroll]
        for b in 0..batches {
            let mut parts = Array::<f32>::new(comptime!(rows * padded));
            let first_row = first + (comptime!(b * rows * slots) + slot) as u32;
            let loaded = load_rows::<N>(keys, positions, first_row, lane, count, list, head, capacity, config);
            if comptime!(batches == 1) {
                let next = load_rows::<N>(values, positions, first_row, lane, count, list, head, capacity, config);
                #[unroll]
                for i in 0..comptime!(rows * config.vectors) {
                    ahead[i] = next[i];
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
            let first_row = first + (comptime!(b * rows * slots) + slot) as u32;
            let mut loaded = Array::<Vector<u32, N>>::new(comptime!(rows * config.vectors));
            if comptime!(batches == 1) {
                #[unroll]
                for i in 0..comptime!(rows * config.vectors) {
                    loaded[i] = ahead[i];
                }
            } else {
                let now = load_rows::<N>(values, positions, first_row, lane, count, list, head, capacity, config);
                #[unroll]
                for i in 0..comptime!(rows * config.vectors) {
                    loaded[i] = now[i];
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
    let parts = comptime!(config.parts());
    let mut found = Shared::<[f32]>::new_slice(comptime!(config.parts() * group * dim));
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
                    found[(part * group + g) * dim + c] = sums[g * numbers + i];
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
    let units = comptime!(config.team * config.teams);
    let mut i = UNIT_POS as usize;
    while i < comptime!(group * dim) {
        let g = i / dim;
        let mut top = tops[g];
        for t in 1..comptime!(config.teams) {
            top = max(top, tops[t * group + g]);
        }
        let mut sum = 0.0f32;
        let mut all = 0.0f32;
        if comptime!(config.plane > 0) {
            for t in 0..parts {
                let share = (tops[t * group + g] - top).exp();
                sum += found[t * comptime!(group * dim) + i] * share;
                all += totals[t * group + g] * share;
            }
        } else {
            for t in 0..parts {
                sum += found[t * comptime!(group * dim) + i];
            }
            for t in 0..comptime!(config.team) {
                all += totals[t * group + g];
            }
        }
        if comptime!(config.whole) {
            out[list * comptime!(group * dim) + i] = sum / all;
        } else {
            out[at * comptime!(group * dim) + i] = sum;
            if i % dim == 0 {
                states[(at * group + g) * 2] = top;
                states[(at * group + g) * 2 + 1] = all;
            }
        }
        i += units;
    }
}

/// Adds the parts of scores that the units of a row have, and leaves the scores of a batch in the team's weights.
#[cube]
fn add_up(
    parts: &mut Array<f32>,
    weights: &mut Shared<[f32]>,
    scratch: &mut Shared<[f32]>,
    team_weights: usize,
    #[comptime] batch: usize,
    slot: usize,
    lane: usize,
    unit: usize,
    #[comptime] config: Config,
) {
    let (rows, padded, lanes, slots) = comptime!((config.rows, config.padded, config.lanes, config.slots()));
    let count = comptime!(rows * padded);
    let first = comptime!(batch * rows * slots);
    if comptime!(config.plane > 0) {
        let shape = comptime!(Exchange { count, lanes });
        exchange(parts, lane, Reduce::Sum, shape);
        if exchange_owner(lane, shape) {
            #[unroll]
            for i in 0..comptime!(shape.left()) {
                let at = exchange_first(lane, shape) + i;
                let (row, g) = (at / padded, at % padded);
                weights[team_weights + (first + row * slots + slot) * padded + g] = parts[i];
            }
        }
    } else {
        #[unroll]
        for i in 0..count {
            scratch[unit * count + i] = parts[i];
        }
        sync_cube();
        let mut i = unit;
        while i < comptime!(slots * count) {
            let (s, at) = (i / count, i % count);
            let mut sum = 0.0f32;
            for l in 0..lanes {
                sum += scratch[(s * lanes + l) * count + at];
            }
            let (row, g) = (at / padded, at % padded);
            weights[team_weights + (first + row * slots + s) * padded + g] = sum;
            i += comptime!(config.team);
        }
        sync_cube();
    }
}

/// Scores of the tile to weights relative to the largest score so far; what was summed before is scaled to it.
#[cube]
fn weigh(
    weights: &mut Shared<[f32]>,
    scratch: &mut Shared<[f32]>,
    largest: &mut Array<f32>,
    total: &mut Array<f32>,
    sums: &mut Array<f32>,
    team_weights: usize,
    unit: usize,
    first: u32,
    stop: u32,
    #[comptime] numbers: usize,
    #[comptime] config: Config,
) {
    let (group, padded, tile, team) = comptime!((config.group, config.padded, config.tile(), config.team));
    let per_unit = comptime!(tile.div_ceil(team));
    let mut scores = Array::<f32>::new(comptime!(group * per_unit));
    let mut top = Array::<f32>::new(group);
    #[unroll]
    for g in 0..group {
        top[g] = NOTHING;
        #[unroll]
        for p in 0..per_unit {
            let row = unit + comptime!(p * team);
            let valid = row < tile && first + (row as u32) < stop;
            let at = team_weights + select(row < tile, row, 0usize) * padded + g;
            let score = select(valid, weights[at], NOTHING);
            scores[g * per_unit + p] = score;
            top[g] = max(top[g], score);
        }
    }
    if comptime!(config.plane > 0) {
        #[unroll]
        for g in 0..group {
            top[g] = plane_max(top[g]);
        }
    } else {
        #[unroll]
        for g in 0..group {
            scratch[unit * group + g] = top[g];
        }
        sync_cube();
        for u in 0..team {
            #[unroll]
            for g in 0..group {
                top[g] = max(top[g], scratch[u * group + g]);
            }
        }
        sync_cube();
    }
    #[unroll]
    for g in 0..group {
        let most = max(largest[g], top[g]);
        let keep = (largest[g] - most).exp();
        largest[g] = most;
        total[g] *= keep;
        #[unroll]
        for i in 0..numbers {
            sums[g * numbers + i] *= keep;
        }
        #[unroll]
        for p in 0..per_unit {
            let row = unit + comptime!(p * team);
            let valid = row < tile && first + (row as u32) < stop;
            let weight = select(valid, (scores[g * per_unit + p] - most).exp(), 0.0f32);
            total[g] += weight;
            if row < tile {
                weights[team_weights + row * padded + g] = weight;
            }
        }
    }
}

/// Brings the parts of a query head together. A few parts are read at once.
#[cube(launch_unchecked)]
pub(super) fn merge_kernel(
    partials: &[f32],
    states: &[f32],
    out: &mut [f32],
    splits: u32,
    dim: u32,
    group: u32,
    #[comptime] few: u32,
) {
    let (list, g) = (CUBE_POS_X / group, CUBE_POS_X % group);
    let c = UNIT_POS;
    if c < dim {
        let mut sum = 0.0f32.runtime();
        let mut total = 0.0f32.runtime();
        let mut top = NOTHING.runtime();
        if comptime!(few > 0) {
            let mut tops = Array::<f32>::new(comptime!(few as usize));
            let mut totals = Array::<f32>::new(comptime!(few as usize));
            let mut parts = Array::<f32>::new(comptime!(few as usize));
            #[unroll]
            for s in 0..few {
                let at = ((list * splits + s) * group + g) as usize;
                tops[s as usize] = states[at * 2];
                totals[s as usize] = states[at * 2 + 1];
                parts[s as usize] = partials[at * dim as usize + c as usize];
            }
            #[unroll]
            for s in 0..few {
                top = max(top, tops[s as usize]);
            }
            #[unroll]
            for s in 0..few {
                let share = (tops[s as usize] - top).exp();
                sum += parts[s as usize] * share;
                total += totals[s as usize] * share;
            }
        } else {
            for s in 0..splits {
                top = max(top, states[(((list * splits + s) * group + g) * 2) as usize]);
            }
            for s in 0..splits {
                let at = ((list * splits + s) * group + g) as usize;
                let share = (states[at * 2] - top).exp();
                sum += partials[at * dim as usize + c as usize] * share;
                total += states[at * 2 + 1] * share;
            }
        }
        out[(CUBE_POS_X * dim + c) as usize] = sum / total;
    }
}
