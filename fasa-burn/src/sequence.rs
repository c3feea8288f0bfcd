//! A text that is being read and written: its tokens, and the cache that holds them.

use crate::cache::KvCache;
use crate::config::RopeScaling;
use crate::error::Result;
use crate::generate::{Event, Options, Outcome};
use crate::model::Decoder;

/// A cache, and the tokens whose keys and values it holds.
#[derive(Debug)]
pub struct Sequence {
    pub(crate) cache: KvCache,
    /// As many as the cache holds.
    pub(crate) tokens: Vec<u32>,
}

impl Sequence {
    /// An empty text with room for `capacity` tokens; it grows when they are used up.
    pub fn new(decoder: &Decoder, capacity: usize) -> Self {
        Self { cache: decoder.new_cache(capacity), tokens: Vec::new() }
    }

    /// The tokens held.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The cache.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// Forgets all tokens from position `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.cache.truncate(len);
    }

    /// How many tokens of `text` need not be read again: those that it begins with and that are held, but never all of
    /// them, since the last one gives the first new token.
    pub fn held(&self, text: &[u32]) -> usize {
        let common = self.tokens.iter().zip(text).take_while(|(held, wanted)| held == wanted).count();
        common.min(text.len().saturating_sub(1))
    }
}

impl Decoder {
    /// Writes the continuation of `text`. What the sequence holds of its beginning stays, what it holds beyond that is
    /// forgotten, and only the rest is read. Afterwards the sequence holds the text and what was written, but for the last
    /// token, which has not been read yet.
    ///
    /// Tokens that a sparse step wrote stay as that step computed them.
    ///
    /// # Errors
    /// As [`Decoder::generate`]; the sequence then holds the part of `text` that was read.
    pub fn follow(
        &self,
        sequence: &mut Sequence,
        text: &[u32],
        options: &Options,
        listen: &mut dyn FnMut(Event) -> bool,
    ) -> Result<Outcome> {
        sequence.truncate(self.reusable(sequence, text, options));
        let Sequence { cache, tokens } = sequence;
        let outcome = self.write(text, tokens.len(), cache, options, listen);
        let written = outcome.as_ref().map_or(&[][..], |outcome| outcome.tokens.as_slice());
        let known = text.len() + written.len();
        cache.truncate(known);
        tokens.clear();
        tokens.extend(text.iter().chain(written).take(cache.len()));
        outcome
    }

    /// How many tokens of `text` need not be read again; none where the text outgrows the angles that those held were turned
    /// by, or where angles follow its length.
    fn reusable(&self, sequence: &Sequence, text: &[u32], options: &Options) -> usize {
        let context = text.len().saturating_add(options.max_new_tokens).min(self.config().max_position_embeddings);
        let follows =
            matches!(self.config().rope.scaling, RopeScaling::Dynamic { original, .. } if text.len() > original);
        if follows || self.outgrows(&sequence.cache, context) { 0 } else { sequence.held(text) }
    }

    /// Reads `text` into the sequence and writes nothing.
    ///
    /// # Errors
    /// As [`Decoder::follow`].
    pub fn read(
        &self,
        sequence: &mut Sequence,
        text: &[u32],
        options: &Options,
        listen: &mut dyn FnMut(Event) -> bool,
    ) -> Result<()> {
        sequence.truncate(self.reusable(sequence, text, options));
        let Sequence { cache, tokens } = sequence;
        self.check_room(&text[tokens.len()..], cache.len(), 1)?;
        let read = self.prefill(&text[tokens.len()..], cache, options, listen);
        cache.truncate(text.len());
        tokens.clear();
        tokens.extend_from_slice(&text[..cache.len()]);
        read.map(drop)
    }
}
