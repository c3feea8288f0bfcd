//! Random heads, and the naive ways to compute what policies compute: from the definitions, in double precision.

#![allow(dead_code)] // each test uses its own part

use fasa_core::Rows;
use proptest::prelude::*;

/// Queries of one group and keys of one KV head.
#[derive(Debug, Clone)]
pub struct Head {
    pub group: usize,
    pub dim: usize,
    pub tokens: usize,
    /// `[tokens, group, dim]`
    pub queries: Vec<f32>,
    /// `[tokens, dim]`
    pub keys: Vec<f32>,
}

impl Head {
    pub fn any(most_tokens: usize) -> impl Strategy<Value = Self> {
        (1usize..4, 1usize..7, 2usize..most_tokens).prop_flat_map(|(group, half, tokens)| {
            let dim = 2 * half;
            let numbers = |n| prop::collection::vec(-2.0f32..2.0, n);
            (numbers(tokens * group * dim), numbers(tokens * dim)).prop_map(move |(queries, keys)| Self {
                group,
                dim,
                tokens,
                queries,
                keys,
            })
        })
    }

    pub fn key(&self, t: usize) -> &[f32] {
        &self.keys[t * self.dim..(t + 1) * self.dim]
    }

    /// Query of token `t`, query head `g`.
    pub fn query(&self, t: usize, g: usize) -> &[f32] {
        &self.queries[(t * self.group + g) * self.dim..][..self.dim]
    }

    /// The group's queries of token `t`, `[G, d]`.
    pub fn group_queries(&self, t: usize) -> Rows<'_> {
        Rows::contiguous(&self.queries[t * self.group * self.dim..][..self.group * self.dim], self.dim)
            .expect("divides")
    }

    /// The queries of the tokens `from..to`, one entry per query head, `[w, d]`.
    pub fn window(&self, from: usize, to: usize) -> Vec<Rows<'_>> {
        let stride = self.group * self.dim;
        let head = |g: usize| {
            let start = (from * stride + g * self.dim).min(self.queries.len());
            Rows::strided(&self.queries[start..], to - from, self.dim, stride).expect("fits")
        };
        (0..self.group).map(head).collect()
    }

    /// The first `n` keys.
    pub fn first_keys(&self, n: usize) -> Rows<'_> {
        Rows::contiguous(&self.keys[..n * self.dim], self.dim).expect("divides")
    }

    pub fn product(&self, t: usize, g: usize, key: usize) -> f64 {
        dot(self.query(t, g), self.key(key))
    }

    /// Attention weights of token `t`, query head `g`, over the tokens `rows`; 0 for later ones.
    pub fn weights(&self, t: usize, g: usize, rows: &[u32]) -> Vec<f64> {
        let scale = 1.0 / (self.dim as f64).sqrt();
        let scores =
            rows.iter().map(|&r| if r as usize <= t { self.product(t, g, r as usize) } else { f64::NEG_INFINITY });
        softmax(&scores.collect::<Vec<_>>(), scale)
    }
}

pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

pub fn softmax(scores: &[f64], scale: f64) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| ((s - max) * scale).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / total).collect()
}

/// Mean over the rows of their softmax.
pub fn mean_softmax(rows: &[Vec<f64>], scale: f64) -> Vec<f64> {
    let mut mean = vec![0.0; rows[0].len()];
    for row in rows {
        mean.iter_mut().zip(softmax(row, scale)).for_each(|(m, w)| *m += w / rows.len() as f64);
    }
    mean
}

pub fn is_ascending(set: &[u32]) -> bool {
    set.windows(2).all(|w| w[0] < w[1])
}

pub fn contains_all(larger: &[u32], smaller: &[u32]) -> bool {
    smaller.iter().all(|t| larger.contains(t))
}

/// Whether `kept` holds the forced entries of `scores`, and of the others the best, up to rounding.
pub fn is_best(kept: &[u32], scores: &[f64], forced: impl Fn(usize) -> bool) -> bool {
    let is_kept = |i: usize| kept.contains(&(i as u32));
    let free = |i: &usize| !forced(*i);
    let worst = (0..scores.len()).filter(free).filter(|i| is_kept(*i)).map(|i| scores[i]).fold(f64::INFINITY, f64::min);
    let best =
        (0..scores.len()).filter(free).filter(|i| !is_kept(*i)).map(|i| scores[i]).fold(f64::NEG_INFINITY, f64::max);
    (0..scores.len()).all(|i| !forced(i) || is_kept(i)) && worst >= best - 1e-5 * (1.0 + best.abs())
}
