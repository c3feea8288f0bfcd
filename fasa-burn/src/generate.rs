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

/// A text that is being written: what follows from each row of logits.
struct Writing {
    sampler: Sampler,
    /// The text, and what was written behind it.
    history: Vec<u32>,
    /// Tokens of the text.
    given: usize,
    stop: Option<StopReason>,
    steps: usize,
}

/// One text of a batch.
struct Started<'a> {
    writing: Writing,
    cache: KvCache,
    logits: Vec<f32>,
    options: &'a Options,
    prefill: Duration,
    decode: Duration,
}

impl Writing {
    fn new(text: &[u32], sampling: &Sampling) -> Result<Self> {
        let sampler = Sampler::new(sampling)?;
        Ok(Self { sampler, history: text.to_vec(), given: text.len(), stop: None, steps: 0 })
    }

    /// Draws the next token from `logits`. Returns it if it has to be read, `None` where the text ends; `room` is how many
    /// positions are left.
    fn next(
        &mut self,
        logits: &mut [f32],
        options: &Options,
        room: usize,
        listen: &mut dyn FnMut(Event) -> bool,
    ) -> Option<u32> {
        let token = self.sampler.next(logits, &self.history);
        if options.stop_ids.contains(&token) {
            self.stop = Some(StopReason::StopToken);
            return None;
        }
        self.history.push(token);
        let ends = [
            (!listen(Event::Token(token)), StopReason::Listener),
            (options.cancel.is_cancelled(), StopReason::Cancelled),
            (self.history.len() - self.given >= options.max_new_tokens, StopReason::MaxNewTokens),
            (room == 0, StopReason::Positions),
        ];
        self.stop = ends.into_iter().find(|(ends, _)| *ends).map(|(_, reason)| reason);
        if self.stop.is_some() {
            return None;
        }
        self.steps += 1;
        Some(token)
    }

    fn outcome(mut self, held_tokens: usize, prefill: Duration, decode: Duration) -> Outcome {
        let tokens = self.history.split_off(self.given);
        let stop = self.stop.unwrap_or(StopReason::MaxNewTokens);
        Outcome { prompt_tokens: self.given, held_tokens, tokens, stop, prefill, steps: self.steps, decode }
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
        let mut writing = Writing::new(text, &options.sampling)?;
        let prompt = &text[held..];
        self.check_room(prompt, cache.len(), options.max_new_tokens)?;
        let started = Instant::now();
        let mut logits = self.prefill(prompt, cache, options, listen)?;
        let prefill = started.elapsed();
        let positions = self.config().max_position_embeddings;
        let started = Instant::now();
        while let Some(token) = writing.next(&mut logits, options, positions - cache.len(), listen) {
            let row = self.forward(&[token], cache, &options.method, Logits::Last)?;
            logits = to_host(row.ok_or(Error::Cancelled)?)?;
        }
        Ok(writing.outcome(held, prefill, started.elapsed()))
    }

    /// Writes the continuations of several texts at once: each is read by itself, then every step writes a token of all
    /// that have not ended, for one pass over the weights. `listen` hears of the events of each by its number.
    ///
    /// Each has its own method, budget and sampling, and gets what [`generate`](Self::generate) gives it alone. All caches
    /// are held at once.
    ///
    /// # Errors
    /// As [`generate`](Self::generate): for a text in its place in the list, the others go on; [`Error::Device`] or
    /// [`Error::Core`] for all.
    pub fn generate_batch(
        &self,
        texts: &[(&[u32], &Options)],
        listen: &mut dyn FnMut(usize, Event) -> bool,
    ) -> Result<Vec<Result<Outcome>>> {
        let mut started: Vec<Result<Started<'_>>> = Vec::new();
        for (number, (text, options)) in texts.iter().enumerate() {
            started.push(self.start(text, options, &mut |event| listen(number, event)));
        }
        let positions = self.config().max_position_embeddings;
        loop {
            let (mut tokens, mut active) = (Vec::new(), Vec::new());
            for (number, text) in started.iter_mut().enumerate().filter_map(|(n, t)| Some((n, t.as_mut().ok()?))) {
                let room = positions - text.cache.len();
                let began = Instant::now();
                let next = match text.writing.stop {
                    None => text.writing.next(&mut text.logits, text.options, room, &mut |event| listen(number, event)),
                    Some(_) => None,
                };
                if let Some(token) = next {
                    tokens.push(token);
                    active.push((text, began));
                }
            }
            if active.is_empty() {
                break;
            }
            let methods: Vec<&Method> = active.iter().map(|(text, _)| &text.options.method).collect();
            let mut caches: Vec<&mut KvCache> = Vec::new();
            let mut rest = Vec::new();
            for (Started { cache, logits, decode, .. }, began) in active {
                caches.push(cache);
                rest.push((logits, decode, began));
            }
            let rows = to_host(self.forward_batch(&tokens, &mut caches, &methods)?)?;
            let width = rows.len() / rest.len();
            for (row, (logits, decode, began)) in rows.chunks(width).zip(rest) {
                logits.clear();
                logits.extend_from_slice(row);
                // The step's whole time, for each of its texts: so long it took to wait for the token.
                *decode += began.elapsed();
            }
        }
        Ok(started
            .into_iter()
            .map(|text| text.map(|text| text.writing.outcome(0, text.prefill, text.decode)))
            .collect())
    }

    /// Reads a text into a cache of its own.
    fn start<'a>(
        &self,
        text: &[u32],
        options: &'a Options,
        listen: &mut dyn FnMut(Event) -> bool,
    ) -> Result<Started<'a>> {
        let writing = Writing::new(text, &options.sampling)?;
        let mut cache = self.new_cache(1);
        self.check_room(text, 0, options.max_new_tokens)?;
        let began = Instant::now();
        let logits = self.prefill(text, &mut cache, options, listen)?;
        Ok(Started { writing, cache, logits, options, prefill: began.elapsed(), decode: Duration::ZERO })
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
        cache.reserve(prompt.len() + room)?;
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
