//! How well what a method chooses agrees with true attention, layer by layer.

use super::contender::Contender;
use super::question::Outcome;
use anyhow::{Context, Result, ensure};
use fasa_burn::cache::KvCache;
use fasa_burn::generate::Cancel;
use fasa_burn::method::Method;
use fasa_burn::model::{Decoder, Logits, Watch};
use fasa_burn::ops::Recorder;
use fasa_burn::trace::Queries;
use fasa_core::Rows;
use fasa_core::select::{scratch_len, top_n};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::PoisonError;

/// One sparse layer, averaged over query heads and steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LayerAgreement {
    /// The layer.
    pub layer: usize,
    /// Share of the N tokens with most attention that are among the N chosen.
    pub tokens: f64,
    /// Share of the attention that the chosen tokens have.
    pub mass: f64,
    /// Contextual agreement (K = N) of the sketch's chunks, each alone and averaged; of methods with chunks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub single: Option<f64>,
    /// Contextual agreement of their sum, before it is quantized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compound: Option<f64>,
}

/// Tokens decoded by a method while what it chooses is watched.
pub(super) struct Study<'a> {
    pub(super) tokens: &'a [u32],
    /// Steps that count, as places in `tokens`.
    pub(super) judged: Range<usize>,
    pub(super) contender: &'a Contender,
    pub(super) cancel: &'a Cancel,
}

/// What a layer chose at one step: a list per KV head or per query head.
struct Choice {
    position: usize,
    lists: Vec<Vec<u32>>,
}

impl Study<'_> {
    /// Decodes behind what the cache holds. The score is the share of attention, averaged over layers; 1 where nothing is
    /// left out.
    ///
    /// Queries are those of the method's own run: what an earlier layer missed is in them.
    pub(super) fn run(&self, decoder: &Decoder, method: &Method, cache: &mut KvCache) -> Result<Outcome> {
        let layers = decoder.config().num_hidden_layers;
        let mut queries = Queries::new(layers, cache.len() + self.judged.start);
        let mut choices: Vec<Vec<Choice>> = (0..layers).map(|_| Vec::new()).collect();
        for (place, token) in self.tokens[..self.judged.end].iter().enumerate() {
            ensure!(!self.cancel.is_cancelled(), "stopped");
            let recorder = Recorder::default();
            let mut watch = Watch { observer: Some(&mut queries), recorder: Some(recorder.clone()) };
            let position = cache.len();
            decoder.forward_watched(&[*token], cache, method, Logits::None, &mut watch)?;
            if self.judged.contains(&place) {
                for (layer, selected) in recorder.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                    let lists = selected.lists().map(<[u32]>::to_vec).collect();
                    choices[*layer].push(Choice { position, lists });
                }
            }
        }
        let trace = queries.finish(cache)?;
        let mut outcome = Outcome { tokens: self.judged.len(), score: 1.0, ..Outcome::default() };
        for (layer, choices) in choices.iter().enumerate().filter(|(_, choices)| !choices.is_empty()) {
            let traced = &trace.layers()[layer];
            let mut sum = Sum::default();
            for head in 0..decoder.config().num_attention_heads {
                let kv_head = head / decoder.config().num_key_value_groups();
                let (queries, keys) = (traced.queries(head)?, traced.keys(kv_head)?);
                for choice in choices {
                    let set = head * choice.lists.len() / decoder.config().num_attention_heads;
                    let step = Step {
                        query: queries.row(choice.position - trace.from()),
                        keys: keys.first(choice.position + 1),
                        chosen: choice.lists.get(set).context("a step chose for too few heads")?,
                        channels: self.channels(decoder, layer, head)?,
                    };
                    sum.add(&step)?;
                }
            }
            outcome.layers.push(sum.mean(layer));
        }
        if !outcome.layers.is_empty() {
            outcome.score = outcome.layers.iter().map(|l| l.mass).sum::<f64>() / outcome.layers.len() as f64;
        }
        Ok(outcome)
    }

    /// The sketch's channels for a query head: the first dimensions of its chunks, then the second ones.
    fn channels(&self, decoder: &Decoder, layer: usize, head: usize) -> Result<Option<Vec<usize>>> {
        let Some(plan) = self.contender.plan() else { return Ok(None) };
        let plan = plan.view();
        let row = head * plan.rows() / decoder.config().num_attention_heads;
        Ok(Some(plan.head(layer, row)?.channels().iter().map(|c| usize::from(*c)).collect()))
    }
}

/// One query head at one step.
struct Step<'a> {
    query: &'a [f32],
    keys: Rows<'a>,
    chosen: &'a [u32],
    channels: Option<Vec<usize>>,
}

#[derive(Default)]
struct Sum {
    steps: usize,
    tokens: f64,
    mass: f64,
    single: f64,
    compound: f64,
    with_chunks: bool,
}

impl Sum {
    fn add(&mut self, step: &Step<'_>) -> Result<()> {
        let all: Vec<usize> = (0..step.query.len()).collect();
        let scores = step.scores(&all);
        let best = step.best(&scores)?;
        self.steps += 1;
        self.tokens += step.found(&best, step.chosen);
        self.mass += attention(&scores, step.query.len(), step.chosen);
        if let Some(channels) = &step.channels {
            self.with_chunks = true;
            self.compound += step.found(&best, &step.best(&step.scores(channels))?);
            let (first, second) = channels.split_at(channels.len() / 2);
            for (a, b) in first.iter().zip(second) {
                let alone = step.best(&step.scores(&[*a, *b]))?;
                self.single += step.found(&best, &alone) / first.len() as f64;
            }
        }
        Ok(())
    }

    fn mean(&self, layer: usize) -> LayerAgreement {
        let mean = |sum: f64| sum / self.steps.max(1) as f64;
        LayerAgreement {
            layer,
            tokens: mean(self.tokens),
            mass: mean(self.mass),
            single: self.with_chunks.then(|| mean(self.single)),
            compound: self.with_chunks.then(|| mean(self.compound)),
        }
    }
}

impl Step<'_> {
    /// Products of query and keys over some channels, in `f64` as criteria compute them.
    fn scores(&self, channels: &[usize]) -> Vec<f64> {
        let product = |key: &[f32]| channels.iter().map(|c| f64::from(self.query[*c]) * f64::from(key[*c])).sum();
        self.keys.iter().map(product).collect()
    }

    /// As many tokens as were chosen, those with the best scores.
    fn best(&self, scores: &[f64]) -> Result<Vec<u32>> {
        let n = self.chosen.len().min(scores.len());
        let (mut entries, mut out) = (vec![0; scratch_len(n)], vec![0; n]);
        let found = top_n(scores, n, &mut entries, &mut out)?;
        out.truncate(found);
        Ok(out)
    }

    /// Share of `best` that is in `chosen`.
    fn found(&self, best: &[u32], chosen: &[u32]) -> f64 {
        let chosen: std::collections::HashSet<&u32> = chosen.iter().collect();
        best.iter().filter(|token| chosen.contains(token)).count() as f64 / best.len().max(1) as f64
    }
}

/// Share of the attention on `chosen`.
fn attention(scores: &[f64], dim: usize, chosen: &[u32]) -> f64 {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weight = |score: f64| ((score - most) / (dim as f64).sqrt()).exp();
    let total: f64 = scores.iter().map(|score| weight(*score)).sum();
    chosen.iter().filter_map(|token| scores.get(*token as usize)).map(|score| weight(*score)).sum::<f64>() / total
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Four keys of two chunks: (0, 2) and (1, 3). Products 4 ln 2 · (1, 2, 0, 1), of the first chunk (1, 0, 0, 1), of the
    /// second (0, 2, 0, 0); divided by √4, weights are 4, 16, 1 and 4.
    #[test]
    fn a_step_by_hand() {
        let unit = 4.0 * 2.0_f32.ln();
        let keys = [[unit, 0.0, 0.0, 0.0], [0.0, 2.0 * unit, 0.0, 0.0], [0.0; 4], [0.0, 0.0, unit, 0.0]].concat();
        let step = Step {
            query: &[1.0; 4],
            keys: Rows::contiguous(&keys, 4).unwrap(),
            chosen: &[1, 2],
            channels: Some(vec![0, 1, 2, 3]),
        };
        let mut sum = Sum::default();
        sum.add(&step).unwrap();
        let mean = sum.mean(3);
        assert_eq!((mean.layer, mean.tokens, mean.compound), (3, 0.5, Some(1.0)));
        assert!((mean.mass - 17.0 / 25.0).abs() < 1e-6);
        // The best are 1 and 0. The first chunk finds 0 and 3, the second 1 and, by the tie, 0.
        assert_eq!(mean.single, Some(0.75));
    }
}
