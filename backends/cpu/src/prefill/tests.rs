//! Against attention in double precision, one query at a time.

use super::*;
use crate::dense_decode;
use crate::isa::available;
use half::f16;
use proptest::prelude::*;

/// A layer whose last `new` rows are those of the queries, behind which the cache has room.
#[derive(Debug, Clone)]
struct Layer {
    kv_heads: usize,
    group: usize,
    dim: usize,
    len: usize,
    new: usize,
    capacity: usize,
    window: usize,
    /// 0 for none.
    softcap: f32,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

fn noise(seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
}

impl Layer {
    fn random(kv_heads: usize, group: usize, dim: usize, len: usize, new: usize, seed: u64) -> Self {
        let capacity = len + 2;
        let numbers = |n: usize, salt: u64| noise(3 * seed + salt).take(n).map(|x| 2.0 * x);
        // What a half holds, so that both formats hold the same.
        let halves = |n, salt| numbers(n, salt).map(|x| f16::from_f32(x).to_f32()).collect::<Vec<f32>>();
        let size = kv_heads * capacity * dim;
        let (mut keys, mut values) = (halves(size, 1), halves(size, 2));
        for head in 0..kv_heads {
            let unused = (head * capacity + len) * dim..(head + 1) * capacity * dim;
            keys[unused.clone()].fill(f32::NAN);
            values[unused].fill(f32::INFINITY);
        }
        let queries = numbers(new * kv_heads * group * dim, 0).collect();
        Self { kv_heads, group, dim, len, new, capacity, window: usize::MAX, softcap: 0.0, queries, keys, values }
    }

    fn query_heads(&self) -> usize {
        self.kv_heads * self.group
    }

    /// Calls `f` with the cache in the wanted format.
    fn with_cache<T>(&self, half: bool, f: impl FnOnce(&LayerCache<'_>) -> T) -> T {
        let Self { kv_heads, capacity, dim, len, window, softcap, .. } = *self;
        let f = |cache: LayerCache<'_>| f(&cache.within(window).capped(softcap));
        if half {
            let halves = |x: &[f32]| x.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>();
            let (keys, values) = (halves(&self.keys), halves(&self.values));
            f(LayerCache::new(&keys[..], &values[..], kv_heads, capacity, dim, len).expect("shapes agree"))
        } else {
            f(LayerCache::new(&self.keys[..], &self.values[..], kv_heads, capacity, dim, len).expect("shapes agree"))
        }
    }

    fn attend(&self, isa: Isa, half: bool) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.queries.len()];
        self.with_cache(half, |cache| {
            assert_eq!(new_tokens(&self.queries, self.query_heads(), cache.shape(), &out), Ok(self.new));
            attend_blocks(isa, self.new, &self.queries, self.query_heads(), cache, &mut out)
                .expect("rows are in memory");
        });
        out
    }

    /// The result, and beside each number the same sum of absolute values: what rounding errors are relative to.
    fn naive(&self) -> Vec<(f64, f64)> {
        let Self { dim, group, capacity, .. } = *self;
        let mut out = Vec::new();
        for (i, query) in self.queries.chunks_exact(dim).enumerate() {
            let (token, head) = (i / self.query_heads(), i % self.query_heads() / group);
            let seen = self.len - self.new + token + 1;
            let rows = seen.min(self.window);
            let start = (head * capacity + seen - rows) * dim;
            let keys = self.keys[start..].chunks_exact(dim).take(rows);
            let dot = |key: &[f32]| query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
            let cap = f64::from(self.softcap);
            let capped = |score: f64| if cap > 0.0 { cap * (score / cap).tanh() } else { score };
            let scores: Vec<f64> = keys.map(|key| capped(dot(key) / (dim as f64).sqrt())).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            for d in 0..dim {
                let terms = self.values[start + d..].iter().step_by(dim).zip(&scores);
                let terms = terms.map(|(v, s)| (s - max).exp() / total * f64::from(*v));
                out.push(terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs())));
            }
        }
        out
    }

    /// Every instruction set and format against [`naive`](Self::naive).
    fn check(&self) {
        let want = self.naive();
        for isa in Isa::ALL.into_iter().filter(|isa| *isa <= available()) {
            for half in [false, true] {
                for (i, (got, (want, size))) in self.attend(isa, half).iter().zip(&want).enumerate() {
                    let error = (f64::from(*got) - want).abs();
                    assert!(error <= 1e-4 * size, "{isa:?}, half {half}, number {i}: {got} for {want}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn equals_double_precision(
        kv_heads in 1usize..3,
        group in prop::sample::select(vec![1usize, 2, 3, 4, 8]),
        dim in prop_oneof![2usize..40, 40usize..=256],
        len in 1usize..200,
        share in 0.0f64..1.0,
        seed in 0u64..1000,
    ) {
        let new = 1 + (share * (len - 1) as f64) as usize;
        Layer::random(kv_heads, group, dim, len, new, seed).check();
    }
}

#[test]
fn edges_of_tiles_panels_steps_and_blocks() {
    for (group, dim, len, new) in [
        (1, 2, 1, 1),
        (8, 64, 64, 1),
        (1, 64, 65, 65),
        (3, 17, 129, 64),
        (4, 128, 193, 129),
        (1, 72, 300, 257),
        (8, 80, 333, 35),
        (5, 256, 70, 70),
        // More heads than a block has queries.
        (300, 8, 66, 3),
    ] {
        Layer::random(1, group, dim, len, new, 5).check();
    }
}

/// A window that ends within steps, panels and blocks, or that reaches beyond the first row; scores that are capped.
#[test]
fn windows_and_capped_scores() {
    for (group, dim, len, new) in
        [(1, 2, 5, 5), (8, 64, 64, 1), (1, 64, 165, 165), (3, 17, 129, 64), (4, 32, 293, 250), (1, 72, 400, 257)]
    {
        for window in [1, 2, 7, 48, 64, 65, 150, 1000] {
            for softcap in [0.0, 2.0, 50.0] {
                let layer = Layer::random(2, group, dim, len, new, 11);
                Layer { window, softcap, ..layer }.check();
            }
        }
    }
}

/// The rows before a query's window have no influence on its result, whatever they hold.
#[test]
fn rows_before_the_window_do_not_leak() {
    for (group, dim, len, new) in [(1, 20, 150, 150), (4, 64, 200, 77), (8, 33, 70, 9)] {
        let clean = Layer { window: 30, ..Layer::random(2, group, dim, len, new, 12) };
        let per_token = clean.query_heads() * dim;
        // Rows that some query's window no longer has.
        for poisoned in [0, 17, len - new, len - 31].into_iter().filter(|row| row + 30 < len) {
            let mut layer = clean.clone();
            for head in 0..2 {
                let row = (head * layer.capacity + poisoned) * dim;
                layer.keys[row..row + dim].fill(f32::NAN);
                layer.values[row..row + dim].fill(f32::INFINITY);
            }
            // The first token whose window no longer has the row.
            let free = (poisoned + 30).saturating_sub(len - new) * per_token;
            assert!(free < clean.queries.len());
            for isa in Isa::ALL.into_iter().filter(|isa| *isa <= available()) {
                for half in [false, true] {
                    let (want, got) = (clean.attend(isa, half), layer.attend(isa, half));
                    assert_eq!(want[free..], got[free..], "{isa:?} {half} {poisoned}");
                }
            }
        }
    }
}

#[test]
fn scores_that_grow_all_the_time_and_scores_far_apart() {
    let mut layer = Layer::random(2, 4, 32, 200, 90, 6);
    let (dim, capacity) = (layer.dim, layer.capacity);
    for (i, key) in layer.keys.iter_mut().enumerate() {
        let row = i / dim % capacity;
        *key = if i % dim == 0 { row as f32 * 0.25 } else { *key };
    }
    layer.queries.chunks_exact_mut(dim).for_each(|query| query[0] = 20.0);
    layer.check();
    // Each query's own row wins by hundreds: its value is the result.
    layer.queries.chunks_exact_mut(dim).for_each(|query| query[0] = 1e4);
    layer.check();
}

/// The rows behind a query's own have no influence on its result, whatever they hold.
#[test]
fn later_rows_do_not_leak() {
    for (group, dim, len, new) in [(1, 20, 150, 150), (4, 64, 200, 77), (8, 33, 70, 9)] {
        let clean = Layer::random(2, group, dim, len, new, 7);
        let per_token = clean.query_heads() * dim;
        for poisoned in [0, 1, new / 2, new - 1] {
            for (in_keys, in_values) in [
                (f32::NAN, f32::NAN),
                (f32::INFINITY, f32::INFINITY),
                (1.0, f32::NEG_INFINITY),
                (f32::NEG_INFINITY, 1.0),
            ] {
                let mut layer = clean.clone();
                for head in 0..2 {
                    let row = (head * layer.capacity + len - new + poisoned) * dim;
                    layer.keys[row..row + dim].fill(in_keys);
                    layer.values[row..row + dim].fill(in_values);
                }
                for isa in Isa::ALL.into_iter().filter(|isa| *isa <= available()) {
                    for half in [false, true] {
                        let (want, got) = (clean.attend(isa, half), layer.attend(isa, half));
                        assert_eq!(want[..poisoned * per_token], got[..poisoned * per_token], "{isa:?} {half}");
                    }
                }
            }
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let layer = Layer::random(2, 3, 40, 400, 390, 8);
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
        pool.install(|| {
            let mut out = vec![0.0; layer.queries.len()];
            layer.with_cache(true, |cache| causal_attention(&layer.queries, layer.query_heads(), cache, &mut out))?;
            Ok::<_, Error>(out)
        })
    };
    let one = on(1);
    assert!(one.is_ok());
    assert_eq!(one, on(2));
    assert_eq!(one, on(16));
}

#[test]
fn one_token_is_a_decode_step() {
    let layer = Layer::random(2, 4, 64, 100, 1, 9);
    let (mut got, mut want) = (vec![0.0; layer.queries.len()], vec![0.0; layer.queries.len()]);
    layer.with_cache(true, |cache| {
        causal_attention(&layer.queries, layer.query_heads(), cache, &mut got).expect("shapes agree");
        dense_decode(&layer.queries, cache, &mut want).expect("shapes agree");
    });
    assert_eq!(got, want);
    for (block, want) in layer.attend(detect(), true).iter().zip(want) {
        assert!((block - want).abs() < 1e-5, "{block} {want}");
    }
}

/// A decode step reads the rows of its window and nothing before, on one thread and shared out.
#[test]
fn a_decode_step_in_a_window_with_capped_scores() {
    for (len, window) in [(100, 1), (100, 33), (5000, 2500), (5000, 4999), (100, 400)] {
        let mut layer = Layer { window, softcap: 3.0, ..Layer::random(1, 4, 64, len, 1, 13) };
        let want = layer.naive();
        let before = len.saturating_sub(window) * layer.dim;
        layer.keys[..before].fill(f32::NAN);
        layer.values[..before].fill(f32::NAN);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("threads start");
        for half in [false, true] {
            let mut got = vec![0.0; layer.queries.len()];
            pool.install(|| layer.with_cache(half, |cache| dense_decode(&layer.queries, cache, &mut got)))
                .expect("fits");
            for (got, (want, size)) in got.iter().zip(&want) {
                assert!((f64::from(*got) - want).abs() <= 1e-4 * size, "{len} {window} {half}: {got} for {want}");
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let layer = Layer::random(2, 3, 8, 5, 4, 10);
    layer.with_cache(false, |cache| {
        let run = |queries: usize, heads: usize, out: usize| {
            causal_attention(&vec![0.0; queries], heads, cache, &mut vec![0.0; out])
        };
        let token = 6 * 8;
        assert_eq!(run(5 * token, 6, 5 * token), Ok(()));
        assert!(matches!(run(6 * token, 6, 6 * token), Err(Error::Range { what: "queries", .. })));
        for heads in [0, 1, 5] {
            assert!(matches!(run(token, heads, token), Err(Error::Range { what: "query_heads", .. })), "{heads}");
        }
        assert!(matches!(run(token, usize::MAX - 1, token), Err(Error::Range { what: "query_heads", .. })));
        assert_eq!(run(0, 6, 0), Err(Error::Length { what: "queries", want: token, got: 0 }));
        assert_eq!(
            run(token + 1, 6, token + 1),
            Err(Error::Length { what: "queries", want: 2 * token, got: token + 1 })
        );
        assert_eq!(run(token, 6, token - 1), Err(Error::Length { what: "out", want: token, got: token - 1 }));
    });
}
