//! Prompt in, tokens out as they come.

use crate::cache::KvCache;
use crate::config::RopeScaling;
use crate::error::{Error, Result};
use crate::method::Method;
use crate::model::{Decoder, Logits, PREFILL_CHUNK, to_host};
use crate::sampling::{Sampler, Sampling};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Asks running work to stop, from any thread.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks for a stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Takes it back, for what runs next.
    pub fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether a stop was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// How to continue a prompt.
#[derive(Debug, Clone)]
pub struct Options {
    /// How decode steps attend.
    pub method: Method,
    /// At most this many tokens are written.
    pub max_new_tokens: usize,
    /// How the next token is drawn.
    pub sampling: Sampling,
    /// Tokens that end the text; they are not part of it.
    pub stop_ids: Vec<u32>,
    /// Stops early.
    pub cancel: Cancel,
}

/// What happens while generating.
#[derive(Debug, Clone, Copy)]
pub enum Event {
    /// Tokens of the prompt read so far, and how many there are.
    Prefill(usize, usize),
    /// A new token.
    Token(u32),
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// The model wrote a stop token.
    StopToken,
    /// The listener had enough.
    Listener,
    /// `max_new_tokens` were written.
    MaxNewTokens,
    /// The model has no position left.
    Positions,
    /// Stopped from outside.
    Cancelled,
}

/// How it went.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that the cache held already.
    pub held_tokens: usize,
    /// The tokens written.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub stop: StopReason,
    /// Time to read the prompt.
    pub prefill: Duration,
    /// Decode steps taken: one per written token but the first, which the prefill gives.
    pub steps: usize,
    /// Time of those steps.
    pub decode: Duration,
}

impl Outcome {
    /// Decode steps per second; `None` without a step.
    pub fn tokens_per_second(&self) -> Option<f64> {
        (self.steps > 0).then(|| self.steps as f64 / self.decode.as_secs_f64().max(1e-9))
    }
}

impl Decoder {
    /// Reads `prompt` behind what the cache holds and writes the continuation. `listen` hears of every event and stops the
    /// text by returning `false`.
    ///
    /// # Errors
    /// [`Error::Prompt`] for an empty prompt or one that leaves no position for a new token, [`Error::Request`] for bad
    /// sampling parameters or no new token asked for, [`Error::Cancelled`] if stopped during the prefill.
    pub fn generate(
        &self,
        prompt: &[u32],
        cache: &mut KvCache,
        options: &Options,
        listen: &mut dyn FnMut(Event) -> bool,
    ) -> Result<Outcome> {
        self.write(prompt, 0, cache, options, listen)
    }

    /// [`generate`](Self::generate) where the last `held` tokens in the cache are the first ones of `text`: they are not
    /// read again, but count for the penalty of repetitions.
    pub(crate) fn write(
        &self,
        text: &[u32],
        held: usize,
        cache: &mut KvCache,
        options: &Options,
        listen: &mut dyn FnMut(Event) -> bool,
    ) -> Result<Outcome> {
        let mut sampler = Sampler::new(&options.sampling)?;
        let prompt = &text[held..];
        self.check_room(prompt, cache.len(), options.max_new_tokens)?;
        let started = Instant::now();
        let mut logits = self.prefill(prompt, cache, options, listen)?;
        let prefill = started.elapsed();

        let mut history = text.to_vec();
        let (mut stop, mut steps) = (StopReason::MaxNewTokens, 0);
        let started = Instant::now();
        for written in 0..options.max_new_tokens {
            let token = sampler.next(&mut logits, &history);
            if options.stop_ids.contains(&token) {
                stop = StopReason::StopToken;
                break;
            }
            history.push(token);
            if !listen(Event::Token(token)) {
                stop = StopReason::Listener;
                break;
            }
            if options.cancel.is_cancelled() {
                stop = StopReason::Cancelled;
                break;
            }
            if written + 1 == options.max_new_tokens {
                break;
            }
            if cache.len() >= self.config().max_position_embeddings {
                stop = StopReason::Positions;
                break;
            }
            let row = self.forward(&[token], cache, &options.method, Logits::Last)?;
            logits = to_host(row.ok_or(Error::Cancelled)?)?;
            steps += 1;
        }
        let decode = started.elapsed();
        let tokens = history.split_off(text.len());
        Ok(Outcome { prompt_tokens: text.len(), held_tokens: held, tokens, stop, prefill, steps, decode })
    }

    pub(crate) fn check_room(&self, prompt: &[u32], held: usize, max_new_tokens: usize) -> Result<()> {
        if prompt.is_empty() {
            return Err(Error::Prompt { problem: "is empty".into(), mend: "give it at least one word".into() });
        }
        if max_new_tokens == 0 {
            return Err(Error::request("max_new_tokens", "is 0", "ask for at least 1"));
        }
        let (needed, positions) = (held + prompt.len(), self.config().max_position_embeddings);
        if needed >= positions {
            return Err(Error::Prompt {
                problem: format!("fills {needed} positions, the model has {positions} and writes into the next one"),
                mend: "shorten the prompt, or use a model with more positions".into(),
            });
        }
        Ok(())
    }

    /// Reads the prompt chunk by chunk, so that progress shows and a stop is heard. Returns the last token's logits.
    pub(crate) fn prefill(
        &self,
        prompt: &[u32],
        cache: &mut KvCache,
        options: &Options,
        listen: &mut dyn FnMut(Event) -> bool,
    ) -> Result<Vec<f32>> {
        let room = options.max_new_tokens.min(self.config().max_position_embeddings - cache.len() - prompt.len());
        cache.reserve(prompt.len() + room);
        // LongRoPE has one set of angles for all of a long context, so it must know of its end before it begins.
        let long = matches!(self.config().rope.scaling, RopeScaling::Long { .. });
        cache.expect(cache.len() + prompt.len() + if long { room } else { 0 });
        let mut done = 0;
        let mut logits = None;
        for chunk in prompt.chunks(PREFILL_CHUNK) {
            if options.cancel.is_cancelled() || !listen(Event::Prefill(done, prompt.len())) {
                return Err(Error::Cancelled);
            }
            done += chunk.len();
            let wanted = if done == prompt.len() { Logits::Last } else { Logits::None };
            // A chunk of one token would otherwise count as a decode step and be read sparsely.
            logits = self.forward(chunk, cache, &Method::Dense, wanted)?;
        }
        listen(Event::Prefill(done, prompt.len()));
        to_host(logits.ok_or(Error::Cancelled)?)
    }
}
