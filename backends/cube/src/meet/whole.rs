//! A decode step in one launch: cubes score their tokens, agree on the softmax and on the bar, attend to those of their tokens
//! that were chosen, and bring together what they found.
//!
//! Tokens are dealt out in blocks of 32, so that neighbours, which are often chosen together, are in different cubes.

use super::bar::{Search, clear_bins, find_bar, share};
use super::choose::{choose, note};
use super::finish::{finish, tell_part};
use super::mail::{close, open};
use super::score::{find_keys, meet_softmax, read_rows, score_share};
use super::{DIM, Mail, UNITS};
use crate::attend::rows::attend_rows;
use crate::attend::{Cache, Config as Attend, plan_own};
use crate::combine::Importance;
use crate::device::{Gpu, buffer};
use crate::error::{Result, ensure};
use crate::length::tokens;
use crate::tip::fold::{ask, fold};
use crate::tip::kernel::Rows;
use crate::tip::{Channels, Config as Tip, Scores, Sketch, plan as plan_tip, score_words};
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Bits of the range that the first histogram tells apart: 32 octaves of importances, each `2^23` floats.
const RANGE: u32 = 28;

/// Tokens of a list that a cube may take: as many as may be chosen.
const MOST: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Config {
    pub tip: Tip,
    pub search: Search,
    pub attend: Attend,
    pub dim: usize,
    device_len: bool,
}

/// A step that can be launched.
pub(crate) struct Plan {
    config: Config,
    vectors: (usize, usize),
}

/// What a step chooses by and writes.
pub(crate) struct Kept<'a> {
    pub scores: &'a Scores,
    pub importance: &'a Importance,
    pub mail: &'a Mail,
    /// The most tokens that there is memory for.
    pub room: usize,
    pub budget: usize,
    pub positions: &'a Handle,
    pub out: &'a Handle,
}

/// How to take a step at once, or `None` where it needs several launches: many query heads of a list, long rows, or more tokens
/// than cubes have room for.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if shapes disagree, or the budget exceeds the tokens or is less than the guaranteed ones.
pub(crate) fn plan(gpu: &Gpu, cache: &Cache, sketch: &Sketch, kept: &Kept<'_>) -> Result<Option<Plan>> {
    let Kept { scores, importance, mail, room, budget, .. } = *kept;
    let (layout, group, len) = (mail.layout, scores.group, scores.len.most());
    ensure(len > 0 && len <= sketch.capacity, "len", "the sketch has fewer rows")?;
    ensure(len <= cache.capacity, "len", "the cache has fewer rows")?;
    ensure(scores.sketches() == sketch.heads, "scores", "their memory is for another number of sketches")?;
    ensure(budget > 0 && budget <= len, "budget", "1 up to the tokens seen")?;
    ensure(importance.sinks + importance.recent <= budget, "budget", "the guaranteed tokens are more")?;
    // Units of a cube this large have no registers for the sums of more query heads.
    if layout.group != group || group > 4 || cache.dim > DIM || cache.heads != sketch.heads {
        return Ok(None);
    }
    let units = UNITS.min(gpu.traits.max_units);
    // In steps of whole rounds, so that kernels are compiled for a few lengths only.
    let rows = [4, 2].into_iter().find(|rows| layout.tokens(room) >= 2 * rows * units as usize).unwrap_or(1);
    let tokens = layout.tokens(room).next_multiple_of(units as usize * rows);
    let most = if layout.ties < 1024 { 256 } else { MOST };
    let search = Search { units, plane: gpu.traits.plane, tokens, most, layout };
    let (tip, vector) = plan_tip(gpu, sketch, group, units, rows)?;
    let (attend, cache_vector) = plan_own(gpu, cache, group, units as usize)?;
    let folded = group * (2 * sketch.chunks + 2 * sketch.words() + 2);
    let parts = attend.parts() * group * cache.dim + group * cache.dim + layout.cubes * group * 4;
    let ours = tokens * (1 + score_words(group))
        + most
        + 4 * layout.ties
        + layout.bins
        + 2 * units as usize
        + folded
        + parts
        + 4096;
    if ours > gpu.traits.shared_memory / 4 || budget > most {
        return Ok(None);
    }
    let config = Config { tip, search, attend, dim: cache.dim, device_len: scores.len.is_on_device() };
    Ok(Some(Plan { config, vectors: (vector, cache_vector) }))
}

/// Takes the step that was planned.
pub(crate) fn launch(
    gpu: &Gpu,
    plan: &Plan,
    queries: &Handle,
    cache: &Cache,
    sketch: &Sketch,
    channels: &Channels,
    kept: &Kept<'_>,
) {
    let Kept { scores, importance, mail, budget, positions, out, .. } = *kept;
    let Plan { config, vectors: (vector, cache_vector) } = plan;
    let (layout, heads, lists) = (config.search.layout, scores.heads, cache.heads);
    let table = 2 * sketch.chunks * sketch.heads;
    let cache_words = cache.heads * cache.capacity * cache.dim / cache.format.per_word();
    let factor = 1.0 / (cache.dim as f32).sqrt();
    // SAFETY: the lengths are those of `Scratch`, `Sketch`, `Channels` and `Cache`; rows and tokens past the length are neither
    // read nor chosen, positions are written below the budget, and no more cubes are launched than run at once.
    unsafe {
        whole_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::Static(layout.cubes as u32, lists as u32, 1),
            CubeDim::new_1d(config.search.units),
            *vector,
            *cache_vector,
            buffer(queries, heads * cache.dim),
            buffer(&channels.channels, table),
            buffer(&channels.scale, table),
            buffer(&sketch.codes, sketch.heads * sketch.capacity * sketch.words() / vector),
            buffer(&sketch.scales, sketch.heads * sketch.capacity / 2),
            buffer(scores.len.handle().unwrap_or(queries), 1),
            buffer(&cache.keys, cache_words / cache_vector),
            buffer(&cache.values, cache_words / cache_vector),
            buffer(positions, lists * budget),
            buffer(out, heads * cache.dim),
            buffer(&mail.words, lists * layout.of_list()),
            scores.len.most() as u32,
            sketch.capacity as u32,
            cache.capacity as u32,
            budget as u32,
            importance.sinks as u32,
            importance.recent as u32,
            factor,
            *config,
        );
    }
}

#[cube(launch_unchecked)]
fn whole_kernel<N: Size, V: Size>(
    queries: &[f32],
    channels: &[u32],
    scale: &[f32],
    codes: &[Vector<u32, N>],
    scales: &[u32],
    length: &[u32],
    keys: &[Vector<u32, V>],
    values: &[Vector<u32, V>],
    positions: &mut [u32],
    out: &mut [f32],
    mail: &mut [Atomic<u32>],
    most_tokens: u32,
    sketch_capacity: u32,
    capacity: u32,
    budget: u32,
    sinks: u32,
    recent: u32,
    factor: f32,
    #[comptime] config: Config,
) {
    let (cube, list) = (CUBE_POS_X, CUBE_POS_Y as usize);
    let asked = ask(channels, scale, list, config.tip);
    let search = comptime!(config.search);
    let len = tokens(length, most_tokens, config.device_len);
    let boxes = open(mail, list, search.layout);
    let mut share = share(cube, len, search);
    let (rows, words) = comptime!((config.tip.spans.rows, config.tip.score_words()));
    let width = N::value();
    let vectors = comptime!(config.tip.words / width);
    let row = list * sketch_capacity as usize;
    let mut next =
        Rows::<N> { codes: Array::<Vector<u32, N>>::new(comptime!(rows * vectors)), scales: Array::<u32>::new(rows) };
    // Queries are on their way together with channel numbers and rows.
    let query_numbers = comptime!(config.tip.group * config.dim);
    let per_unit = comptime!((config.tip.group * config.dim).div_ceil(config.search.units as usize));
    let mut coming = Array::<f32>::new(per_unit);
    #[unroll]
    for k in 0..per_unit {
        let i = min(comptime!(k * config.search.units as usize) + UNIT_POS as usize, comptime!(query_numbers - 1));
        coming[k] = queries[list * query_numbers + i];
    }
    read_rows::<N>(&mut next, codes, scales, row, UNIT_POS, cube, len, config);
    clear_bins(&mut share, search);
    let mut asking = Shared::<[f32]>::new_slice(query_numbers);
    #[unroll]
    for k in 0..per_unit {
        let i = comptime!(k * config.search.units as usize) + UNIT_POS as usize;
        if i < query_numbers {
            asking[i] = coming[k];
        }
    }
    sync_cube();
    let folded = fold(&asking, &asked, comptime!(config.dim as u32), 0usize, config.tip);
    let mut kept = Shared::<[u32]>::new_slice(comptime!(words * config.search.tokens));
    let mut seen = score_share::<N>(&mut next, codes, scales, &folded, &mut kept, row, &share, len, factor, config);
    let softmax = meet_softmax(&mut seen, mail, &boxes, cube, config);
    let wanted = budget - (sinks + recent);
    // The importances of all tokens sum up to 1, so that the last wanted one is at most as large as one over their number.
    let highest = u32::reinterpret(1.0f32 / max(f32::cast_from(wanted), 1.0f32)) | 0x8000_0000;
    let shift = comptime!(RANGE - config.search.layout.bins.ilog2());
    let lowest = highest - comptime!(1u32 << RANGE);
    let recent_from = max(len, recent) - recent;
    let free = max(recent_from, sinks) - sinks;
    find_keys(&mut share, &kept, &softmax, len, sinks, recent_from, lowest, shift, config);
    let bar = find_bar(&mut share, mail, &boxes, len, wanted, free, lowest, shift, search);
    let chosen = choose(&mut share, mail, &boxes, &bar, search);
    let found = attend_rows::<V>(
        &asking,
        keys,
        values,
        length,
        &chosen.list,
        0usize,
        list,
        0u32,
        chosen.count,
        chosen.count,
        capacity,
        factor,
        config.attend,
    );
    tell_part(mail, &boxes, &found, cube, config);
    note(&mut share, mail, &boxes, &chosen, positions, list * budget as usize, budget, search);
    finish(mail, &boxes, out, list, cube, config);
    close(mail, &boxes, cube as usize, bar.rounds);
}
