//! One layer of a tier, for attention.

use super::tile::Tile;
use super::{Error, Format, Result, Tier, lock};
use crate::attention::{Which, accumulate, dense_from};
use crate::fasa::fasa_from;
use crate::isa::Isa;
use crate::layer::LayerSketch;
use crate::partial::Partial;
use crate::prefill::block::{self, Queries, Rows, Scratch, Span};
use crate::prefill::causal_from;
use crate::selected::Selected;
use crate::simd::{Element, Padded};
use crate::source::{Shape, Source};
use fasa_core::policy::Plan;
use half::f16;
use std::sync::atomic::Ordering;

/// Rows of one layer of a [`Tier`].
///
/// Its methods are [`dense_decode`](crate::dense_decode), [`causal_attention`](crate::causal_attention) and
/// [`fasa_decode`](crate::fasa_decode), bit for bit.
#[derive(Debug, Clone, Copy)]
pub struct TierLayer<'a> {
    tier: &'a Tier,
    layer: usize,
    len: usize,
    window: usize,
    softcap: f32,
}

impl<'a> TierLayer<'a> {
    pub(super) fn new(tier: &'a Tier, layer: usize, len: usize) -> Self {
        Self { tier, layer, len, window: usize::MAX, softcap: 0.0 }
    }

    /// As [`LayerCache::within`](crate::LayerCache::within).
    #[must_use]
    pub fn within(self, tokens: usize) -> Self {
        Self { window: tokens.max(1), ..self }
    }

    /// As [`LayerCache::capped`](crate::LayerCache::capped).
    #[must_use]
    pub fn capped(self, cap: f32) -> Self {
        Self { softcap: cap.max(0.0), ..self }
    }

    /// One token attends to all rows: `queries` and `out` are `[query_heads, dim]`. Reads every row once per KV head.
    ///
    /// # Errors
    /// [`Error::Core`] if the shapes disagree, else the file's.
    pub fn dense_decode(&self, queries: &[f32], out: &mut [f32]) -> Result<()> {
        dense_from(queries, self, out)
    }

    /// The last rows' own tokens attend: `queries` and `out` are `[new, query_heads, dim]`. Reads every row once per KV head
    /// and block of up to 256 queries.
    ///
    /// # Errors
    /// As [`dense_decode`](Self::dense_decode).
    pub fn causal_attention(&self, queries: &[f32], query_heads: usize, out: &mut [f32]) -> Result<()> {
        causal_from(queries, query_heads, self, out)
    }

    /// One token attends to the `budget` rows that the sketch ranks best, and those alone are read.
    ///
    /// # Errors
    /// As [`fasa_decode`](crate::fasa_decode), and the file's.
    pub fn fasa_decode(
        &self,
        queries: &[f32],
        sketch: &LayerSketch<'_>,
        plan: &Plan<'_>,
        budget: usize,
        out: &mut [f32],
    ) -> Result<Selected> {
        fasa_from(self.layer, queries, self, sketch, plan, budget, out)
    }

    fn stream<E: Element + bytemuck::Pod>(&self, kv_head: usize) -> Stream<'_, E> {
        Stream { layer: self, kv_head, tile: Tile::default(), failure: None, element: std::marker::PhantomData }
    }
}

impl Source for TierLayer<'_> {
    type Error = Error;

    fn shape(&self) -> Shape {
        let shape = &self.tier.shape;
        let (kv_heads, dim) = (shape.kv_heads, shape.dim);
        Shape { kv_heads, dim, len: self.len, window: self.window, softcap: self.softcap }
    }

    fn accumulate(&self, queries: &Padded, kv_head: usize, which: Which<'_>, partial: &mut Partial) -> Result<()> {
        let Self { tier, layer, softcap, .. } = *self;
        let shape = &tier.shape;
        match which {
            Which::Span(mut from, to) => {
                let mut tile = Tile::default();
                while from < to {
                    let count = tile.load(tier, layer, kv_head, from, to - from)?;
                    accumulate(queries, &tile.cache(shape)?.capped(softcap), 0, Which::Span(0, count), partial);
                    from += count;
                }
            }
            Which::Chosen(positions) => {
                let mut recent = lock(tier.recent(layer, kv_head));
                let mut row = Vec::new();
                for positions in positions.chunks(recent.batch(positions.len(), shape)) {
                    let read = |position: u32, row: &mut [u8]| tier.file.read(layer, kv_head, position as usize, row);
                    let announce = |position: u32| tier.file.announce(layer, kv_head, position as usize);
                    let fetched = recent.fetch(positions, announce, read, &mut row)?;
                    let counters = &tier.counters;
                    counters.fetched.fetch_add(fetched as u64, Ordering::Relaxed);
                    counters.at_hand.fetch_add((positions.len() - fetched) as u64, Ordering::Relaxed);
                    counters.read.fetch_add((fetched * shape.row()) as u64, Ordering::Relaxed);
                    let (cache, slots) = recent.rows(shape)?;
                    accumulate(queries, &cache.capped(softcap), 0, Which::Chosen(slots), partial);
                }
            }
        }
        Ok(())
    }

    fn attend(
        &self,
        isa: Isa,
        queries: Queries<'_>,
        kv_head: usize,
        first: usize,
        out: &mut [&mut [f32]],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let span = Span::new(first, self.shape());
        let failure = match self.tier.shape.format {
            Format::F32 => {
                let mut rows = self.stream::<f32>(kv_head);
                block::attend(isa, queries, &mut rows, span, out, scratch);
                rows.failure
            }
            Format::F16 => {
                let mut rows = self.stream::<f16>(kv_head);
                block::attend(isa, queries, &mut rows, span, out, scratch);
                rows.failure
            }
        };
        failure.map_or(Ok(()), Err)
    }
}

/// Rows of one head from the file, in order.
struct Stream<'a, E> {
    layer: &'a TierLayer<'a>,
    kv_head: usize,
    tile: Tile,
    failure: Option<Error>,
    element: std::marker::PhantomData<E>,
}

impl<E: Element + bytemuck::Pod> Rows<E> for Stream<'_, E> {
    fn rows(&mut self, from: usize, count: usize) -> Option<(&[E], &[E])> {
        let TierLayer { tier, layer, len, .. } = *self.layer;
        if !self.tile.holds(from, count)
            && let Err(error) = self.tile.load(tier, layer, self.kv_head, from, len - from)
        {
            self.failure = Some(error);
            return None;
        }
        Some(self.tile.rows(&tier.shape, from, count))
    }
}
