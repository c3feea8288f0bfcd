//! Budgets that follow the attention: as many tokens as its mass needs.

use super::Guarantees;
use crate::error::{Error, Result, expect_capacity};
use crate::select::Score;

/// Keeps tokens in descending order of estimated attention until their share of the whole reaches `p`, but no fewer than
/// `least` and no more than `most`.
///
/// A head that looks at three tokens then reads three, one that looks everywhere reads `most` (the idea of nucleus
/// sampling, arXiv 1904.09751, applied to attention as in Twilight, arXiv 2502.02770).
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TopP {
    p: f32,
    least: u32,
    most: u32,
}

impl TopP {
    /// Stops at the share `p` of the mass, in (0, 1], within `least..=most` tokens.
    ///
    /// # Errors
    /// [`Error::Range`] for another `p`, or bounds that hold no positive number of tokens.
    pub fn new(p: f32, least: u32, most: u32) -> Result<Self> {
        if !(p > 0.0 && p <= 1.0) {
            return Err(Error::Range { what: "p", problem: "a share lies above 0 and at most at 1" });
        }
        if most == 0 || least > most {
            return Err(Error::Range {
                what: "most",
                problem: "a step reads at least one token, and no fewer than least",
            });
        }
        Ok(Self { p, least, most })
    }

    /// Share of the mass at which it stops.
    pub fn p(self) -> f32 {
        self.p
    }

    /// Tokens kept at least, if there are as many.
    pub fn least(self) -> u32 {
        self.least
    }

    /// Tokens kept at most.
    pub fn most(self) -> u32 {
        self.most
    }

    /// The same within a budget: `most` is at most `budget`, and `least` at most that.
    ///
    /// # Errors
    /// [`Error::Range`] for a budget of 0.
    pub fn within(self, budget: usize) -> Result<Self> {
        let most = self.most.min(u32::try_from(budget).unwrap_or(u32::MAX));
        Self::new(self.p, self.least.min(most), most)
    }

    /// Picks tokens by `mass`, one estimated attention weight per token seen (not negative; they need not add up to 1;
    /// NaN counts as none). Guaranteed tokens come first and count towards both the mass and the bounds. Writes the set
    /// ascending to `out` and returns its size. In a tie the lower position is kept.
    ///
    /// A larger `p` keeps a superset, and so does a larger `least` or `most`. Time O(n + most log most), no allocation;
    /// `scratch` has at least [`scratch_len`](crate::select::scratch_len)`(min(most, n))` entries.
    ///
    /// # Errors
    /// [`Error::Capacity`] if `scratch` is too small, or `out` for `min(most, n)` positions.
    pub fn pick(
        self,
        mass: &[f32],
        guarantees: Guarantees,
        scratch: &mut [<f32 as Score>::Entry],
        out: &mut [u32],
    ) -> Result<usize> {
        let seen = mass.len();
        let most = (self.most as usize).min(seen);
        expect_capacity("scratch", scratch.len(), most)?;
        let candidates = guarantees.pick(mass, most, scratch, out)?;
        let weight = |position: u32| f64::from(mass[position as usize].max(0.0));
        let wanted = f64::from(self.p) * mass.iter().map(|m| f64::from(m.max(0.0))).sum::<f64>();

        // Guaranteed tokens move to the front of `out`, the others become entries that sort by mass.
        let (mut kept, mut others, mut reached) = (0, 0, 0.0);
        for i in 0..candidates {
            let position = out[i];
            if guarantees.covers(position as usize, seen, most) {
                out[kept] = position;
                kept += 1;
                reached += weight(position);
            } else {
                scratch[others] = mass[position as usize].entry(position);
                others += 1;
            }
        }
        let ranked = &mut scratch[..others];
        ranked.sort_unstable_by(|a, b| b.cmp(a));
        for entry in ranked {
            if reached >= wanted && kept >= self.least as usize {
                break;
            }
            out[kept] = f32::position(*entry);
            reached += weight(out[kept]);
            kept += 1;
        }
        out[..kept].sort_unstable();
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::scratch_len;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    fn pick(top_p: TopP, mass: &[f32], guarantees: Guarantees) -> Vec<u32> {
        let most = (top_p.most as usize).min(mass.len());
        let (mut out, mut scratch) = (vec![0; most], vec![0; scratch_len(most)]);
        let kept = top_p.pick(mass, guarantees, &mut scratch, &mut out).expect("fits");
        out.truncate(kept);
        out
    }

    /// Adds token after token, from the definition.
    fn naive(top_p: TopP, mass: &[f32], guarantees: Guarantees) -> Vec<u32> {
        let (seen, most) = (mass.len(), (top_p.most as usize).min(mass.len()));
        let (mut set, mut rest): (Vec<usize>, Vec<usize>) = (0..seen).partition(|t| guarantees.covers(*t, seen, most));
        rest.sort_by(|a, b| mass[*b].total_cmp(&mass[*a]).then(a.cmp(b)));
        let sum = |set: &[usize]| set.iter().map(|t| f64::from(mass[*t])).sum::<f64>();
        let wanted = f64::from(top_p.p) * sum(&(0..seen).collect::<Vec<_>>());
        let mut rest = rest.into_iter();
        while set.len() < most && (sum(&set) < wanted || set.len() < top_p.least as usize) {
            set.push(rest.next().expect("most is at most seen"));
        }
        let mut set: Vec<u32> = set.into_iter().map(|t| t as u32).collect();
        set.sort_unstable();
        set
    }

    #[test]
    fn a_sharp_head_reads_little_and_a_flat_one_much() {
        let top_p = TopP::new(0.9, 1, 6).expect("valid");
        let guarantees = Guarantees::CURRENT;
        assert_eq!(pick(top_p, &[0.0, 0.95, 0.0, 0.03, 0.02], guarantees), [1, 4]);
        assert_eq!(pick(top_p, &[0.1; 10], guarantees), [0, 1, 2, 3, 4, 9]);
        assert_eq!(pick(TopP::new(0.5, 4, 6).expect("valid"), &[0.0, 0.95, 0.0, 0.03, 0.02], guarantees), [0, 1, 3, 4]);
        assert_eq!(pick(top_p, &[f32::NAN, 0.0, 0.0], guarantees), [2]);
        assert_eq!(pick(top_p, &[], guarantees), [0u32; 0]);
    }

    #[test]
    fn nonsense_is_refused() {
        for (p, least, most) in [(0.0, 1, 2), (1.1, 1, 2), (f32::NAN, 1, 2), (0.5, 3, 2), (0.5, 0, 0)] {
            assert!(TopP::new(p, least, most).is_err(), "{p} {least} {most}");
        }
        let top_p = TopP::new(0.5, 1, 4).expect("valid");
        assert!(top_p.pick(&[0.1; 9], Guarantees::CURRENT, &mut [0; 64], &mut [0; 3]).is_err());
        assert!(top_p.pick(&[0.1; 9], Guarantees::CURRENT, &mut [0; 3], &mut [0; 4]).is_err());
    }

    proptest! {
        // Multiples of 1/64 add up exactly, whatever the order.
        #[test]
        fn equals_adding_one_by_one_and_grows_with_p(
            mass in prop::collection::vec((0u8..12).prop_map(|m| f32::from(m) / 64.0), 1..120),
            p in 1u8..=64, least in 0u32..20, most in 1u32..150, sinks in 0u32..6, recent in 0u32..9,
        ) {
            let guarantees = Guarantees { sinks, recent };
            let p = f32::from(p) / 64.0;
            let top_p = TopP::new(p, least.min(most), most).expect("valid");
            let set = pick(top_p, &mass, guarantees);
            prop_assert_eq!(&set, &naive(top_p, &mass, guarantees));
            prop_assert!(set.windows(2).all(|w| w[0] < w[1]));
            prop_assert!(set.len() <= most as usize && set.len() >= (least.min(most) as usize).min(mass.len()));
            prop_assert_eq!(*set.last().expect("never empty") as usize, mass.len() - 1);
            let more = [
                TopP::new((p + 0.1).min(1.0), top_p.least, most),
                TopP::new(p, (top_p.least + 1).min(most), most),
                TopP::new(p, top_p.least, most + 1),
            ];
            for more in more {
                let larger = pick(more.expect("valid"), &mass, guarantees);
                prop_assert!(set.iter().all(|t| larger.contains(t)));
            }
        }
    }
}
