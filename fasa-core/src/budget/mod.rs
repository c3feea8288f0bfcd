//! How many tokens a decode step may read, and which of them are beyond question.
//!
//! | type | decides |
//! |---|---|
//! | [`Budget`] | tokens of one step, as a number or as a part of the context |
//! | [`Schedule`] | how that number is spread over the layers |
//! | [`TopP`] | how much of it a step needs, by the attention it estimates |
//! | [`Guarantees`] | which tokens are kept whatever their score |

mod schedule;
mod top_p;

pub use schedule::Schedule;
pub use top_p::TopP;

use crate::error::{Error, Result, expect_capacity};
use crate::select::{Score, top_n};

/// Tokens kept per decode step.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Budget {
    /// This many tokens, whatever the context.
    Tokens(u32),
    /// This part of the tokens seen, in (0, 1]: the smallest number of tokens that is at least this part.
    Ratio(f32),
}

impl Budget {
    /// `Ok` if the budget keeps at least one token of any context.
    ///
    /// # Errors
    /// [`Error::Range`] for zero tokens or a ratio outside (0, 1].
    pub fn validate(self) -> Result<()> {
        match self {
            Budget::Tokens(0) => Err(Error::Range { what: "budget", problem: "a step reads at least one token" }),
            Budget::Ratio(r) if !(r > 0.0 && r <= 1.0) => {
                Err(Error::Range { what: "budget", problem: "a ratio lies above 0 and at most at 1" })
            }
            _ => Ok(()),
        }
    }

    /// Tokens to keep of `seen`, the current one included: at least 1 and at most `seen` (0 of 0).
    pub fn tokens(self, seen: usize) -> usize {
        let wanted = match self {
            Budget::Tokens(n) => n as usize,
            Budget::Ratio(r) if r >= 1.0 => seen,
            Budget::Ratio(r) => {
                // f64: an f32 cannot hold every token count of a long context. And an f32 is hardly ever the decimal
                // that was meant (0.1 is a little more): where one token fewer is the same part in f32, it is enough.
                let tokens = libm::ceil(f64::from(r) * seen as f64) as usize;
                match tokens.checked_sub(1) {
                    Some(fewer) if (fewer as f64 / seen as f64) as f32 >= r => fewer,
                    _ => tokens,
                }
            }
        };
        wanted.max(1).min(seen)
    }
}

/// Tokens that are kept whatever their score. They count inside the budget.
///
/// If the budget cannot hold them all, the current token goes first, then the sinks from position 0 up, then the recent
/// tokens from the newest down; so a larger budget always keeps a superset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Guarantees {
    /// The first tokens of the context (attention sinks, arXiv 2309.17453).
    pub sinks: u32,
    /// The last tokens, the current one among them.
    pub recent: u32,
}

impl Guarantees {
    /// Only the current token, as in the FASA paper.
    pub const CURRENT: Self = Self { sinks: 0, recent: 1 };

    /// The forced positions of a context of `seen` tokens within `budget`: everything under the first number and
    /// everything from the second on.
    pub fn forced(self, seen: usize, budget: usize) -> (usize, usize) {
        let room = budget.min(seen).saturating_sub(1); // the current token is in
        let sinks = (self.sinks as usize).min(room);
        let recent = (self.recent as usize).saturating_sub(1).min(room - sinks);
        (sinks, seen.saturating_sub(1 + recent).max(sinks))
    }

    /// Picks `budget` tokens: the guaranteed ones, then the best by `scores`. Writes them ascending to `out` and returns
    /// how many. `scores` has one entry per token seen; the last token is the current one.
    ///
    /// Time O(n + budget log budget), no allocation; `scratch` as for [`top_n`].
    ///
    /// # Errors
    /// [`Error::Capacity`] if `scratch` or `out` is too small.
    pub fn pick<S: Score>(
        &self,
        scores: &[S],
        budget: usize,
        scratch: &mut [S::Entry],
        out: &mut [u32],
    ) -> Result<usize> {
        let seen = scores.len();
        if budget >= seen {
            return top_n(scores, seen, scratch, out);
        }
        expect_capacity("out", out.len(), budget)?;
        if budget == 0 {
            return Ok(0);
        }
        let (sinks, recent_from) = self.forced(seen, budget);
        let free = budget - sinks - (seen - recent_from);
        let middle = &scores[sinks..recent_from];
        let kept = top_n(middle, free, scratch, &mut out[sinks..])?;
        for position in &mut out[sinks..sinks + kept] {
            *position += sinks as u32;
        }
        for (position, slot) in out[..sinks].iter_mut().enumerate() {
            *slot = position as u32;
        }
        for (slot, position) in out[sinks + kept..].iter_mut().zip(recent_from..seen) {
            *slot = position as u32;
        }
        Ok(sinks + kept + seen - recent_from)
    }

    /// Whether `position` of a context of `seen` tokens is guaranteed within `budget`.
    pub fn covers(self, position: usize, seen: usize, budget: usize) -> bool {
        let (sinks, recent_from) = self.forced(seen, budget);
        position < sinks || (position >= recent_from && position < seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::scratch_len;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    fn pick(guarantees: Guarantees, scores: &[f32], budget: usize) -> Vec<u32> {
        let (mut out, mut scratch) = (vec![0; budget.max(1)], vec![0; scratch_len(budget)]);
        let budget = budget.min(scores.len());
        let kept = guarantees.pick(scores, budget, &mut scratch, &mut out).expect("buffers fit");
        out.truncate(kept);
        out
    }

    #[test]
    fn budgets_in_tokens() {
        for (budget, seen, want) in [
            (Budget::Tokens(128), 1000, 128),
            (Budget::Tokens(128), 5, 5),
            (Budget::Ratio(0.03), 1000, 30),
            (Budget::Ratio(0.001), 10, 1),
            (Budget::Ratio(1.0), 16_777_217, 16_777_217),
            (Budget::Ratio(1.0), 1 << 27, 1 << 27),
            (Budget::Ratio(0.1), 1000, 100),
            (Budget::Ratio(0.7), 10, 7),
            (Budget::Ratio(0.1), 1001, 101),
            (Budget::Tokens(3), 0, 0),
        ] {
            assert_eq!(budget.tokens(seen), want, "{budget:?} of {seen}");
        }
        for bad in [Budget::Tokens(0), Budget::Ratio(0.0), Budget::Ratio(1.01), Budget::Ratio(f32::NAN)] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn forced_tokens_count_inside_the_budget() {
        let guarantees = Guarantees { sinks: 2, recent: 3 };
        let scores = [0.0, 0.0, 5.0, 9.0, 7.0, 0.0, 0.0, 0.0];
        let cases: [(usize, &[u32]); 6] = [
            (1, &[7]),
            (2, &[0, 7]),
            (3, &[0, 1, 7]),
            (5, &[0, 1, 5, 6, 7]),
            (6, &[0, 1, 3, 5, 6, 7]),
            (8, &[0, 1, 2, 3, 4, 5, 6, 7]),
        ];
        for (budget, want) in cases {
            assert_eq!(pick(guarantees, &scores, budget), want, "budget {budget}");
        }
    }

    proptest! {
        #[test]
        fn a_ratio_is_the_smallest_count_that_reaches_it(ratio in 1u32..1000, seen in 1usize..5000) {
            let ratio = ratio as f32 / 1000.0;
            let naive = (1..=seen).find(|k| (*k as f64 / seen as f64) as f32 >= ratio);
            prop_assert_eq!(Some(Budget::Ratio(ratio).tokens(seen)), naive);
        }

        #[test]
        fn sets_are_sorted_unique_within_budget_and_monotone(
            scores in prop::collection::vec(-3.0f32..3.0, 1..200), sinks in 0u32..9, recent in 0u32..20, budget in 1usize..220,
        ) {
            let guarantees = Guarantees { sinks, recent };
            let small = pick(guarantees, &scores, budget);
            prop_assert_eq!(small.len(), budget.min(scores.len()));
            prop_assert!(small.windows(2).all(|w| w[0] < w[1]));
            prop_assert_eq!(*small.last().expect("never empty") as usize, scores.len() - 1);
            for position in 0..scores.len() {
                if guarantees.covers(position, scores.len(), budget) {
                    prop_assert!(small.contains(&(position as u32)));
                }
            }
            let large = pick(guarantees, &scores, budget + 1);
            prop_assert!(small.iter().all(|p| large.contains(p)));
        }
    }
}
