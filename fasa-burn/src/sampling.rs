//! Choosing the next token from the logits.
//!
//! Order and meaning of the steps are those of `transformers`: repetition penalty, temperature, top-k, top-p, min-p,
//! then one draw. The random numbers come from ChaCha8, whose stream is specified, so a seed gives the same draws with
//! every version and on every platform.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::Serialize;

use crate::error::{Error, Result};

/// How tokens are drawn. The default is greedy: the token with the highest logit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy, 1 the model's own distribution.
    pub temperature: f32,
    /// Keeps the tokens whose logit is not below the k-th highest, so ties with it stay; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most probable tokens until they hold this share of the probability, at least one; 1 keeps all.
    pub top_p: f32,
    /// Keeps the tokens with at least this fraction of the most probable one's probability; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of the tokens already in the text; 1 leaves them alone.
    pub repetition_penalty: f32,
    /// Seed of the random numbers; greedy uses none.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Whether no random number is drawn.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Checks that every parameter is in its range and has an effect.
    ///
    /// # Errors
    /// [`Error::Request`] naming the parameter. A filter (`top_k`, `top_p`, `min_p`) beside temperature 0 is an error
    /// too, for it would silently do nothing.
    pub fn validate(&self) -> Result<()> {
        let range = |name: &str, value: f32, inside: bool, mend: &str| {
            if inside { Ok(()) } else { Err(Error::request(name, format!("is {value}"), mend)) }
        };
        range(
            "temperature",
            self.temperature,
            self.temperature.is_finite() && self.temperature >= 0.0,
            "use 0 for greedy decoding or a finite number above 0",
        )?;
        range(
            "top_p",
            self.top_p,
            self.top_p > 0.0 && self.top_p <= 1.0,
            "use a number above 0 and up to 1, where 1 keeps all tokens",
        )?;
        range(
            "min_p",
            self.min_p,
            (0.0..=1.0).contains(&self.min_p),
            "use a number from 0 to 1, where 0 keeps all tokens",
        )?;
        range(
            "repetition_penalty",
            self.repetition_penalty,
            self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0,
            "use a finite number above 0, where 1 has no effect",
        )?;
        let filters = [("top_k", self.top_k != 0), ("top_p", self.top_p != 1.0), ("min_p", self.min_p != 0.0)];
        match filters.iter().find(|(_, set)| *set && self.is_greedy()) {
            Some((name, _)) => Err(Error::request(
                name,
                "is set, but has no effect at temperature 0 (greedy)",
                "set a temperature above 0, or leave it out",
            )),
            None => Ok(()),
        }
    }
}

/// Draws tokens one after the other. Holds the random state and buffers that are reused from step to step.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    candidates: Vec<Candidate>,
    /// Logits again, for the partial sort of top-k.
    scores: Vec<f32>,
    /// One bit per token id: whether its repetition has been penalised in this step.
    penalised: Vec<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    score: f32,
    /// Probability over that of the most probable token.
    weight: f64,
}

impl Sampler {
    /// A sampler at the start of its random stream.
    ///
    /// # Errors
    /// As [`Sampling::validate`].
    pub fn new(sampling: &Sampling) -> Result<Self> {
        sampling.validate()?;
        // Written out instead of `seed_from_u64`, whose expansion of the seed is the library's choice.
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&sampling.seed.to_le_bytes());
        Ok(Self {
            sampling: sampling.clone(),
            rng: ChaCha8Rng::from_seed(seed),
            candidates: Vec::new(),
            scores: Vec::new(),
            penalised: Vec::new(),
        })
    }

    /// The next token id, an index into `logits` (one per token id, not empty). `history` is the text so far, prompt
    /// included; only the repetition penalty looks at it. The logits are changed by the penalty.
    ///
    /// A NaN counts as negative infinity and is never drawn; among equal logits the lowest id comes first. If no logit
    /// is above negative infinity the answer is 0.
    pub fn next(&mut self, logits: &mut [f32], history: &[u32]) -> u32 {
        debug_assert!(!logits.is_empty(), "no logits to choose from");
        let penalised = self.sampling.repetition_penalty != 1.0;
        // Greedily, a comparison passes over NaN by itself.
        if penalised || !self.sampling.is_greedy() {
            for logit in logits.iter_mut().filter(|logit| logit.is_nan()) {
                *logit = f32::NEG_INFINITY;
            }
        }
        if penalised {
            self.penalise(logits, history);
        }
        let best = argmax(logits);
        let Some(&max) = logits.get(best as usize) else {
            return best;
        };
        if self.sampling.is_greedy() || max == f32::NEG_INFINITY {
            return best;
        }
        self.collect(logits, max);
        self.keep_top_p();
        if self.sampling.min_p > 0.0 {
            let least = f64::from(self.sampling.min_p);
            self.candidates.retain(|candidate| candidate.weight >= least);
        }
        self.draw().unwrap_or(best)
    }

    /// Once per token, however often it occurs: the penalty does not grow with the count.
    fn penalise(&mut self, logits: &mut [f32], history: &[u32]) {
        self.penalised.clear();
        self.penalised.resize(logits.len().div_ceil(64), 0);
        let penalty = self.sampling.repetition_penalty;
        for &id in history {
            let Some(logit) = logits.get_mut(id as usize) else {
                continue;
            };
            let (word, bit) = (id as usize / 64, 1 << (id % 64));
            if self.penalised[word] & bit == 0 {
                self.penalised[word] |= bit;
                *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
            }
        }
    }

    /// Fills the candidates, by ascending id, with the tokens that top-k keeps.
    fn collect(&mut self, logits: &[f32], max: f32) {
        let k = self.sampling.top_k;
        let least = if (1..logits.len()).contains(&k) {
            self.scores.clear();
            self.scores.extend_from_slice(logits);
            *self.scores.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
        } else {
            f32::NEG_INFINITY
        };
        let temperature = f64::from(self.sampling.temperature);
        self.candidates.clear();
        for (id, &score) in (0..).zip(logits) {
            if score >= least && score > f32::NEG_INFINITY {
                // The difference first: even infinite logits and the smallest temperatures then give no NaN.
                let weight = if score == max { 1.0 } else { ((f64::from(score) - f64::from(max)) / temperature).exp() };
                self.candidates.push(Candidate { id, score, weight });
            }
        }
    }

    /// Sorts by probability and cuts where the share is reached.
    fn keep_top_p(&mut self) {
        let top_p = f64::from(self.sampling.top_p);
        if top_p >= 1.0 {
            return;
        }
        let total: f64 = self.candidates.iter().map(|candidate| candidate.weight).sum();
        // Tokens below this cannot matter: even all of them together hold no more than what is cut off. Dropping them
        // first spares sorting the whole vocabulary.
        let floor = (1.0 - top_p) * total / self.candidates.len() as f64;
        self.candidates.retain(|candidate| candidate.weight > floor || candidate.weight == 1.0);
        self.candidates.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)));
        let mut before = 0.0;
        let kept = self
            .candidates
            .iter()
            .take_while(|candidate| {
                let needed = before < top_p * total;
                before += candidate.weight;
                needed
            })
            .count();
        self.candidates.truncate(kept.max(1));
    }

    fn draw(&mut self) -> Option<u32> {
        let total: f64 = self.candidates.iter().map(|candidate| candidate.weight).sum();
        // The upper 53 bits, as many as an f64 holds: uniform in 0..1.
        let uniform = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let target = uniform * total;
        let mut sum = 0.0;
        for candidate in &self.candidates {
            sum += candidate.weight;
            if target < sum {
                return Some(candidate.id);
            }
        }
        None
    }
}

/// The id of the highest logit, the lowest among equals. NaN is no number.
fn argmax(logits: &[f32]) -> u32 {
    // In lanes, which the compiler makes vectors of; then where that number stands.
    const LANES: usize = 16;
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (blocks, rest) = logits.as_chunks::<LANES>();
    let mut largest = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        largest.iter_mut().zip(block).for_each(|(max, logit)| *max = larger(*max, *logit));
    }
    let max = largest.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger);
    match max {
        f32::NEG_INFINITY => 0,
        _ => logits.iter().position(|logit| *logit == max).unwrap_or(0) as u32,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
