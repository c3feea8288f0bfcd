//! Scores of a cube's tokens, which stay in its memory, `[words, tokens]`, and their importances once all cubes have told what their scores are like.

use super::bar::{FORCED, Share, count_rank, token_at};
use super::mail::{Boxes, number_of, sweep, take, word_of};
use super::whole::Config;
use crate::numbers::{Format, halves, number, order_key};
use crate::tip::fold::Folded;
use crate::tip::kernel::{NOTHING, Rows, score_rows};
use cubecl::prelude::*;

/// What a unit has seen of the scores of each query head: the largest, and the sum of powers of e relative to it.
#[derive(CubeType)]
pub(super) struct Seen {
    pub most: Array<f32>,
    pub total: Array<f32>,
}

/// Reads the unit's rows of the share from token `first` on; those past the last as the last.
#[cube]
pub(super) fn read_rows<N: Size>(
    into: &mut Rows<N>,
    codes: &[Vector<u32, N>],
    scales: &[u32],
    row: usize,
    first: u32,
    cube: u32,
    len: u32,
    #[comptime] config: Config,
) {
    let rows = comptime!(config.tip.spans.rows);
    let width = N::value();
    let vectors = comptime!(config.tip.words / width);
    #[unroll]
    for r in 0..rows {
        let t = token_at(first + comptime!(r as u32 * config.search.units), cube, config.search.layout);
        let at = row + min(t, len - 1u32) as usize;
        #[unroll]
        for v in 0..vectors {
            into.codes[r * vectors + v] = codes[at * vectors + v];
        }
        if comptime!(config.tip.integer()) {
            into.scales[r] = scales[at / 2];
        }
    }
}

/// Scores the share's tokens.
#[cube]
pub(super) fn score_share<N: Size>(
    next: &mut Rows<N>,
    codes: &[Vector<u32, N>],
    scales: &[u32],
    folded: &Folded,
    kept: &mut Shared<[u32]>,
    row: usize,
    share: &Share,
    len: u32,
    factor: f32,
    #[comptime] config: Config,
) -> Seen {
    let (group, rows, words) = comptime!((config.tip.group, config.tip.spans.rows, config.tip.score_words()));
    let width = N::value();
    let vectors = comptime!(config.tip.words / width);
    let units = comptime!(config.search.units);
    let mut seen = Seen { most: Array::<f32>::new(group), total: Array::<f32>::new(group) };
    #[unroll]
    for g in 0..group {
        seen.most[g] = NOTHING;
        seen.total[g] = 0.0f32;
    }
    let mut now =
        Rows::<N> { codes: Array::<Vector<u32, N>>::new(comptime!(rows * vectors)), scales: Array::<u32>::new(rows) };
    let mut first = UNIT_POS;
    while first < share.count {
        #[unroll]
        for i in 0..comptime!(rows * vectors) {
            now.codes[i] = next.codes[i];
        }
        #[unroll]
        for r in 0..rows {
            now.scales[r] = next.scales[r];
        }
        let after = first + comptime!(rows as u32 * units);
        if after < share.count {
            read_rows::<N>(next, codes, scales, row, after, share.cube, len, config);
        }
        let mut out = score_rows::<N>(&now, folded, factor, config.tip);
        let mut high = Array::<f32>::new(group);
        #[unroll]
        for g in 0..group {
            high[g] = seen.most[g];
        }
        #[unroll]
        for r in 0..rows {
            let i = first + comptime!(r as u32 * units);
            let inside = i < share.count && token_at(i, share.cube, config.search.layout) < len;
            #[unroll]
            for g in 0..group {
                out[r * group + g] = select(inside, out[r * group + g], NOTHING);
                high[g] = max(high[g], out[r * group + g]);
            }
            if inside {
                #[unroll]
                for w in 0..words {
                    let word = if comptime!(config.tip.half_scores()) {
                        let at = comptime!(r * group + 2 * w);
                        halves(out[at], out[at + 1], config.tip.native_half)
                    } else {
                        u32::reinterpret(out[comptime!(r * group + w)])
                    };
                    kept[comptime!(w * config.search.tokens) + i as usize] = word;
                }
            }
        }
        #[unroll]
        for g in 0..group {
            let mut sum = seen.total[g] * (seen.most[g] - high[g]).exp();
            #[unroll]
            for r in 0..rows {
                sum += (out[r * group + g] - high[g]).exp();
            }
            seen.most[g] = high[g];
            seen.total[g] = sum;
        }
        first = after;
    }
    seen
}

/// Tells what the cube has seen, and finds the softmax of each query head: its largest score, and one over the sum of powers and
/// the group.
#[cube]
pub(super) fn meet_softmax(
    seen: &mut Seen,
    mail: &mut [Atomic<u32>],
    boxes: &Boxes,
    cube: u32,
    #[comptime] config: Config,
) -> Shared<[f32]> {
    let (group, cubes, plane) = comptime!((config.tip.group, config.search.layout.cubes, config.search.plane));
    let units = comptime!(config.search.units);
    let teams = comptime!(units.checked_div(plane).unwrap_or(units) as usize);
    let mut parts = Shared::<[f32]>::new_slice(comptime!(teams * group * 2));
    let mut all = Shared::<[f32]>::new_slice(comptime!(cubes * group * 2));
    let mut found = Shared::<[f32]>::new_slice(comptime!(group * 2));
    if comptime!(plane > 0) {
        sync_plane();
        #[unroll]
        for g in 0..group {
            let top = plane_max(seen.most[g]);
            let total = plane_sum(seen.total[g] * (seen.most[g] - top).exp());
            if UNIT_POS % plane == 0 {
                let at = ((UNIT_POS / plane) as usize * group + g) * 2;
                parts[at] = top;
                parts[at + 1] = total;
            }
        }
    } else {
        #[unroll]
        for g in 0..group {
            let at = (UNIT_POS as usize * group + g) * 2;
            parts[at] = seen.most[g];
            parts[at + 1] = seen.total[g];
        }
    }
    sync_cube();
    let told = boxes.now + cube as usize * comptime!(2 * group);
    if UNIT_POS < comptime!(group as u32) {
        let g = UNIT_POS as usize;
        let mut top = parts[g * 2];
        for t in 1..teams {
            top = max(top, parts[(t * group + g) * 2]);
        }
        let mut total = 0.0f32.runtime();
        for t in 0..teams {
            total += parts[(t * group + g) * 2 + 1] * (parts[(t * group + g) * 2] - top).exp();
        }
        mail[told + g * 2].store(word_of(top));
        mail[told + g * 2 + 1].store(word_of(total));
    }
    // There is time for it until the others have told theirs.
    sweep(mail, boxes, cube as usize, units, config.search.layout);
    let mut i = UNIT_POS as usize;
    while i < comptime!(cubes * group * 2) {
        all[i] = number_of(take(mail, boxes.now + i, &boxes.lost));
        i += comptime!(units as usize);
    }
    sync_cube();
    if comptime!(plane > 0) {
        let mut g = (UNIT_POS / plane) as usize;
        while g < group {
            let mut top = f32::new(NOTHING);
            let mut i = (UNIT_POS % plane) as usize;
            while i < cubes {
                top = max(top, all[(i * group + g) * 2]);
                i += comptime!(plane as usize);
            }
            sync_plane();
            top = plane_max(top);
            let mut total = 0.0f32.runtime();
            let mut i = (UNIT_POS % plane) as usize;
            while i < cubes {
                total += all[(i * group + g) * 2 + 1] * (all[(i * group + g) * 2] - top).exp();
                i += comptime!(plane as usize);
            }
            sync_plane();
            total = plane_sum(total);
            if UNIT_POS % plane == 0 {
                found[g * 2] = top;
                found[g * 2 + 1] = 1.0f32 / (total * comptime!(group as f32));
            }
            g += teams;
        }
    } else if UNIT_POS < comptime!(group as u32) {
        let g = UNIT_POS as usize;
        let mut top = f32::new(NOTHING);
        for i in 0..cubes {
            top = max(top, all[(i * group + g) * 2]);
        }
        let mut total = 0.0f32.runtime();
        for i in 0..cubes {
            total += all[(i * group + g) * 2 + 1] * (all[(i * group + g) * 2] - top).exp();
        }
        found[g * 2] = top;
        found[g * 2 + 1] = 1.0f32 / (total * comptime!(group as f32));
    }
    sync_cube();
    found
}

/// The keys of the share's importances, the mean of the softmaxes, counted in bins that are empty.
#[cube]
pub(super) fn find_keys(
    share: &mut Share,
    kept: &Shared<[u32]>,
    softmax: &Shared<[f32]>,
    len: u32,
    sinks: u32,
    recent_from: u32,
    origin: u32,
    shift: u32,
    #[comptime] config: Config,
) {
    let (group, words) = comptime!((config.tip.group, config.tip.score_words()));
    let (half, rows) = comptime!((config.tip.half_scores(), config.tip.spans.rows));
    let (per_word, format) = comptime!(if half { (2, Format::F16) } else { (1, Format::F32) });
    let mut most = Array::<f32>::new(group);
    let mut part = Array::<f32>::new(group);
    #[unroll]
    for g in 0..group {
        most[g] = softmax[g * 2];
        part[g] = softmax[g * 2 + 1];
    }
    let mut first = UNIT_POS;
    while first < share.count {
        let mut read = Array::<u32>::new(comptime!(rows * words));
        #[unroll]
        for r in 0..rows {
            let i = min(first + comptime!(r as u32 * config.search.units), share.count - 1u32);
            #[unroll]
            for w in 0..words {
                read[r * words + w] = kept[comptime!(w * config.search.tokens) + i as usize];
            }
        }
        #[unroll]
        for r in 0..rows {
            let i = first + comptime!(r as u32 * config.search.units);
            let t = token_at(i, share.cube, config.search.layout);
            let mut sum = 0.0f32.runtime();
            #[unroll]
            for g in 0..group {
                let word = read[comptime!(r * words + g / per_word)];
                let score = number(word, comptime!(g % per_word), format, config.tip.native_half);
                sum += (score - most[g]).exp() * part[g];
            }
            // What is no number loses against every number.
            let key = max(order_key(sum), 1u32);
            let free = t >= sinks && t < recent_from;
            if i < share.count {
                share.keys[i as usize] = select(t < len, select(free, key, FORCED), 0u32);
                if free && t < len {
                    count_rank(share, key, origin, shift, config.search);
                }
            }
        }
        first += comptime!(rows as u32 * config.search.units);
    }
    sync_cube();
}
