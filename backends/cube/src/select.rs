//! The N best of a list of importances, without a sort. One cube per list, one launch.
//!
//! The Nth largest of the spans' largest values is a bar that at least N tokens reach, and, in contexts much longer than N,
//! hardly more: only spans that reach it are looked at, and their tokens at the bar are ranked. Lists where too many tokens
//! reach it (equal importances, or all good ones in few spans) are searched as a whole. Both ways are exact; ties go to the
//! lower position.

mod kernel;
mod narrow;

use crate::combine::Importance;
use crate::device::{Gpu, buffer};
use crate::error::{Result, ensure};
use crate::spans::Spans;
use cubecl::prelude::*;
use cubecl::server::Handle;
use kernel::select_kernel;

/// Units of a cube: twice as many have twice as much to tell each other, and are no faster.
const UNITS: u32 = 512;

/// Counts of a histogram.
const BINS: usize = 2048;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Config {
    units: u32,
    plane: u32,
    spans: Spans,
    /// Whether spans may be asked first.
    quick: bool,
    /// Tokens that are ranked against each other at most.
    candidates: usize,
    /// Spans that are looked at at most.
    listed: usize,
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

impl Over {
    /// Numbers that a unit asks for together: those that take long to come.
    const fn steps(self) -> u32 {
        if matches!(self, Over::Pool | Over::PoolTies) { 1 } else { 4 }
    }
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

/// Positions of the `budget` best of every list, `[lists, budget]`: the guaranteed ones first, then in an order that does
/// not change from run to run.
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
        quick: budget <= candidates / 4 && importance.spans.count(len) >= budget,
        candidates,
        listed: candidates / 2,
        device_len: importance.len.is_on_device(),
    })
}
