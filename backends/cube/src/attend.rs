//! Attention of one token: over chosen rows of the cache, or over all of them, each row read once for the group of query
//! heads that shares it.
//!
//! Rows are split over cubes, and in a cube over *teams*: planes where units of a plane can exchange numbers, else the
//! cube is one team. A team reads keys of a tile of rows, turns scores to weights relative to the largest score so far,
//! and adds up values; what teams and cubes have found is merged by the usual rule for partial softmaxes.

mod kernel;
pub(crate) mod rows;
mod weights;

use crate::device::{Gpu, buffer};
use crate::error::{Result, ensure};
use crate::length::Length;
use crate::numbers::Format;
use cubecl::prelude::*;
use cubecl::server::Handle;
use kernel::{attend_kernel, merge_kernel};

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

    /// Words of a row, and of a vector that is read at once.
    fn vectors(&self) -> Result<(usize, usize)> {
        let words = self.words()?;
        Ok((words, [4, 2, 1].into_iter().find(|v| words.is_multiple_of(*v)).unwrap_or(1)))
    }
}

/// Which rows a query attends to.
#[derive(Debug, Clone, Copy)]
pub enum Rows<'a> {
    /// The first of every head.
    First(usize),
    /// The first of every head, whose number may be kept on the device.
    Kept(&'a Length),
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

/// Where the rows of a cube are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// The first of the cache.
    First,
    /// Where a list of positions says.
    Chosen,
    /// Where the cube's own list says.
    Own,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Config {
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
    /// Batches that are asked for before they are needed, where there are several: a part of them.
    ahead: usize,
    plane: u32,
    source: Source,
    /// Whether the cube's result is the whole one.
    whole: bool,
    /// Whether the number of rows is read from the device.
    device_len: bool,
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
    pub const fn parts(&self) -> usize {
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
        Rows::Kept(len) => (len.most(), 1),
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
    let (words, vector) = cache.vectors()?;
    let length = if let Rows::Kept(len) = rows { len.handle() } else { None };
    let (mut config, splits, per_cube) =
        plan(gpu, cache, group, words / vector, count, all_lists, matches!(rows, Rows::Chosen { .. }));
    config.device_len = length.is_some();
    let positions = match rows {
        Rows::Chosen { positions, .. } => (positions.clone(), all_lists * count),
        Rows::First(_) | Rows::Kept(_) => (queries.clone(), 1),
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
            buffer(length.unwrap_or(queries), 1),
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
                if splits <= 8 { splits as u32 } else { 0 },
            );
        }
    }
    Ok(())
}

/// Teams for rows that a cube of `units` units has chosen itself, for `group` query heads: a few rows, as many at once as there
/// are units for.
pub(crate) fn plan_own(gpu: &Gpu, cache: &Cache, group: usize, units: usize) -> Result<(Config, usize)> {
    let (words, vector) = cache.vectors()?;
    let lanes = (words / vector).next_power_of_two().min(32);
    let plane = gpu.traits.plane;
    let team = if plane > 0 { 32 } else { units };
    let config = Config {
        format: cache.format,
        native_half: gpu.traits.native_half,
        dim: cache.dim,
        group,
        padded: group.next_power_of_two(),
        lanes,
        vectors: (words / vector).div_ceil(lanes),
        team,
        teams: units / team,
        rows: 1,
        batches: 1,
        ahead: 1,
        plane,
        source: Source::Own,
        whole: false,
        device_len: false,
    };
    Ok((config, vector))
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
    // Enough rows for every processor to run a cube of many units: so many registers that a second cube does not fit are no
    // loss then, and as many rows are on their way as one processor can wait for.
    let large = plane > 0
        && padded <= 4
        && gpu.traits.max_units >= 512
        && count * lists >= 512 * gpu.traits.processors as usize;
    let (team, teams) = match (plane > 0, large) {
        (false, _) => (32, 1),
        (true, true) => (32, 16),
        (true, false) => (32, if padded > 4 { 4 } else { 8 }),
    };
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
        ahead: if batches.is_multiple_of(2) && !large { 2 } else { 1 },
        plane,
        source: if chosen { Source::Chosen } else { Source::First },
        whole: false,
        device_len: false,
    };
    let step = config.tile() * teams;
    // No more cubes than run at the same time.
    let wanted = (if large { 1 } else { 2 } * gpu.traits.processors as usize / lists).max(1);
    let per_cube = if few { step } else { count.div_ceil(wanted).next_multiple_of(step) };
    let splits = count.div_ceil(per_cube);
    config.whole = splits == 1;
    (config, splits, per_cube)
}
