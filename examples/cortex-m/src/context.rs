//! A made-up context: keys as the profile's model has them, and queries that look for one token each.
//!
//! Everything is made of integers and single multiplications, so that every processor makes the same numbers.

use crate::cache::DIM;
use crate::{GROUP, KV_HEAD, LAYER};
use fasa_core::profile::ProfileView;

/// How sharply a query looks for its token.
const STRENGTH: f32 = 1.5;

/// Makes one token after the other.
pub struct Context {
    state: u32,
    scale: [f32; DIM],
    centre: [f32; DIM],
}

/// The token that each query head looks for in a step.
pub fn looked_for(step: usize) -> [usize; GROUP] {
    [17 + 20 * step, 70 - 13 * step]
}

impl Context {
    /// A context of the model that `profile` belongs to: its static scale and centre say where keys lie.
    pub fn new(profile: &ProfileView<'_>) -> Self {
        Self {
            state: 0x2545_f491,
            scale: core::array::from_fn(|c| profile.key_scale(LAYER, KV_HEAD, c)),
            centre: core::array::from_fn(|c| profile.key_centre(LAYER, KV_HEAD, c)),
        }
    }

    /// Key and value of the next token.
    pub fn token(&mut self) -> ([f32; DIM], [f32; DIM]) {
        let key = core::array::from_fn(|c| self.centre[c] + self.scale[c] * self.noise());
        (key, core::array::from_fn(|_| self.noise()))
    }

    /// A query that scores `key` far above the others.
    pub fn query(&self, key: &[f32]) -> [f32; DIM] {
        core::array::from_fn(|c| STRENGTH * (key[c] - self.centre[c]) / (self.scale[c] * self.scale[c]))
    }

    /// A number from −1 to 1 (Marsaglia's xorshift).
    fn noise(&mut self) -> f32 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 17;
        self.state ^= self.state << 5;
        (self.state >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
}
