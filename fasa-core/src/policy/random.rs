//! Random tokens: what a method has to beat.

use super::Step;
use crate::config::Scope;
use crate::error::{Result, expect_length};
use crate::importance::Importance;

/// A pseudo-random importance, drawn anew at every step: with [`Ranked`](super::Ranked) every set of tokens that the
/// guarantees allow is as likely as any other.
///
/// A number depends on nothing but the seed, the layer, the head, the length of the context and the position, through a
/// counter-based hash (the finalizer of SplitMix64). The same seed gives the same sets on every machine, in any order of
/// calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Random {
    seed: u64,
    scope: Scope,
}

impl Random {
    /// One draw per KV head or per query head.
    pub const fn new(seed: u64, scope: Scope) -> Self {
        Self { seed, scope }
    }
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014) on top of its increment: a bijection whose outputs for
/// counted inputs pass for random.
const fn mix(counter: u64) -> u64 {
    let z = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Importance for Random {
    fn scope(&self) -> Scope {
        self.scope
    }

    fn importance(&mut self, step: &Step<'_>, _scratch: &mut [f32], scores: &mut [f32]) -> Result<()> {
        let (rows, n) = (self.scope.rows(step.queries.len(), 1), step.keys.len());
        expect_length("scores", scores.len(), rows * n)?;
        for (g, row) in scores.chunks_exact_mut(n.max(1)).enumerate() {
            let head = match self.scope {
                Scope::KvHead => step.kv_head,
                Scope::QueryHead => step.query_head(g),
            };
            let stream = [step.layer, head, n].iter().fold(self.seed, |state, part| mix(state ^ *part as u64));
            for (position, score) in row.iter_mut().enumerate() {
                // 24 bits are what an f32 in [0, 1) holds evenly.
                *score = (mix(stream ^ position as u64) >> 40) as f32 / 16_777_216.0;
            }
        }
        Ok(())
    }

    fn are_weights(&self, _group: usize) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Rows;

    fn draw(seed: u64, layer: usize, kv_head: usize, n: usize) -> [f32; 600] {
        let numbers = [0.0; 600];
        let rows = |n| Rows::contiguous(&numbers[..n], 1).expect("divides");
        let step = Step { layer, kv_head, queries: rows(1), keys: rows(n), sketches: &[] };
        let mut scores = [0.0; 600];
        Random::new(seed, Scope::KvHead).importance(&step, &mut [], &mut scores[..n]).expect("fits");
        scores
    }

    #[test]
    fn the_same_numbers_on_every_machine() {
        // First output of SplitMix64 from state 0, as published.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        let expected = [12_656_743, 6_872_428, 12_278_931];
        assert_eq!(
            draw(7, 1, 2, 3)[..3].iter().map(|s| (s * 16_777_216.0) as u32).collect::<std::vec::Vec<_>>(),
            expected
        );
    }

    #[test]
    fn every_seed_layer_head_and_step_differs_and_is_spread_evenly() {
        let first = draw(7, 1, 2, 600);
        for other in [draw(8, 1, 2, 600), draw(7, 2, 2, 600), draw(7, 1, 3, 600), draw(7, 1, 2, 599)] {
            assert!(first.iter().zip(&other).filter(|(a, b)| a == b).count() < 3);
        }
        assert!((first.iter().sum::<f32>() / 600.0 - 0.5).abs() < 0.05);
        assert!(first.iter().all(|s| (0.0..1.0).contains(s)));
    }
}
