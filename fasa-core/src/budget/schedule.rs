//! Budgets that differ from layer to layer.

use crate::error::{Error, Result};

/// How a budget per layer is spread over the layers; the total stays the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Schedule {
    /// Every layer gets the same.
    #[default]
    Uniform,
    /// PyramidKV (arXiv 2406.02069): an arithmetic sequence from the lowest layer down to the highest, which
    /// gets the budget divided by `beta`. Attention is spread wide in low layers and narrows towards high ones.
    Pyramid {
        /// Mean budget divided by that of the highest layer, at least 1. 1 is uniform.
        beta: u32,
    },
}

impl Schedule {
    /// PyramidKV with the authors' setting, beta = 20.
    pub const PYRAMID: Self = Self::Pyramid { beta: 20 };

    /// `Ok` if the schedule means something.
    ///
    /// # Errors
    /// [`Error::Range`] for `beta == 0`.
    pub fn validate(self) -> Result<()> {
        match self {
            Schedule::Pyramid { beta: 0 } => Err(Error::Range { what: "beta", problem: "it divides the budget" }),
            _ => Ok(()),
        }
    }

    /// Tokens that `layer` (from 0) of `layers` keeps of `seen`, if layers keep `budget` on average.
    ///
    /// The budgets of all layers add up to exactly `layers * min(budget, seen)` and never rise from one layer to the next.
    /// Every layer gets at least one token, and none more than `seen`: what the lowest layer cannot use goes to the
    /// others, as in the authors' code. Where some layers stay dense, count only the others.
    ///
    /// Differs from that code in one respect: there an observation window comes on top of each layer's budget, here the
    /// whole budget follows the sequence and guarantees lie within it.
    ///
    /// # Errors
    /// [`Error::Range`] if `layer >= layers` or the schedule is not [valid](Self::validate).
    pub fn tokens(self, budget: usize, seen: usize, layer: usize, layers: usize) -> Result<usize> {
        self.validate()?;
        if layer >= layers {
            return Err(Error::Range { what: "layer", problem: "the schedule covers fewer layers" });
        }
        let budget = budget.min(seen);
        let Schedule::Pyramid { beta } = self else { return Ok(budget) };
        let least = (budget / beta as usize).max(1).min(budget);
        // `seen` bounds the lowest layer; the highest one mirrors it around the mean.
        let most = (2 * budget - least).min(seen);
        // The lower half by the sequence, the upper half as its mirror image: rounding then cancels out of the total.
        let mirrored = layers - 1 - layer;
        if layer == mirrored {
            return Ok(budget);
        }
        let (drop, gaps) = ((2 * (most - budget)) as u64, (layers - 1) as u64);
        let from_bottom = |layer: usize| most - ((drop * layer as u64 + gaps / 2) / gaps) as usize;
        Ok(if layer < mirrored { from_bottom(layer) } else { 2 * budget - from_bottom(mirrored) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn all(schedule: Schedule, budget: usize, seen: usize, layers: usize) -> Vec<usize> {
        (0..layers).map(|l| schedule.tokens(budget, seen, l, layers).expect("valid")).collect()
    }

    #[test]
    fn the_published_pyramid() {
        // beta 20, budget 128: from 250 down to 6 in steps of 244 / 31.
        let budgets = all(Schedule::PYRAMID, 128, 100_000, 32);
        assert_eq!((budgets[0], budgets[31]), (250, 6));
        for (l, tokens) in budgets.iter().enumerate() {
            assert!((*tokens as f64 - (250.0 - 244.0 / 31.0 * l as f64)).abs() <= 0.5, "layer {l}: {tokens}");
        }
        // A short context flattens the pyramid.
        assert_eq!(all(Schedule::PYRAMID, 128, 160, 3), [160, 128, 96]);
        assert_eq!(all(Schedule::PYRAMID, 128, 100, 3), [100; 3]);
        assert_eq!(all(Schedule::Uniform, 7, 9, 2), [7, 7]);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Schedule::Pyramid { beta: 0 }.tokens(8, 9, 0, 1).is_err());
        assert!(Schedule::Uniform.tokens(8, 9, 2, 2).is_err());
    }

    proptest! {
        #[test]
        fn the_total_stays_and_no_layer_rises(
            budget in 1usize..3000, seen in 1usize..5000, layers in 1usize..90, beta in 1u32..200,
        ) {
            let budgets = all(Schedule::Pyramid { beta }, budget, seen, layers);
            prop_assert_eq!(budgets.iter().sum::<usize>(), layers * budget.min(seen));
            prop_assert!(budgets.windows(2).all(|w| w[0] >= w[1]), "{budgets:?}");
            prop_assert!(budgets.iter().all(|b| (1..=seen).contains(b)), "{budgets:?}");
            let larger = all(Schedule::Pyramid { beta }, budget + 1, seen, layers);
            prop_assert!(larger.iter().sum::<usize>() >= budgets.iter().sum::<usize>());
        }
    }
}
