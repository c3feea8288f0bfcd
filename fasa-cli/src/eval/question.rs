//! One question, put to every method over one prefill.

use super::agreement::{self, LayerAgreement};
use super::contender::Contender;
use super::record::Cell;
use crate::model::LanguageModel;
use anyhow::{Context, Result, bail};
use fasa_burn::cache::KvCache;
use fasa_burn::generate::Cancel;
use fasa_burn::method::Method;
use fasa_burn::model::{Logits, Watch, to_host};
use fasa_burn::ops::Recorder;
use fasa_burn::sampling::{Sampler, Sampling};
use fasa_burn::trace::{Queries, Trace};
use fasa_core::Budget;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// What is asked, as tokens.
pub struct Question {
    /// Read at once, by dense attention.
    pub prefill: Vec<u32>,
    /// What every method then does by itself.
    pub then: Then,
}

/// What follows the prefill.
pub enum Then {
    /// These tokens are given one after the other. The score is the share of `answers`, parts of them, of which every token
    /// was the most likely one.
    Given {
        /// The tokens.
        tokens: Vec<u32>,
        /// Parts of `tokens` that answer.
        answers: Vec<Range<usize>>,
    },
    /// These tokens are given; their mean negative log-likelihood is the score. The first is predicted by the prefill and
    /// does not count.
    Likelihood {
        /// The tokens.
        tokens: Vec<u32>,
    },
    /// These tokens are given; what every layer chooses is compared with what it would attend to.
    Studied {
        /// The tokens.
        tokens: Vec<u32>,
        /// Steps that count, as places in `tokens`.
        judged: Range<usize>,
    },
    /// The model writes.
    Written(Writing),
}

/// How an answer is written and scored.
pub struct Writing {
    /// At most this many tokens.
    pub max_new_tokens: usize,
    /// Texts that end the answer.
    pub stops: Vec<String>,
    /// Tokens that end the answer, beside the model's own.
    pub stop_ids: Vec<u32>,
    /// Tokens that an answer does not begin with.
    pub not_first: Vec<u32>,
    /// Answers to each question.
    pub samples: usize,
    /// How tokens are drawn; the seed differs from sample to sample.
    pub sampling: Sampling,
    /// The score of an answer, 0 to 1.
    pub grade: Grade,
}

/// Scores a text, 0 to 1.
pub type Grade = Box<dyn Fn(&str) -> Result<f64> + Send + Sync>;

impl Then {
    /// Tokens that may follow the prefill.
    fn room(&self) -> usize {
        match self {
            Then::Given { tokens, .. } | Then::Likelihood { tokens } | Then::Studied { tokens, .. } => tokens.len(),
            Then::Written(writing) => writing.max_new_tokens,
        }
    }
}

/// Puts a question to methods at budgets, `wanted` as pairs of indices, and returns a cell for each.
///
/// # Errors
/// If the model or a method fails, or the work is stopped.
pub fn put(
    model: &LanguageModel,
    question: &Question,
    contenders: &[Contender],
    budgets: &[Budget],
    wanted: &[(usize, usize)],
    cancel: &Cancel,
) -> Result<Vec<Cell>> {
    let decoder = &model.decoder;
    let prompt = &question.prefill;
    let room = prompt.len() + question.then.room();
    let mut cache = decoder.new_cache(room);
    cache.expect(room);
    let window = wanted.iter().map(|(c, _)| contenders[*c].window()).max().unwrap_or(0);
    let (first, trace) = prefill(model, prompt, window, &mut cache, cancel)?;
    let mut cells = Vec::new();
    for (index, contender) in contenders.iter().enumerate() {
        let of_this: Vec<usize> = wanted.iter().filter(|(c, _)| *c == index).map(|(_, b)| *b).collect();
        if of_this.is_empty() {
            continue;
        }
        let maker = contender.read(decoder, trace.as_ref(), room)?;
        for b in of_this {
            anyhow::ensure!(!cancel.is_cancelled(), "stopped");
            let budget = budgets[b];
            let method = maker(budget).with_context(|| format!("method {}", contender.label))?;
            if let Then::Studied { tokens, judged } = &question.then {
                cache.truncate(prompt.len());
                let study = agreement::Study { tokens, judged: judged.clone(), contender, cancel };
                let outcome = study.run(decoder, &method, &mut cache)?;
                let bytes = contender.bytes_per_step(decoder, budget, prompt.len() + tokens.len(), None);
                cells.push(Cell::new(contender, budget, outcome, bytes));
                continue;
            }
            let recorder = contender.varies().then(Recorder::default);
            let mut run = Run { model, method: &method, cache: &mut cache, recorder: recorder.clone(), steps: 0 };
            let outcome = run.outcome(question, &first, cancel, &|| maker(budget))?;
            let seen = prompt.len() + question.then.room();
            let rows = recorder.and_then(|recorder| rows_per_layer(&recorder));
            let bytes = contender.bytes_per_step(decoder, budget, seen.min(prompt.len() + outcome.tokens.max(1)), rows);
            cells.push(Cell::new(contender, budget, outcome, bytes));
        }
    }
    Ok(cells)
}

/// Reads the prompt densely: the logits after it, and the queries of its last `window` tokens.
fn prefill(
    model: &LanguageModel,
    prompt: &[u32],
    window: usize,
    cache: &mut KvCache,
    cancel: &Cancel,
) -> Result<(Vec<f32>, Option<Trace>)> {
    let decoder = &model.decoder;
    let mut queries =
        (window > 0).then(|| Queries::new(decoder.config().num_hidden_layers, prompt.len().saturating_sub(window)));
    let mut logits = None;
    for (chunk, wanted) in chunks(prompt) {
        anyhow::ensure!(!cancel.is_cancelled(), "stopped");
        let mut watch = Watch::default();
        if let Some(queries) = &mut queries {
            watch.observer = Some(queries);
        }
        logits = decoder.forward_watched(chunk, cache, &Method::Dense, wanted, &mut watch)?;
    }
    let first = to_host(logits.context("the prompt is empty")?)?;
    Ok((first, queries.map(|queries| queries.finish(cache)).transpose()?))
}

/// The prompt in the chunks that it is computed in, and whether logits are wanted.
fn chunks(prompt: &[u32]) -> impl Iterator<Item = (&[u32], Logits)> {
    let last = prompt.len().div_ceil(fasa_burn::model::PREFILL_CHUNK);
    let chunks = prompt.chunks(fasa_burn::model::PREFILL_CHUNK).enumerate();
    chunks.map(move |(i, chunk)| (chunk, if i + 1 == last { Logits::Last } else { Logits::None }))
}

/// What a method made of a question.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// 0 to 1; for likelihoods the mean negative log-likelihood.
    pub score: f64,
    /// Tokens that the score is about.
    pub tokens: usize,
    /// What was written.
    pub texts: Vec<String>,
    /// How choices agree with true attention, per sparse layer.
    pub layers: Vec<LayerAgreement>,
}

/// One method on one question.
struct Run<'a> {
    model: &'a LanguageModel,
    method: &'a Method,
    cache: &'a mut KvCache,
    recorder: Option<Recorder>,
    steps: usize,
}

impl Run<'_> {
    fn step(&mut self, token: u32, method: &Method) -> Result<Vec<f32>> {
        let mut watch = Watch { observer: None, recorder: self.recorder.clone() };
        let logits = self.model.decoder.forward_watched(&[token], self.cache, method, Logits::Last, &mut watch)?;
        self.steps += 1;
        Ok(to_host(logits.context("no logits")?)?)
    }

    fn outcome(
        &mut self,
        question: &Question,
        first: &[f32],
        cancel: &Cancel,
        fresh: &dyn Fn() -> Result<Method>,
    ) -> Result<Outcome> {
        let prompt = question.prefill.len();
        self.cache.truncate(prompt);
        match &question.then {
            Then::Given { tokens, answers } => self.given(tokens, answers, first),
            Then::Likelihood { tokens } => self.likelihood(tokens, cancel),
            Then::Studied { .. } => bail!("a study runs by itself"),
            Then::Written(writing) => {
                let mut outcome = Outcome::default();
                for sample in 0..writing.samples {
                    self.cache.truncate(prompt);
                    // A policy may remember what it dropped: every sample starts from the prompt.
                    let method = if sample == 0 { self.method.clone() } else { fresh()? };
                    let (text, tokens) = self.written(&question.prefill, writing, sample, first, &method, cancel)?;
                    outcome.score += (writing.grade)(&text)? / writing.samples as f64;
                    outcome.tokens += tokens;
                    outcome.texts.push(text);
                }
                outcome.tokens = outcome.tokens.div_ceil(writing.samples.max(1));
                Ok(outcome)
            }
        }
    }

    fn given(&mut self, tokens: &[u32], answers: &[Range<usize>], first: &[f32]) -> Result<Outcome> {
        let method = self.method.clone();
        let end = answers.iter().map(|a| a.end).max().unwrap_or(0);
        let mut right = vec![true; answers.len()];
        let mut next = most_likely(first);
        for (i, token) in tokens[..end].iter().enumerate() {
            if next != *token {
                answers.iter().zip(&mut right).filter(|(a, _)| a.contains(&i)).for_each(|(_, right)| *right = false);
            }
            // Nothing that is still to come could be right or wrong.
            let open = answers.iter().zip(&right).any(|(a, right)| *right && a.end > i + 1);
            if !open {
                break;
            }
            next = most_likely(&self.step(*token, &method)?);
        }
        let score = right.iter().filter(|r| **r).count() as f64 / right.len().max(1) as f64;
        Ok(Outcome { score, tokens: tokens.len(), ..Outcome::default() })
    }

    fn likelihood(&mut self, tokens: &[u32], cancel: &Cancel) -> Result<Outcome> {
        let method = self.method.clone();
        let mut sum = 0.0;
        for pair in tokens.windows(2) {
            anyhow::ensure!(!cancel.is_cancelled(), "stopped");
            sum += surprise(&self.step(pair[0], &method)?, pair[1]);
        }
        let count = tokens.len().saturating_sub(1);
        Ok(Outcome { score: sum / count.max(1) as f64, tokens: count, ..Outcome::default() })
    }

    fn written(
        &mut self,
        prompt: &[u32],
        writing: &Writing,
        sample: usize,
        first: &[f32],
        method: &Method,
        cancel: &Cancel,
    ) -> Result<(String, usize)> {
        let seed = writing.sampling.seed.wrapping_add(sample as u64);
        let mut sampler = Sampler::new(&Sampling { seed, ..writing.sampling.clone() })?;
        let (mut logits, mut history, mut text) = (first.to_vec(), prompt.to_vec(), String::new());
        for token in &writing.not_first {
            logits[*token as usize] = f32::NEG_INFINITY;
        }
        let config = self.model.decoder.config();
        for _ in 0..writing.max_new_tokens {
            anyhow::ensure!(!cancel.is_cancelled(), "stopped");
            let token = sampler.next(&mut logits, &history);
            if config.eos_token_ids.contains(&token) || writing.stop_ids.contains(&token) {
                break;
            }
            history.push(token);
            text = self.model.tokenizer.decode(&history[prompt.len()..])?;
            if let Some(at) = writing.stops.iter().filter_map(|stop| text.find(stop.as_str())).min() {
                text.truncate(at);
                break;
            }
            let written = history.len() - prompt.len();
            if written == writing.max_new_tokens || self.cache.len() >= config.max_position_embeddings {
                break;
            }
            logits = self.step(token, method)?;
        }
        Ok((text, history.len() - prompt.len()))
    }
}

/// The most likely token; the first in a tie.
pub fn most_likely(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// Negative log-likelihood of a token, in nats.
pub fn surprise(logits: &[f32], token: u32) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let total: f64 = logits.iter().map(|x| (f64::from(*x) - max).exp()).sum();
    max + total.ln() - logits.get(token as usize).map_or(f64::NEG_INFINITY, |x| f64::from(*x))
}

/// Rows attended to per sparse layer, on average.
fn rows_per_layer(recorder: &Recorder) -> Option<f64> {
    let recorded: &Mutex<_> = Arc::as_ref(recorder);
    let recorded = recorded.lock().unwrap_or_else(PoisonError::into_inner);
    let rows: usize = recorded.iter().map(|(_, selected)| selected.lists().map(<[u32]>::len).sum::<usize>()).sum();
    (!recorded.is_empty()).then(|| rows as f64 / recorded.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surprises_by_hand() {
        let logits = [0.0, 2.0f32.ln(), 1.0f32.ln(), f32::NEG_INFINITY];
        assert!((surprise(&logits, 1) - 2.0f64.ln()).abs() < 1e-6); // 2 of 1 + 2 + 1
        assert!((surprise(&logits, 0) - 4.0f64.ln()).abs() < 1e-6);
        assert_eq!(surprise(&logits, 3), f64::INFINITY);
        assert_eq!((most_likely(&logits), most_likely(&[1.0, 1.0])), (1, 0));
    }
}
