//! Search for the key that the last chosen token of a list has, by histograms of which every cube of the list counts a part.

use super::mail::{Boxes, PATIENCE};
use super::{Layout, ROUNDS};
use crate::team::cube_scan;
use cubecl::prelude::*;

/// The key of tokens that are chosen before all others.
pub(crate) const FORCED: u32 = 0xffff_ffff;

/// How cubes search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Search {
    pub units: u32,
    pub plane: u32,
    /// Tokens of a cube.
    pub tokens: usize,
    /// Tokens of a list that a cube may take.
    pub most: usize,
    pub layout: Layout,
}

/// A cube's tokens: those of every [`Layout::cubes`]th block of 32.
#[derive(CubeType)]
pub(crate) struct Share {
    /// By what they are ranked: 0 for none, [`FORCED`] for the guaranteed ones.
    pub keys: Shared<[u32]>,
    pub bins: Shared<[Atomic<u32>]>,
    /// What units tell each other.
    pub state: Shared<[u32]>,
    /// The cube's number in its list, and its tokens.
    pub cube: u32,
    pub count: u32,
}

/// The share of cube `cube` of a list of `len` tokens, without keys yet.
#[cube]
pub(crate) fn share(cube: u32, len: u32, #[comptime] search: Search) -> Share {
    let cubes = comptime!(search.layout.cubes as u32);
    let blocks = (len + 31u32) / 32u32;
    Share {
        keys: Shared::<[u32]>::new_slice(search.tokens),
        bins: Shared::<[Atomic<u32>]>::new_slice(comptime!(search.layout.bins)),
        state: Shared::<[u32]>::new_slice(comptime!(search.units as usize + 16)),
        cube,
        count: (blocks + (cubes - 1u32) - cube) / cubes * 32u32,
    }
}

/// Token `i` of a share; it may lie past the last.
#[cube]
pub(crate) fn token_at(i: u32, cube: u32, #[comptime] layout: Layout) -> u32 {
    ((i / 32u32) * comptime!(layout.cubes as u32) + cube) * 32u32 + i % 32u32
}

/// What a search has found: tokens above the range are chosen, and `left` of the `content` in it.
#[derive(CubeType)]
pub(crate) struct Bar {
    pub from: u32,
    pub to: u32,
    pub left: u32,
    pub content: u32,
    /// Whether tokens are told apart by place, those of key `only`.
    pub by_place: bool,
    pub only: u32,
    /// Histograms that it took.
    pub rounds: u32,
}

/// What a token is ranked by in the range that is searched; 0 if it does not take part.
#[cube]
pub(crate) fn rank_of(key: u32, token: u32, bar: &Bar) -> u32 {
    select(bar.by_place, select(key == bar.only, !token, 0u32), key)
}

/// Whether a token is above the bar's range.
#[cube]
pub(crate) fn is_above(key: u32, token: u32, bar: &Bar) -> bool {
    let by_place = key > bar.only || (key == bar.only && !token > bar.to);
    select(bar.by_place, by_place, key > bar.to)
}

/// Finds the bar that `wanted` of the `total` tokens of a list reach which take part. The share's keys were counted in bins that
/// start at `origin` and have `2^shift` keys each; keys below count for the first bin, those above for the last. `len` tokens.
#[cube]
pub(crate) fn find_bar(
    share: &mut Share,
    mail: &mut [Atomic<u32>],
    boxes: &Boxes,
    len: u32,
    wanted: u32,
    total: u32,
    origin: u32,
    shift: u32,
    #[comptime] search: Search,
) -> Bar {
    let bins = comptime!(search.layout.bins as u32);
    let answer = comptime!(search.units as usize + 4);
    let mut bar = Bar {
        // Where none is wanted the range is empty.
        from: select(wanted > 0, 1u32, FORCED),
        to: comptime!(FORCED - 1).runtime(),
        left: wanted,
        content: 0u32.runtime(),
        by_place: false.runtime(),
        only: 0u32.runtime(),
        rounds: 0u32.runtime(),
    };
    let mut low = origin;
    let mut shift = shift;
    let mut total = total;
    let mut going = wanted > 0;
    while going {
        let at = boxes.now + comptime!(search.layout.bins_at()) + bar.rounds as usize * comptime!(search.layout.bins);
        tell_counts(share, mail, at, bar.left, search);
        add_counts(share, mail, boxes, at, bar.left, total, search);
        let bin = share.state[answer];
        bar.left = share.state[answer + 1];
        bar.content = share.state[answer + 2];
        bar.rounds += 1u32;
        let first = low + (bin << shift);
        let last = first + ((1u32 << shift) - 1u32);
        bar.from = select(bin == 0u32, bar.from, first);
        bar.to = select(bin == bins - 1u32, bar.to, min(bar.to, last));
        let found = bar.content <= bar.left || bar.content <= comptime!(search.layout.ties as u32);
        // Tokens of one key are told apart by their places.
        if !found && bar.from == bar.to && !bar.by_place {
            bar.by_place = true;
            bar.only = bar.from;
            bar.from = !(len - 1u32);
            bar.to = 0xffff_ffffu32;
        }
        low = bar.from;
        let digits = 32u32 - (bar.to - bar.from).leading_zeros();
        shift = max(digits, comptime!(search.layout.bins.ilog2())) - comptime!(search.layout.bins.ilog2());
        if UNIT_POS == 0 {
            let lost = boxes.lost[0usize].load() != 0u32;
            let enough = found || lost || bar.rounds == comptime!(ROUNDS as u32);
            share.state[answer + 3] = select(enough, 0u32, 1u32);
        }
        going = workgroup_uniform_load(&share.state[answer + 3]) == 1;
        total = workgroup_uniform_load(&share.state[answer + 2]);
        if going {
            clear_bins(share, search);
            sync_cube();
            let mut i = UNIT_POS;
            while i < share.count {
                let rank = rank_of(share.keys[i as usize], token_at(i, share.cube, search.layout), &bar);
                if rank >= bar.from && rank <= bar.to {
                    count_rank(share, rank, low, shift, search);
                }
                i += comptime!(search.units);
            }
            sync_cube();
        }
    }
    bar
}

/// Empties the cube's histogram.
#[cube]
pub(crate) fn clear_bins(share: &mut Share, #[comptime] search: Search) {
    let mut i = UNIT_POS as usize;
    while i < comptime!(search.layout.bins) {
        share.bins[i].store(0u32);
        i += comptime!(search.units as usize);
    }
}

/// Counts a rank in the bins that start at `origin`, of `2^shift` ranks each.
#[cube]
pub(crate) fn count_rank(share: &mut Share, rank: u32, origin: u32, shift: u32, #[comptime] search: Search) {
    let bin = min((max(rank, origin) - origin) >> shift, comptime!(search.layout.bins as u32 - 1));
    share.bins[bin as usize].fetch_add(1u32);
}

/// Adds the cube's counts to those of the list. Bins so low that the cube alone has as many tokens above as are wanted count as
/// the first: the bar cannot lie there.
#[cube]
fn tell_counts(share: &mut Share, mail: &mut [Atomic<u32>], at: usize, wanted: u32, #[comptime] search: Search) {
    let per_unit = comptime!(search.layout.bins as u32 / search.units);
    // Fewer tokens than are wanted: all of them, from the first bin on.
    if UNIT_POS < 3 {
        share.state[comptime!(search.units as usize + 4) + UNIT_POS as usize] = 0u32;
    }
    // Unit 0 has the last bins.
    let last = comptime!(search.layout.bins as u32 - 1) - per_unit * UNIT_POS;
    let mut mine = Array::<u32>::new(comptime!(per_unit as usize));
    let mut sum = 0u32.runtime();
    #[unroll]
    for i in 0..per_unit {
        mine[i as usize] = share.bins[(last - i) as usize].load();
        sum += mine[i as usize];
    }
    let sums = cube_scan(sum, &mut share.state, search.units, search.plane);
    let mut before = sums.before;
    let mut rest = 0u32.runtime();
    #[unroll]
    for i in 0..per_unit {
        let here = mine[i as usize];
        if before < wanted {
            if here > 0u32 {
                mail[at + (last - i) as usize].fetch_add(here);
            }
        } else {
            rest += here;
        }
        before += here;
    }
    if comptime!(search.plane > 0) {
        // What planes exchange is between the units that are there.
        sync_plane();
        rest = plane_sum(rest);
        if UNIT_POS % search.plane == 0 && rest > 0u32 {
            mail[at].fetch_add(rest);
        }
    } else if rest > 0u32 {
        mail[at].fetch_add(rest);
    }
}

/// Waits for the counts of all `total` tokens and finds the bin that the `wanted`th lies in: its number, how many of it are
/// wanted and how many it has, to the state.
#[cube]
fn add_counts(
    share: &mut Share,
    mail: &mut [Atomic<u32>],
    boxes: &Boxes,
    at: usize,
    wanted: u32,
    total: u32,
    #[comptime] search: Search,
) {
    let answer = comptime!(search.units as usize + 4);
    let per_unit = comptime!(search.layout.bins as u32 / search.units);
    let last = comptime!(search.layout.bins as u32 - 1) - per_unit * UNIT_POS;
    let mut mine = Array::<u32>::new(comptime!(per_unit as usize));
    let mut before = 0u32.runtime();
    let mut sum = 0u32.runtime();
    let mut tries = 0u32.runtime();
    let mut waiting = true.runtime();
    while waiting {
        sum = 0u32;
        #[unroll]
        for i in 0..per_unit {
            mine[i as usize] = mail[at + (last - i) as usize].load();
            sum += mine[i as usize];
        }
        let sums = cube_scan(sum, &mut share.state, search.units, search.plane);
        before = sums.before;
        tries += 1u32;
        waiting = sums.all < total && tries < PATIENCE;
    }
    if tries == PATIENCE {
        boxes.lost[0usize].store(1u32);
    }
    if before < wanted && wanted <= before + sum {
        #[unroll]
        for i in 0..per_unit {
            let here = mine[i as usize];
            if before < wanted && wanted <= before + here {
                share.state[answer] = last - i;
                share.state[answer + 1] = wanted - before;
                share.state[answer + 2] = here;
            }
            before += here;
        }
    }
    sync_cube();
}
