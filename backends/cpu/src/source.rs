//! Where the rows of a layer's cache lie: in memory, or elsewhere.
//!
//! Kernels ask a [`Source`] for attention over some rows of a head. What is computed, and in which order, does not depend
//! on where they lie: the same bytes come out.

use crate::attention::{Which, accumulate};
use crate::isa::Isa;
use crate::layer::{Head, LayerCache};
use crate::partial::Partial;
use crate::prefill::block::{self, InMemory, Queries, Scratch, Span};
use crate::simd::Padded;
use fasa_core::{Error, Result};
use std::sync::{Mutex, PoisonError};

/// Heads, rows and options of a layer's cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub kv_heads: usize,
    /// Numbers per row.
    pub dim: usize,
    /// Rows in use.
    pub len: usize,
    /// Rows that a token attends to at most.
    pub window: usize,
    /// What scores are capped at; 0 for not at all.
    pub softcap: f32,
}

impl Shape {
    /// Query heads per KV head for `queries` numbers of queries.
    pub(crate) fn group(&self, queries: &[f32], out: &[f32]) -> Result<usize> {
        let per_group = self.kv_heads * self.dim;
        if queries.is_empty() || !queries.len().is_multiple_of(per_group) {
            let want = queries.len().div_ceil(per_group).max(1) * per_group;
            return Err(Error::Length { what: "queries", want, got: queries.len() });
        }
        if out.len() != queries.len() {
            return Err(Error::Length { what: "out", want: queries.len(), got: out.len() });
        }
        Ok(queries.len() / per_group)
    }
}

/// Keys and values of one layer.
pub(crate) trait Source: Sync {
    /// Why rows cannot be had.
    type Error: From<Error> + Send;

    fn shape(&self) -> Shape;

    /// Adds the attention of `queries` (from [`scaled`](crate::attention::scaled)) over the rows `which` of one KV head to
    /// `partial`.
    fn accumulate(
        &self,
        queries: &Padded,
        kv_head: usize,
        which: Which<'_>,
        partial: &mut Partial,
    ) -> Result<(), Self::Error>;

    /// Causal attention of a block of queries whose first token is row `first`.
    fn attend(
        &self,
        isa: Isa,
        queries: Queries<'_>,
        kv_head: usize,
        first: usize,
        out: &mut [&mut [f32]],
        scratch: &mut Scratch,
    ) -> Result<(), Self::Error>;
}

impl Source for LayerCache<'_> {
    type Error = Error;

    fn shape(&self) -> Shape {
        let (kv_heads, dim, len) = (self.kv_heads(), self.dim(), self.len());
        Shape { kv_heads, dim, len, window: self.window(), softcap: self.softcap() }
    }

    fn accumulate(&self, queries: &Padded, kv_head: usize, which: Which<'_>, partial: &mut Partial) -> Result<()> {
        accumulate(queries, self, kv_head, which, partial);
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
        let (span, dim) = (Span::new(first, self.shape()), self.dim());
        match self.head(kv_head) {
            Head::F32 { keys, values } => {
                block::attend(isa, queries, &mut InMemory { keys, values, dim }, span, out, scratch)
            }
            Head::F16 { keys, values } => {
                block::attend(isa, queries, &mut InMemory { keys, values, dim }, span, out, scratch)
            }
        }
        Ok(())
    }
}

/// The first failure of work that threads share.
#[derive(Debug)]
pub(crate) struct Failure<E>(Mutex<Option<E>>);

impl<E> Default for Failure<E> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<E> Failure<E> {
    /// The value, or `None` and the failure is kept.
    pub(crate) fn record<T>(&self, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                None
            }
        }
    }

    pub(crate) fn into_result(self) -> Result<(), E> {
        match self.0.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}
