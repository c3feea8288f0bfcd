//! Attention of one token: over chosen rows of the cache, or over all of them, each row read once for the group of query
//! heads that shares it.
//!
//! Rows are split over cubes, and in a cube over *teams*: planes where units of a plane can exchange numbers, else the
//! cube is one team. A team reads keys of a tile of rows, turns scores to weights relative to the largest score so far,
//! and adds up values; what teams and cubes have found is merged by the usual rule for partial softmaxes.

use crate::device::{Gpu, buffer};
use crate::error::{Result, ensure};
use crate::numbers::{Format, number};
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Keys and values of a layer on the device, `[heads, capacity, dim]` each.
#[derive(Debug, Clone)]
pub struct Cache {
    /// Number format.
    pub format: Format,
    /// Keys.
    pub keys: Handle,
    /// Values.
    pub values: Handle,
    /// KV heads, those of all sequences of a batch.
    pub heads: usize,
    /// Rows of a head.
    pub capacity: usize,
    /// Numbers of a row.
    pub dim: usize,
}

impl Cache {
    /// Words of a row.
    pub(crate) fn words(&self) -> Result<usize> {
        ensure(self.dim.is_multiple_of(2) && self.dim > 0 && self.dim <= 512, "dim", "an even number up to 512")?;
        Ok(self.dim / self.format.per_word())
    }
}

/// Which rows a query attends to.
#[derive(Debug, Clone, Copy)]
pub enum Rows<'a> {
    /// The first of every head.
    First(usize),
    /// `[lists, count]` positions. There may be several lists per KV head, each for a share of its query heads.
    Chosen {
        /// Positions.
        positions: &'a Handle,
        /// Positions of a list.
        count: usize,
        /// Lists per KV head.
        lists: usize,
    },
}

/// Less than any score.
const NOTHING: f32 = -1.0e30;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Config {
    format: Format,
    native_half: bool,
    dim: usize,
    /// Query heads that share a list of rows, and that filled up to a power of two.
    group: usize,
    padded: usize,
    /// Units that share a row, and vectors of a row per unit.
    lanes: usize,
    vectors: usize,
    /// Units of a team, teams of a cube.
    team: usize,
    teams: usize,
    /// Rows per unit that are scored together, and how often before the tile is done.
    rows: usize,
    batches: usize,
    plane: u32,
    chosen: bool,
    /// Whether the cube's result is the whole one.
    whole: bool,
}

impl Config {
    const fn slots(&self) -> usize {
        self.team / self.lanes
    }

    /// Rows of a tile.
    const fn tile(&self) -> usize {
        self.slots() * self.rows * self.batches
    }

    /// Partial results of a cube in shared memory.
    const fn parts(&self) -> usize {
        if self.plane > 0 { self.teams } else { self.slots() }
    }
}

/// Attention of `queries`, `[query heads, dim]` in f32, to rows of the cache. Returns `[query heads, dim]` in f32.
///
/// Time: the bytes of the rows, once. One launch if the rows fit into one cube's share, else two.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if shapes disagree or the head dimension is odd or above 512.
pub fn attend(gpu: &Gpu, queries: &Handle, query_heads: usize, cache: &Cache, rows: Rows<'_>) -> Result<Handle> {
    let out = gpu.words(query_heads * cache.dim);
    attend_into(gpu, queries, query_heads, cache, rows, &out)?;
    Ok(out)
}

/// As [`attend`], into a buffer that is there.
///
/// # Errors
/// As [`attend`].
pub fn attend_into(
    gpu: &Gpu,
    queries: &Handle,
    query_heads: usize,
    cache: &Cache,
    rows: Rows<'_>,
    out: &Handle,
) -> Result<()> {
    let (count, lists) = match rows {
        Rows::First(count) => (count, 1),
        Rows::Chosen { count, lists, .. } => (count, lists),
    };
    let all_lists = cache.heads * lists;
    ensure(count > 0 && count <= cache.capacity, "rows", "1 up to the cache's capacity")?;
    ensure(
        lists > 0 && query_heads.is_multiple_of(all_lists) && query_heads > 0,
        "query_heads",
        "lists share them equally",
    )?;
    let group = query_heads / all_lists;
    ensure(group <= 16, "group", "1 to 16 query heads can share a list")?;
    let words = cache.words()?;
    let vector = [4, 2, 1].into_iter().find(|v| words.is_multiple_of(*v)).unwrap_or(1);
    let (config, splits, per_cube) =
        plan(gpu, cache, group, words / vector, count, all_lists, matches!(rows, Rows::Chosen { .. }));
    let positions = match rows {
        Rows::Chosen { positions, .. } => (positions.clone(), all_lists * count),
        Rows::First(_) => (queries.clone(), 1),
    };
    let (partials, states) = if config.whole {
        (out.clone(), out.clone())
    } else {
        (gpu.words(query_heads * splits * cache.dim), gpu.words(query_heads * splits * 2))
    };
    let cache_len = cache.heads * cache.capacity * words / vector;
    // SAFETY: the lengths are those of `Cache`, of `Rows` and of the allocations above; positions are below `capacity`, as
    // selection writes them; rows past `count` are read as the last one.
    unsafe {
        attend_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::Static(splits as u32, all_lists as u32, 1),
            CubeDim::new_1d((config.team * config.teams) as u32),
            vector,
            buffer(queries, query_heads * cache.dim),
            buffer(&cache.keys, cache_len),
            buffer(&cache.values, cache_len),
            buffer(&positions.0, positions.1),
            buffer(&partials, query_heads * splits * cache.dim),
            buffer(&states, if config.whole { 1 } else { query_heads * splits * 2 }),
            cache.capacity as u32,
            count as u32,
            per_cube as u32,
            lists as u32,
            1.0 / (cache.dim as f32).sqrt(),
            config,
        );
        if !config.whole {
            merge_kernel::launch_unchecked(
                &gpu.client,
                CubeCount::Static(query_heads as u32, 1, 1),
                CubeDim::new_1d((cache.dim as u32).next_multiple_of(32)),
                buffer(&partials, query_heads * splits * cache.dim),
                buffer(&states, query_heads * splits * 2),
                buffer(out, query_heads * cache.dim),
                splits as u32,
                cache.dim as u32,
                group as u32,
            );
        }
    }
    Ok(())
}

/// Shape of cubes, how many share a list's rows, and rows per cube.
fn plan(
    gpu: &Gpu,
    cache: &Cache,
    group: usize,
    vectors_of_row: usize,
    count: usize,
    lists: usize,
    chosen: bool,
) -> (Config, usize, usize) {
    let plane = gpu.traits.plane;
    let lanes = vectors_of_row.next_power_of_two().min(32);
    let vectors = vectors_of_row.div_ceil(lanes);
    let padded = group.next_power_of_two();
    let (team, teams) = (32, if plane > 0 { if padded > 4 { 4 } else { 8 } } else { 1 });
    let rows = (16 / padded).clamp(1, 4);
    let slots = team / lanes;
    // Few rows are read by as many units as there are; many rows in tiles of one row per unit of the team.
    let few = count * lists < 64 * gpu.traits.processors as usize;
    let batches = if few { 1 } else { (32 / (slots * rows)).max(1) };
    let mut config = Config {
        format: cache.format,
        native_half: gpu.traits.native_half,
        dim: cache.dim,
        group,
        padded,
        lanes,
        vectors,
        team,
        teams,
        rows,
        batches,
        plane,
        chosen,
        whole: false,
    };
    let step = config.tile() * teams;
    let wanted = (2 * gpu.traits.processors as usize).div_ceil(lists).max(1);
    let per_cube = if few { step } else { count.div_ceil(wanted).next_multiple_of(step) };
    let splits = count.div_ceil(per_cube);
    config.whole = splits == 1;
    (config, splits, per_cube)
}

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
fn row_at(positions: &[u32], at: u32, count: u32, list: usize, #[comptime] config: Config) -> usize {
    let at = min(at, count - 1);
    if comptime!(config.chosen) { positions[list * count as usize + at as usize] as usize } else { at as usize }
}

#[cube(launch_unchecked)]
fn attend_kernel<N: Size>(
    queries: &[f32],
    keys: &[Vector<u32, N>],
    values: &[Vector<u32, N>],
    positions: &[u32],
    out: &mut [f32],
    states: &mut [f32],
    capacity: u32,
    count: u32,
    per_cube: u32,
    lists: u32,
    scale: f32,
    #[comptime] config: Config,
) {
    let width = N::value();
    let (dim, group, padded, lanes) = comptime!((config.dim, config.group, config.padded, config.lanes));
    let (slots, rows, batches, tile) = comptime!((config.slots(), config.rows, config.batches, config.tile()));
    let per_word = comptime!(config.format.per_word());
    let vector_numbers = comptime!(width * per_word);
    let row_vectors = comptime!(dim / vector_numbers);
    let numbers = comptime!(config.vectors * vector_numbers);
    let list = CUBE_POS_Y as usize;
    let head = list / lists as usize;
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

    let stop = min(count, (CUBE_POS_X + 1) * per_cube);
    let mut begin = CUBE_POS_X * per_cube;
    // All teams take the same number of steps, since some devices let only the whole cube wait.
    while begin < stop {
        let first = begin + team as u32 * comptime!(tile as u32);
        #[unroll]
        for b in 0..batches {
            let mut parts = Array::<f32>::new(comptime!(rows * padded));
            let mut loaded = Array::<Vector<u32, N>>::new(comptime!(rows * config.vectors));
            #[unroll]
            for r in 0..rows {
                let at = first + (comptime!((b * rows + r) * slots) + slot) as u32;
                let token = row_at(positions, at, count, list, config);
                let base = (head * capacity as usize + token) * row_vectors;
                #[unroll]
                for v in 0..comptime!(config.vectors) {
                    let vector = comptime!(v * lanes) + lane;
                    loaded[r * comptime!(config.vectors) + v] = keys[base + min(vector, comptime!(row_vectors - 1))];
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
            let mut loaded = Array::<Vector<u32, N>>::new(comptime!(rows * config.vectors));
            #[unroll]
            for r in 0..rows {
                let at = first + (comptime!((b * rows + r) * slots) + slot) as u32;
                let token = row_at(positions, at, count, list, config);
                let base = (head * capacity as usize + token) * row_vectors;
                #[unroll]
                for v in 0..comptime!(config.vectors) {
                    let vector = comptime!(v * lanes) + lane;
                    loaded[r * comptime!(config.vectors) + v] = values[base + min(vector, comptime!(row_vectors - 1))];
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
            let at = list * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
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
        // With each exchange a unit gives half of its sums away and gets the other half's rest, until it has its own only.
        let halvings = comptime!(count.ilog2().min(lanes.ilog2()));
        let further = comptime!(lanes.ilog2() - halvings);
        #[unroll]
        for s in 0..halvings {
            let half = comptime!(count >> (s + 1));
            let offset = comptime!(lanes >> (s + 1));
            let upper = (lane & offset) != 0;
            #[unroll]
            for i in 0..half {
                let kept = select(upper, parts[i + half], parts[i]);
                let given = select(upper, parts[i], parts[i + half]);
                parts[i] = kept + plane_shuffle_xor(given, comptime!(offset as u32));
            }
        }
        let left = comptime!(count >> halvings);
        #[unroll]
        for s in 0..further {
            let offset = comptime!(lanes >> (halvings + s + 1));
            #[unroll]
            for i in 0..left {
                parts[i] += plane_shuffle_xor(parts[i], comptime!(offset as u32));
            }
        }
        // The upper bits of the lane say which sums it has.
        let mine = lane >> comptime!(further as usize);
        if lane & comptime!((1usize << further) - 1) == 0 {
            #[unroll]
            for i in 0..left {
                let at = mine * left + i;
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

/// Brings the parts of a query head together.
#[cube(launch_unchecked)]
fn merge_kernel(partials: &[f32], states: &[f32], out: &mut [f32], splits: u32, dim: u32, group: u32) {
    let (list, g) = (CUBE_POS_X / group, CUBE_POS_X % group);
    let c = UNIT_POS;
    if c < dim {
        let mut top = f32::new(NOTHING);
        for s in 0..splits {
            top = max(top, states[(((list * splits + s) * group + g) * 2) as usize]);
        }
        let mut sum = 0.0f32;
        let mut total = 0.0f32;
        for s in 0..splits {
            let at = ((list * splits + s) * group + g) as usize;
            let share = (states[at * 2] - top).exp();
            sum += partials[at * dim as usize + c as usize] * share;
            total += states[at * 2 + 1] * share;
        }
        out[(CUBE_POS_X * dim + c) as usize] = sum / total;
    }
}
