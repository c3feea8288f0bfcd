//! Causal attention of many new tokens at once: what reads a prompt.
//!
//! The new tokens' queries of one KV head, those of its whole group, are cut into blocks; each block passes over the
//! cache once, in steps of 64 rows with a running maximum (online softmax), so no matrix of scores exists beyond one tile.
//! Blocks are independent: they are what threads share.

pub(crate) mod block;
mod step;
mod tile;

use crate::attention::dense_from;
use crate::isa::{Isa, detect};
use crate::layer::LayerCache;
use crate::source::{Failure, Shape, Source};
use block::{Queries, Scratch};
use fasa_core::{Error, Result};
use rayon::prelude::*;

/// Queries per block: many make the reading and converting of a row cheap beside its use, and still fit in a second cache
/// of 512 KiB or more.
const ROWS: usize = 256;

/// Fewest queries per block, where there are too few blocks for all threads.
const FEWEST_ROWS: usize = 32;

/// Blocks per thread that even out their cost, which grows along the context.
const BLOCKS_PER_THREAD: usize = 4;

/// Attention of new tokens, each over all rows up to its own.
///
/// `queries` and `out` are `[new, query_heads, dim]`, token by token; query head h reads KV head h / G, with
/// G = `query_heads` / KV heads. The cache already holds the new tokens: its last `new` rows are theirs, and query i
/// attends to the rows `0 ..= cache.len() - new + i`, or the last of them where the layer has a window, with scores
/// divided by `√dim`. A row that a query does not attend to
/// has no influence on its result, not even as NaN. From two tokens on, the same bytes come out for any number of threads.
///
/// Costs `4 · dim` floating-point operations per query and row attended to; fewer than 16 queries of a KV head cost as much
/// as 16, and one token alone is handed to [`dense_decode`](crate::dense_decode). Each thread needs about `2.5 · dim + 11` KiB
/// of scratch (331 KiB for `dim` = 128), whatever the length; more only for groups of more than 256 query heads. Threads
/// share KV heads and blocks of 32 to 256 queries, never the rows of one block.
///
/// # Errors
/// [`Error::Range`] if `query_heads` is no multiple of the KV heads, or there are more new tokens than rows in the cache;
/// [`Error::Length`] if `queries` is empty or ends within a token, or `out` has another length.
pub fn causal_attention(queries: &[f32], query_heads: usize, cache: &LayerCache<'_>, out: &mut [f32]) -> Result<()> {
    causal_from(queries, query_heads, cache, out)
}

/// [`causal_attention`] over rows that may lie elsewhere.
pub(crate) fn causal_from<C: Source>(
    queries: &[f32],
    query_heads: usize,
    cache: &C,
    out: &mut [f32],
) -> Result<(), C::Error> {
    let new = new_tokens(queries, query_heads, cache.shape(), out)?;
    if new == 1 {
        return dense_from(queries, cache, out);
    }
    attend_blocks(detect(), new, queries, query_heads, cache, out)
}

/// How many tokens `queries` holds, if everything fits together.
fn new_tokens(queries: &[f32], query_heads: usize, cache: Shape, out: &[f32]) -> Result<usize> {
    if query_heads == 0 || !query_heads.is_multiple_of(cache.kv_heads) {
        return Err(Error::Range { what: "query_heads", problem: "they are a multiple of the cache's KV heads" });
    }
    let per_token = query_heads
        .checked_mul(cache.dim)
        .ok_or(Error::Range { what: "query_heads", problem: "they exceed the address space" })?;
    if queries.is_empty() || !queries.len().is_multiple_of(per_token) {
        let want = queries.len().div_ceil(per_token).max(1).saturating_mul(per_token);
        return Err(Error::Length { what: "queries", want, got: queries.len() });
    }
    if out.len() != queries.len() {
        return Err(Error::Length { what: "out", want: queries.len(), got: out.len() });
    }
    let new = queries.len() / per_token;
    if new > cache.len {
        return Err(Error::Range {
            what: "queries",
            problem: "the cache must hold the rows of all new tokens already",
        });
    }
    Ok(new)
}

/// Gives the blocks of all heads out to the threads.
fn attend_blocks<C: Source>(
    isa: Isa,
    new: usize,
    queries: &[f32],
    query_heads: usize,
    cache: &C,
    out: &mut [f32],
) -> Result<(), C::Error> {
    let Shape { dim, kv_heads, len, .. } = cache.shape();
    let failure = Failure::default();
    let (group, per_token) = (query_heads / kv_heads, query_heads * dim);
    let tokens = tokens_per_block(new, group, kv_heads);
    let seen = len - new;
    // The last blocks have the most rows to read, so they go first.
    let blocks = out.chunks_mut(tokens * per_token).enumerate().rev().flat_map(|(block, out)| {
        let mut heads: Vec<Vec<&mut [f32]>> = Vec::new();
        heads.resize_with(kv_heads, || Vec::with_capacity(tokens));
        for token in out.chunks_exact_mut(per_token) {
            heads.iter_mut().zip(token.chunks_exact_mut(group * dim)).for_each(|(head, rows)| head.push(rows));
        }
        heads.into_iter().enumerate().map(move |(head, out)| (block * tokens, head, out))
    });
    blocks.par_bridge().for_each_init(
        || Scratch::new(dim, tokens * group),
        |scratch, (first, head, mut out)| {
            let rows = &queries[first * per_token + head * group * dim..];
            let block = Queries { rows, per_token, group, dim };
            failure.record(cache.attend(isa, block, head, seen + first, &mut out, scratch));
        },
    );
    failure.into_result()
}

/// New tokens per block.
fn tokens_per_block(new: usize, group: usize, kv_heads: usize) -> usize {
    let wanted = BLOCKS_PER_THREAD * rayon::current_num_threads();
    let mut rows = ROWS;
    while rows > FEWEST_ROWS && (new * group).div_ceil(rows) * kv_heads < wanted {
        rows /= 2;
    }
    (rows / group).clamp(1, new)
}

#[cfg(test)]
mod tests;
