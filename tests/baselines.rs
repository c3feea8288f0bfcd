//! The other methods against their definitions: index sets and attention computed elsewhere.
//!
//! `FASA_VECTORS=dir` reads other files of the same form.

mod fixture;

use fasa_core::policy::quest::{PAGE, page_scores};
use fasa_core::policy::{
    Attention, CachePolicy, CacheShape, EvictingPolicy, H2o, Memory, Pass, Phase, Quest, ResidentArray, Selection,
    SnapKv, Sparq, Step, Streaming,
};
use fasa_core::select::{scratch_len, top_n};
use fasa_core::{Rows, Scope};
use fixture::Fixture;

/// Most tokens that a file may have.
const MOST_TOKENS: usize = 1 << 14;

/// One file, unpacked.
struct Case {
    file: Fixture,
    query_heads: usize,
    kv_heads: usize,
    dim: usize,
    tokens: usize,
    budget: usize,
    window: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case {
    fn all() -> Vec<Self> {
        let named = |f: &Fixture| f.has("quest");
        Fixture::all("FASA_VECTORS", "vectors").into_iter().filter(named).map(Self::unpack).collect()
    }

    fn unpack(file: Fixture) -> Self {
        Self {
            query_heads: file.number("query_heads"),
            kv_heads: file.number("kv_heads"),
            dim: file.number("head_dim"),
            tokens: file.number("tokens"),
            budget: file.number("budget"),
            window: file.shape("q_window")[0],
            q: file.f32("q_window"),
            k: file.f32("k"),
            v: file.f32("v"),
            file,
        }
    }

    fn kv_head(&self, head: usize) -> usize {
        head * self.kv_heads / self.query_heads
    }

    /// The keys or values that `head` reads.
    fn rows<'a>(&self, data: &'a [f32], head: usize) -> Rows<'a> {
        let stride = self.kv_heads * self.dim;
        Rows::strided(&data[self.kv_head(head) * self.dim..], self.tokens, self.dim, stride).expect("fits")
    }

    /// The queries of the window, the deciding one last.
    fn window(&self, head: usize) -> Rows<'_> {
        Rows::strided(&self.q[head * self.dim..], self.window, self.dim, self.query_heads * self.dim).expect("fits")
    }

    fn query(&self, head: usize) -> &[f32] {
        self.window(head).row(self.window - 1)
    }

    /// Row `head` of a table of sets, without padding. Sets have no order.
    fn set(&self, tensor: &str, head: usize) -> Vec<u32> {
        let width = self.file.shape(tensor)[1];
        let row = &self.file.i64(tensor)[head * width..(head + 1) * width];
        let mut set: Vec<u32> = row.iter().filter_map(|t| u32::try_from(*t).ok()).collect();
        set.sort_unstable();
        set
    }

    /// What an evicting policy leaves of the prompt, each query head on its own as in published code.
    fn evict(&self, policy: &mut dyn EvictingPolicy, head: usize) -> Vec<u32> {
        assert!(policy.window(Phase::Prefill) >= self.window, "{} sees the file's window", policy.name());
        let mut book = Box::new(ResidentArray::<MOST_TOKENS>::new());
        let mut rows = book.view();
        rows.append(self.tokens).expect("room");
        let queries = [self.window(head)];
        let pass = Pass::new(Phase::Prefill, self.rows(&self.k, head), Attention::Queries(&queries));
        let (mut scores, mut entries) =
            (vec![0.0; Memory::scores_len(2, self.tokens)], vec![0; scratch_len(self.budget)]);
        let mut memory = Memory { scores: &mut scores, entries: &mut entries };
        policy.evict(&pass, self.budget, &mut rows, &mut memory).expect("fits");
        rows.positions().collect()
    }

    fn step<'a>(&'a self, head: usize) -> Step<'a> {
        let queries = Rows::contiguous(self.query(head), self.dim).expect("one");
        Step { layer: 0, kv_head: self.kv_head(head), queries, keys: self.rows(&self.k, head), sketches: &[] }
    }

    fn select(&self, policy: &mut dyn CachePolicy, head: usize) -> Vec<u32> {
        let (mut positions, mut lengths) = (vec![0; self.tokens], [0]);
        let mut selection = Selection::new(&mut positions, &mut lengths, self.tokens).expect("one set");
        let (mut scores, mut entries) =
            (vec![0.0; Memory::scores_len(1, self.tokens)], vec![0; scratch_len(self.budget)]);
        let mut memory = Memory { scores: &mut scores, entries: &mut entries };
        policy.select(&self.step(head), self.budget, &mut memory, &mut selection).expect("fits");
        selection.set(0).to_vec()
    }
}

/// Every file and query head.
fn heads(check: impl Fn(&Case, usize)) {
    let cases = Case::all();
    for case in &cases {
        (0..case.query_heads).for_each(|head| check(case, head));
    }
}

fn assert_near(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= 1e-5, "{what} [{i}]: {g}, reference {w}");
    }
}

#[test]
fn window_attention() {
    heads(|case, head| {
        let queries = [case.window(head)];
        let pass = Pass::new(Phase::Prefill, case.rows(&case.k, head), Attention::Queries(&queries));
        let (want, mut got) = (case.file.f32("window_attention"), vec![0.0; case.tokens]);
        for j in 0..case.window {
            pass.weights(0, j, &mut got).expect("fits");
            let at = (head * case.window + j) * case.tokens;
            assert_near(&format!("{} head {head} token {j}", case.file.name), &got, &want[at..at + case.tokens]);
        }
    });
}

#[test]
fn snapkv() {
    heads(|case, head| {
        let got = case.evict(&mut SnapKv::default(), head);
        assert_eq!(got, case.set("snapkv", head), "{} head {head}", case.file.name);
    });
}

#[test]
fn h2o() {
    heads(|case, head| {
        let got = case.evict(&mut H2o::default(), head);
        assert_eq!(got, case.set("h2o", head), "{} head {head}", case.file.name);
    });
}

#[test]
fn streaming_selects_and_evicts_the_same() {
    heads(|case, head| {
        let want = case.file.u32("stream");
        assert_eq!(case.select(&mut Streaming::default(), head), want, "{}", case.file.name);
        let mut book = Box::new(ResidentArray::<MOST_TOKENS>::new());
        let mut rows = book.view();
        rows.append(case.tokens).expect("room");
        let pass = Pass::new(Phase::Prefill, case.rows(&case.k, head), Attention::None);
        let mut memory = Memory { scores: &mut [], entries: &mut [] };
        Streaming::default().evict(&pass, case.budget, &mut rows, &mut memory).expect("fits");
        assert!(rows.positions().eq(want), "{}", case.file.name);
    });
}

/// The publication's evaluation forces no token, not even the current one: pages are compared by their scores, and the
/// policy, which does force it and stays within its budget, where that makes no difference.
#[test]
fn quest() {
    heads(|case, head| {
        let want = case.set("quest", head);
        let pages = case.tokens.div_ceil(PAGE);
        let keys = case.rows(&case.k, head);
        let mut bounds = Vec::new();
        for page in 0..pages {
            let rows = (page * PAGE..case.tokens.min((page + 1) * PAGE)).map(|t| keys.row(t));
            let fold = |f: fn(f32, f32) -> f32| {
                rows.clone().map(<[f32]>::to_vec).reduce(|a, b| a.iter().zip(&b).map(|(a, b)| f(*a, *b)).collect())
            };
            bounds.extend(fold(f32::min).expect("a page has tokens"));
            bounds.extend(fold(f32::max).expect("a page has tokens"));
        }
        let mut scores = vec![0.0; pages];
        let bounds = Rows::contiguous(&bounds, case.dim).expect("divides");
        page_scores(case.query(head), bounds, &mut scores).expect("shapes");
        let count = (case.budget / PAGE).max(3).min(pages);
        let (mut entries, mut best) = (vec![0; scratch_len(count)], vec![0; count]);
        top_n(&scores, count, &mut entries, &mut best).expect("fits");
        let tokens = best.iter().flat_map(|p| p * PAGE as u32..(p + 1) * PAGE as u32);
        let got: Vec<u32> = tokens.filter(|t| (*t as usize) < case.tokens).collect();
        assert_eq!(got, want, "{} head {head}", case.file.name);

        let shape = CacheShape {
            layers: 1,
            kv_heads: case.kv_heads,
            head_dim: case.dim,
            tokens: case.tokens.next_multiple_of(PAGE),
        };
        let (mut bounds, mut filled) = (vec![0.0; Quest::bounds_len(shape)], vec![0; Quest::filled_len(shape)]);
        let mut policy = Quest::new(shape, &mut bounds[..], &mut filled[..]).expect("sizes");
        let selected = case.select(&mut policy, head);
        let current = case.tokens as u32 - 1;
        if want.contains(&current) && want.len() <= case.budget {
            assert_eq!(selected, want, "{} head {head}", case.file.name);
        } else {
            assert!(selected.contains(&current) && selected.len() <= case.budget);
            assert!(selected.iter().all(|t| *t == current || want.contains(t)), "{} head {head}", case.file.name);
        }
    });
}

/// As for Quest, the current token is not forced in these sets.
#[test]
fn sparq() {
    heads(|case, head| {
        let (keys, values) = (case.rows(&case.k, head), case.rows(&case.v, head));
        let kept = case.budget.min(case.tokens);
        let (mut scores, mut entries, mut set) = (vec![0.0; case.tokens], vec![0; scratch_len(kept)], vec![0; kept]);
        let sparq = Sparq::default();
        sparq.estimate(case.query(head), keys, &mut scores).expect("shapes");
        top_n(&scores, kept, &mut entries, &mut set).expect("fits");
        assert_eq!(set, case.set("sparq", head), "{} head {head}", case.file.name);

        let mut mean = vec![0.0; case.dim];
        for (t, value) in values.iter().enumerate() {
            fasa_core::policy::sparq::update_mean(&mut mean, value, t + 1).expect("shapes");
        }
        let mut out = vec![0.0; case.dim];
        sparq.attend(case.query(head), keys, values, &mean, &set, &mut scores, &mut out).expect("shapes");
        let want = &case.file.f32("sparq_attention")[head * case.dim..(head + 1) * case.dim];
        assert_near(&format!("{} head {head}", case.file.name), &out, want);

        assert_eq!(sparq, Sparq::new(fasa_core::config::ChunkCount::Share(4), Scope::QueryHead));
    });
}
