//! The tokens of a share that are chosen, once the bar is known.

use super::bar::{Bar, Search, Share, is_above, rank_of, token_at};
use super::mail::{Boxes, take};
use crate::team::cube_scan;
use cubecl::prelude::*;

/// The rank of a tie that is not chosen.
const LATE: u32 = 0xffff_ffff;

/// What a cube has chosen.
#[derive(CubeType)]
pub(crate) struct Chosen {
    /// Its tokens: those above the bar, then ties, in an order that does not change from run to run.
    pub list: Shared<[u32]>,
    /// How many are above the bar, and how many there are.
    pub above: u32,
    pub count: u32,
    /// Places of its ties among those of the list, in the order of `tied`.
    ranks: Shared<[u32]>,
    tied: Shared<[u32]>,
    ties: u32,
    /// Ties of the list that are chosen.
    left: u32,
}

/// Chooses the tokens above the bar and the best of those at it; of equals the lowest places.
#[cube]
pub(crate) fn choose(
    share: &mut Share,
    mail: &mut [Atomic<u32>],
    boxes: &Boxes,
    bar: &Bar,
    #[comptime] search: Search,
) -> Chosen {
    let answer = comptime!(search.units as usize + 4);
    let ties = comptime!(search.layout.ties);
    let mut list = Shared::<[u32]>::new_slice(search.most);
    let mut tied = Shared::<[u32]>::new_slice(ties);
    let mut ranks = Shared::<[u32]>::new_slice(ties);
    let mut keys = Shared::<[u32]>::new_slice(ties);
    let mut places = Shared::<[u32]>::new_slice(ties);
    let taken = Shared::<[Atomic<u32>]>::new_slice(1usize);
    let every = bar.content <= bar.left;
    // A bit for each of the unit's tokens.
    let words = comptime!(search.tokens.div_ceil(32 * search.units as usize));
    let mut aboves = Array::<u32>::new(words);
    let mut ats = Array::<u32>::new(words);
    let mut packed = 0u32.runtime();
    #[unroll]
    for w in 0..words {
        let mut highs = 0u32.runtime();
        let mut middles = 0u32.runtime();
        let mut bit = 1u32.runtime();
        let mut i = UNIT_POS + comptime!(w as u32 * 32 * search.units);
        while i < share.count && bit != 0u32 {
            let (key, t) = (share.keys[i as usize], token_at(i, share.cube, search.layout));
            let rank = rank_of(key, t, bar);
            let tie = rank >= bar.from && rank <= bar.to;
            let high = is_above(key, t, bar) || (tie && every);
            highs |= select(high, bit, 0u32);
            middles |= select(tie && !high, bit, 0u32);
            bit <<= 1u32;
            i += comptime!(search.units);
        }
        packed += (highs.count_ones() << 16u32) + middles.count_ones();
        aboves[w] = highs;
        ats[w] = middles;
    }
    sync_cube();
    let sums = cube_scan(packed, &mut share.state, search.units, search.plane);
    let (above, own) = (sums.all >> 16u32, min(sums.all & 0xffffu32, ties as u32));
    if UNIT_POS == 0 {
        mail[boxes.now + comptime!(search.layout.counts_at()) + share.cube as usize].store(above + 1u32);
        let mut slot = 0u32.runtime();
        if own > 0u32 {
            slot = mail[boxes.now + comptime!(search.layout.ties_at())].fetch_add(own);
        }
        share.state[answer] = slot;
        taken[0usize].store(0u32);
    }
    sync_cube();
    let slot = share.state[answer] as usize;
    let told = boxes.now + comptime!(search.layout.ties_at() + 1);
    let (mut at, mut at_tie) = ((sums.before >> 16u32) as usize, (sums.before & 0xffffu32) as usize);
    #[unroll]
    for w in 0..words {
        let first = UNIT_POS + comptime!(w as u32 * 32 * search.units);
        let mut bits = aboves[w];
        while bits != 0u32 {
            let round = bits.trailing_zeros();
            bits &= bits - 1u32;
            if at < search.most {
                list[at] = token_at(first + round * comptime!(search.units), share.cube, search.layout);
            }
            at += 1usize;
        }
        let mut bits = ats[w];
        while bits != 0u32 {
            let round = bits.trailing_zeros();
            bits &= bits - 1u32;
            let i = first + round * comptime!(search.units);
            if slot + at_tie < ties {
                let t = token_at(i, share.cube, search.layout);
                tied[at_tie] = t;
                mail[told + 2usize * (slot + at_tie)].store(rank_of(share.keys[i as usize], t, bar));
                mail[told + 2usize * (slot + at_tie) + 1].store(!t);
            }
            at_tie += 1usize;
        }
    }
    if UNIT_POS == 0 {
        share.state[answer + 1] = select(every, 0u32, 1u32);
    }
    if workgroup_uniform_load(&share.state[answer + 1]) == 1 {
        let content = min(bar.content as usize, ties);
        let mut j = UNIT_POS as usize;
        while j < content {
            keys[j] = take(mail, told + 2usize * j, &boxes.lost);
            places[j] = take(mail, told + 2usize * j + 1, &boxes.lost);
            j += comptime!(search.units as usize);
        }
        sync_cube();
        // A plane for each tie of the cube, where planes can be used.
        let lanes = comptime!(if search.plane > 0 { search.plane as usize } else { 1 });
        let (lane, mut j) = (UNIT_POS as usize % lanes, UNIT_POS as usize / lanes);
        while j < own as usize {
            let t = tied[j];
            let (rank, place) = (select(bar.by_place, !t, key_of(share, t, search)), !t);
            let mut better = 0u32.runtime();
            let mut i = lane;
            while i < content {
                better += select(keys[i] > rank || (keys[i] == rank && places[i] > place), 1u32, 0u32);
                i += lanes;
            }
            let mut before = 0u32.runtime();
            let mut i = lane;
            while i < own as usize {
                let other = tied[i];
                let key = select(bar.by_place, !other, key_of(share, other, search));
                before += select(key > rank || (key == rank && !other > place), 1u32, 0u32);
                i += lanes;
            }
            if comptime!(search.plane > 0) {
                sync_plane();
                better = plane_sum(better);
                before = plane_sum(before);
            }
            if lane == 0 {
                let chosen = better < bar.left;
                ranks[j] = select(chosen, better, LATE);
                if chosen {
                    if ((above + before) as usize) < search.most {
                        list[(above + before) as usize] = t;
                    }
                    taken[0usize].fetch_add(1u32);
                }
            }
            j += comptime!(search.units as usize) / lanes;
        }
    }
    sync_cube();
    let ties_taken = taken[0usize].load();
    let count = min(above + ties_taken, comptime!(search.most as u32));
    Chosen { list, above, count, ranks, tied, ties: select(every, 0u32, own), left: select(every, 0u32, bar.left) }
}

/// The key of a token of the share.
#[cube]
fn key_of(share: &mut Share, token: u32, #[comptime] search: Search) -> u32 {
    share.keys[((token / 32u32) / comptime!(search.layout.cubes as u32) * 32u32 + token % 32u32) as usize]
}

/// Writes the cube's share of the `budget` positions of a list, which start at `out`.
#[cube]
pub(crate) fn note(
    share: &mut Share,
    mail: &mut [Atomic<u32>],
    boxes: &Boxes,
    chosen: &Chosen,
    positions: &mut [u32],
    out: usize,
    budget: u32,
    #[comptime] search: Search,
) {
    let mut before = 0u32.runtime();
    let counts = boxes.now + comptime!(search.layout.counts_at());
    let mut i = UNIT_POS;
    while i < share.cube {
        // A word that never came is 0.
        before += max(take(mail, counts + i as usize, &boxes.lost), 1u32) - 1u32;
        i += comptime!(search.units);
    }
    // What planes exchange is between the units that are there.
    sync_cube();
    let sums = cube_scan(before, &mut share.state, search.units, search.plane);
    let first = sums.all;
    let mut i = UNIT_POS;
    while i < chosen.above {
        if first + i < budget && (i as usize) < search.most {
            positions[out + (first + i) as usize] = chosen.list[i as usize];
        }
        i += comptime!(search.units);
    }
    let mut j = UNIT_POS;
    while j < chosen.ties {
        let rank = chosen.ranks[j as usize];
        if rank != LATE {
            positions[out + (budget - chosen.left + rank) as usize] = chosen.tied[j as usize];
        }
        j += comptime!(search.units);
    }
}
