//! A decode step of one layer.

use crate::attend::{Cache, Rows, attend_into};
use crate::combine::{Importance, combine_into};
use crate::device::Gpu;
use crate::error::{Result, ensure};
use crate::length::Length;
use crate::meet::{Layout, Mail, claim, whole};
use crate::select::best_into;
use crate::tip::{Channels, Scores, Sketch, score_into};
use cubecl::server::Handle;

/// How a step chooses tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Tokens of a list.
    pub budget: usize,
    /// Lists of tokens per KV head, each for a share of its query heads.
    pub lists: usize,
    /// Tokens that are chosen anyway: the first and the last ones.
    pub sinks: usize,
    /// The last ones, with the current token.
    pub recent: usize,
}

/// What a step writes beside its result. Steps of all layers can share it, and those of a growing context.
#[derive(Debug, Clone)]
pub struct Scratch {
    scores: Scores,
    importance: Importance,
    /// The tokens that were chosen, `[KV heads * lists, budget]`; what lies behind them was never written.
    pub positions: Handle,
    choice: Choice,
    /// The most tokens that there is room for.
    room: usize,
    /// Where cubes meet, if a step can be one launch.
    mail: Option<Mail>,
}

impl Scratch {
    /// For `query_heads` query heads over `sketches` sketches and `kv_heads` KV heads of up to `len` tokens.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if heads do not divide.
    pub fn new(
        gpu: &Gpu,
        query_heads: usize,
        sketches: usize,
        kv_heads: usize,
        len: impl Into<Length>,
        choice: Choice,
    ) -> Result<Self> {
        ensure(sketches > 0 && query_heads.is_multiple_of(sketches), "sketches", "query heads share them equally")?;
        let lists = kv_heads * choice.lists;
        ensure(lists > 0 && query_heads.is_multiple_of(lists), "lists", "query heads share them equally")?;
        let scores = Scores::empty(gpu, sketches, query_heads / sketches, len.into());
        let importance = Importance::empty(gpu, &scores, lists).guarantee(choice.sinks, choice.recent);
        let room = scores.len.most();
        // A list for each sketch, and means to choose by.
        let group = scores.group;
        let mail = Layout::new(gpu, lists, group)
            .filter(|_| lists == sketches && group > 1)
            .map(|layout| Mail::empty(gpu, layout, lists));
        // Room for every budget that a growing context may have.
        Ok(Self { scores, importance, positions: gpu.words(lists * room), choice, room, mail })
    }

    /// The same memory for a context of `len` tokens and another choice.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if it was made for fewer tokens or another number of lists.
    pub fn with(&self, len: impl Into<Length>, choice: Choice) -> Result<Self> {
        let len = len.into();
        ensure(len.most() <= self.room, "len", "the memory is for fewer tokens")?;
        ensure(choice.lists == self.choice.lists, "lists", "the memory is for another number")?;
        let scores = Scores { len: len.clone(), ..self.scores.clone() };
        let importance = Importance { len, ..self.importance.clone() }.guarantee(choice.sinks, choice.recent);
        let (positions, mail) = (self.positions.clone(), self.mail.clone());
        Ok(Self { scores, importance, positions, choice, room: self.room, mail })
    }

    /// Bytes of its memory.
    pub fn bytes(&self) -> u64 {
        let Importance { values, maxima, .. } = &self.importance;
        let handles = [&self.scores.scores, &self.scores.blocks, values, maxima, &self.positions];
        handles.into_iter().chain(self.mail.as_ref().map(|mail| &mail.words)).map(Handle::size_in_used).sum()
    }
}

/// Scores the sketch, chooses tokens and attends to them. `queries` and `out` are `[query heads, dim]`, f32.
///
/// Time: the bytes of the sketch and of the chosen rows. One launch where cubes can wait for each other
/// ([`Traits::together`](crate::Traits)), lists are those of a sketch and choose by a mean, and one thread of the process takes
/// such steps; else five.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if shapes disagree, or the budget exceeds the tokens.
pub fn step(
    gpu: &Gpu,
    queries: &Handle,
    cache: &Cache,
    sketch: &Sketch,
    channels: &Channels,
    scratch: &Scratch,
    out: &Handle,
) -> Result<()> {
    let Scratch { scores, importance, positions, choice, .. } = scratch;
    let query_heads = scores.heads;
    ensure(importance.rows == cache.heads * choice.lists, "scratch", "it was made for another number of KV heads")?;
    if let Some(mail) = scratch.mail.as_ref().filter(|_| claim(gpu)) {
        let (budget, room) = (choice.budget, scratch.room);
        let kept = whole::Kept { scores, importance, mail, room, budget, positions, out };
        if let Some(plan) = whole::plan(gpu, cache, sketch, &kept)? {
            whole::launch(gpu, &plan, queries, cache, sketch, channels, &kept);
            return Ok(());
        }
    }
    choose(gpu, queries, [cache.heads, cache.dim], sketch, channels, scratch)?;
    let rows = Rows::Chosen { positions, count: choice.budget, lists: choice.lists };
    attend_into(gpu, queries, query_heads, cache, rows, out)
}

/// The first part of [`step`]: scores the sketch and chooses tokens, which [`Scratch::positions`] then has. `of` are the KV heads and
/// their dimensions.
///
/// # Errors
/// As [`step`].
pub fn choose(
    gpu: &Gpu,
    queries: &Handle,
    of: [usize; 2],
    sketch: &Sketch,
    channels: &Channels,
    scratch: &Scratch,
) -> Result<()> {
    let (Scratch { scores, importance, positions, choice, .. }, [kv_heads, dim]) = (scratch, of);
    ensure(importance.rows == kv_heads * choice.lists, "scratch", "it was made for another number of KV heads")?;
    score_into(gpu, queries, dim, sketch, channels, scores)?;
    combine_into(gpu, scores, importance)?;
    best_into(gpu, importance, choice.budget, positions)
}
