//! The N best of a list of importances, without a sort. One cube per list, one launch.
//!
//! The Nth largest of the spans' largest values is a bar that at least N tokens reach, and, in contexts much longer than N,
//! hardly more: only spans that reach it are looked at, and their tokens at the bar are ranked. Lists where too many tokens
//! reach it (equal importances, or all good ones in few spans) are searched as a whole. Both ways are exact; ties go to the
//! lower position.

mod kernel;
mod narrow;

use crate::attend::{Attention, Rows};
use crate::combine::Importance;
use crate::device::{Gpu, buffer};
use crate::error::{Result, ensure};
use crate::spans::Spans;
use cubecl::prelude::*;
use cubecl::server::Handle;
use kernel::{select_attend_kernel, select_kernel};

/// Counts of a histogram.
const BINS: usize = 2048;

/// Units of a cube: as many as have registers enough for attention.
const UNITS: u32 = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Config {
    units: u32,
    plane: u32,
    spans: Spans,
    /// Whether spans may be asked first.
    quick: bool,
    /// Tokens that are ranked against each other at most.
    candidates: usize,
    device_len: bool,
}

/// What numbers a search goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Over {
    /// Spans, by what their best token has at least.
    Spans,
    /// Tokens of the spans that were chosen.
    Listed,
    /// Candidates, and those of them that have the key of the bar, by position.
    Pool,
    PoolTies,
    /// All tokens, and those that have the key of the bar, by position.
    Row,
    RowTies,
}

/// Where a list's importances are.
#[derive(CubeType)]
struct Importances {
    first_token: usize,
    first_span: usize,
    len: u32,
    sinks: u32,
    recent_from: u32,
}

/// Positions of the `budget` best of every list, `[lists, budget]`: the guaranteed ones first, then in an order that depends
/// on the importances alone.
///
/// Time: O(len / span + budget * span) where importances differ, O(len) in the worst case. Space: the positions.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the budget is less than the guaranteed tokens or exceeds all tokens.
pub fn best(gpu: &Gpu, importance: &Importance, budget: usize) -> Result<Handle> {
    let positions = gpu.words(importance.rows * budget);
    best_into(gpu, importance, budget, &positions)?;
    Ok(positions)
}

/// As [`best`], into memory that is there.
///
/// # Errors
/// As [`best`].
pub fn best_into(gpu: &Gpu, importance: &Importance, budget: usize, positions: &Handle) -> Result<()> {
    let config = plan(gpu, importance, budget)?;
    let len = importance.len.most();
    // SAFETY: the lengths are those that `score` or `rank` allocated; positions are written below `budget` only, and no token
    // past the length is read.
    unsafe {
        select_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::Static(importance.rows as u32, 1, 1),
            CubeDim::new_1d(config.units),
            buffer(&importance.values, importance.rows * importance.stride),
            buffer(&importance.maxima, importance.rows * config.spans.count(len)),
            buffer(importance.len.handle().unwrap_or(&importance.maxima), 1),
            buffer(positions, importance.rows * budget),
            len as u32,
            importance.stride as u32,
            config.spans.count(len) as u32,
            budget as u32,
            importance.sinks as u32,
            importance.recent as u32,
            config,
        );
    }
    Ok(())
}

/// [`best_into`] and attention to the tokens, in one launch: a cube goes from selection to attention without waiting for the
/// others. Meant for short lists; [`Attention::is_short`] says what that is.
///
/// # Errors
/// As [`best`] and [`attend`](crate::attend::attend).
pub fn best_attend(
    gpu: &Gpu,
    importance: &Importance,
    budget: usize,
    positions: &Handle,
    attention: &Attention<'_>,
) -> Result<()> {
    let config = plan(gpu, importance, budget)?;
    let len = importance.len.most();
    let cache = attention.cache;
    ensure(importance.rows.is_multiple_of(cache.heads), "lists", "KV heads share them equally")?;
    let lists = importance.rows / cache.heads;
    let rows = Rows::Chosen { positions, count: budget, lists };
    let (attend, vector) = attention.by_one_cube(gpu, rows, config.units)?;
    let (query_heads, words) = (attention.query_heads, cache.heads * cache.capacity * cache.words()?);
    // SAFETY: as in `best_into`; and positions are below the length, which is at most the cache's capacity.
    unsafe {
        select_attend_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::Static(importance.rows as u32, 1, 1),
            CubeDim::new_1d(config.units),
            vector,
            buffer(&importance.values, importance.rows * importance.stride),
            buffer(&importance.maxima, importance.rows * config.spans.count(len)),
            buffer(importance.len.handle().unwrap_or(&importance.maxima), 1),
            buffer(positions, importance.rows * budget),
            buffer(attention.queries, query_heads * cache.dim),
            buffer(&cache.keys, words / vector),
            buffer(&cache.values, words / vector),
            buffer(attention.out, query_heads * cache.dim),
            buffer(&gpu.words(1), 1),
            len as u32,
            importance.stride as u32,
            config.spans.count(len) as u32,
            budget as u32,
            importance.sinks as u32,
            importance.recent as u32,
            cache.capacity as u32,
            lists as u32,
            1.0 / (cache.dim as f32).sqrt(),
            config,
            attend,
        );
    }
    Ok(())
}

/// The kernel's variant.
fn plan(gpu: &Gpu, importance: &Importance, budget: usize) -> Result<Config> {
    let len = importance.len.most();
    ensure(budget > 0 && budget <= len, "budget", "1 up to the tokens seen")?;
    ensure(importance.sinks + importance.recent <= budget, "budget", "the guaranteed tokens are more")?;
    let candidates = if gpu.traits.shared_memory >= 160 * 1024 { 8192 } else { 2048 };
    Ok(Config {
        units: UNITS.min(gpu.traits.max_units),
        plane: gpu.traits.plane,
        spans: importance.spans,
        quick: budget <= candidates / 2 && importance.spans.count(len) >= budget,
        candidates,
        device_len: importance.len.is_on_device(),
    })
}
