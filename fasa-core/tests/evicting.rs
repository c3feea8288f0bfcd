//! Methods that evict, against naive versions of themselves, over the life of a cache head.

mod cases;

use cases::{Head, contains_all, dot, is_ascending, is_best, softmax};
use fasa_core::policy::{
    Attention, EvictingPolicy, H2o, Memory, Pass, Phase, RKv, ResidentArray, SnapKv, Streaming, Tova,
};
use fasa_core::select::scratch_len;
use fasa_core::{Error, Guarantees, Rows};
use proptest::prelude::*;

const MOST: usize = 96;

/// A cache head under a policy: rows, the book about them, and what was shown.
struct Cache<'h> {
    head: &'h Head,
    book: Box<ResidentArray<MOST>>,
    /// Keys of the rows that remain, compacted as an engine would.
    keys: Vec<f32>,
    seen: usize,
    bring_weights: bool,
}

impl<'h> Cache<'h> {
    fn new(head: &'h Head, bring_weights: bool) -> Self {
        Self { head, book: Box::default(), keys: vec![], seen: 0, bring_weights }
    }

    fn positions(&mut self) -> Vec<u32> {
        self.book.view().positions().collect()
    }

    /// Appends tokens up to `to` and lets the policy evict. Returns the rows before, all as positions.
    fn pass(&mut self, policy: &mut dyn EvictingPolicy, phase: Phase, to: usize, budget: usize) -> Vec<u32> {
        let (head, group) = (self.head, self.head.group);
        let mut rows = self.book.view();
        rows.append(to - self.seen).expect("room");
        self.keys.extend_from_slice(&head.keys[self.seen * head.dim..to * head.dim]);
        let n = rows.len();
        let before: Vec<u32> = rows.positions().collect();
        let window = policy.window(phase).min(n);
        let queries = head.window(to - window, to);
        let table: Vec<f32> = (0..group)
            .flat_map(|g| (to - window..to).map(move |t| (g, t)))
            .flat_map(|(g, t)| head.weights(t, g, &before))
            .map(|w| w as f32)
            .collect();
        let weights: Vec<Rows<'_>> = (0..group)
            .map(|g| Rows::strided(&table[(g * window * n).min(table.len())..], window, n, n).expect("fits"))
            .collect();
        let attention = match (window, self.bring_weights) {
            (0, _) => Attention::None,
            (_, true) => Attention::Weights(&weights),
            (_, false) => Attention::Queries(&queries),
        };
        let pass = Pass::new(phase, Rows::contiguous(&self.keys, head.dim).expect("divides"), attention).at(1, 2);
        let (mut scores, mut entries) = (vec![f32::NAN; Memory::scores_len(2, n)], vec![0; scratch_len(budget.min(n))]);
        let mut memory = Memory { scores: &mut scores, entries: &mut entries };
        let kept = policy.evict(&pass, budget, &mut rows, &mut memory).expect("fits");
        assert_eq!(kept, rows.len());
        rows.compact(&mut self.keys, head.dim).expect("rows");
        self.keys.truncate(kept * head.dim);
        self.seen = to;
        before
    }
}

fn policies(guarantees: Guarantees) -> Vec<Box<dyn EvictingPolicy>> {
    vec![
        Box::new(SnapKv::new(5, 3).expect("valid").with_guarantees(guarantees)),
        Box::new(H2o::default().with_guarantees(guarantees)),
        Box::new(H2o::default().with_window(4).with_guarantees(guarantees)),
        Box::new(Tova::default().with_guarantees(guarantees)),
        Box::new(RKv::default().with_observed(3).with_buffer(6).with_guarantees(guarantees)),
        Box::new(Streaming { sinks: guarantees.sinks }),
    ]
}

fn guarantees() -> impl Strategy<Value = Guarantees> {
    (0u32..5, 0u32..6).prop_map(|(sinks, recent)| Guarantees { sinks, recent })
}

/// Sums of weights over the tokens `tokens` and all query heads, one per row.
fn votes(head: &Head, tokens: std::ops::Range<usize>, rows: &[u32]) -> Vec<f64> {
    let mut votes = vec![0.0; rows.len()];
    for (t, g) in tokens.flat_map(|t| (0..head.group).map(move |g| (t, g))) {
        votes.iter_mut().zip(head.weights(t, g, rows)).for_each(|(vote, w)| *vote += w);
    }
    votes
}

fn pooled(values: &[f64], width: usize) -> Vec<f64> {
    let reach = width as isize / 2;
    let at = |i: isize| usize::try_from(i).ok().and_then(|i| values.get(i)).copied().unwrap_or(f64::NEG_INFINITY);
    (0..values.len() as isize).map(|i| (i - reach..=i + reach).map(at).fold(f64::NEG_INFINITY, f64::max)).collect()
}

/// Whether the rows `kept` of `before` are the guaranteed and the best ones.
fn kept_the_best(before: &[u32], kept: &[u32], scores: &[f64], guarantees: Guarantees, budget: usize) -> bool {
    let rows: Vec<u32> = (0..before.len() as u32).filter(|r| kept.contains(&before[*r as usize])).collect();
    rows.len() == kept.len() && is_best(&rows, scores, |r| guarantees.covers(r, before.len(), budget))
}

fn at_least(guarantees: Guarantees, recent: usize) -> Guarantees {
    Guarantees { recent: guarantees.recent.max(recent as u32), ..guarantees }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_book_is_sound(
        head in Head::any(MOST), guarantees in guarantees(), budget in 1usize..60, prompt in 1usize..60, weights in any::<bool>(),
        draft in 1usize..3,
    ) {
        for policy in &mut policies(guarantees) {
            let mut cache = Cache::new(&head, weights);
            let mut to = prompt.min(head.tokens);
            let mut phase = Phase::Prefill;
            loop {
                let before = cache.pass(&mut **policy, phase, to, budget);
                let kept = cache.positions();
                prop_assert!(is_ascending(&kept) && contains_all(&before, &kept), "{}", policy.name());
                prop_assert_eq!(*kept.last().expect("never empty") as usize, to - 1, "{}", policy.name());
                let most = if phase == Phase::Prefill { budget } else { budget.saturating_add(policy.slack()) };
                prop_assert!(kept.len() <= most && kept.len() >= budget.min(before.len()), "{}", policy.name());
                if policy.name() != "streaming" {
                    // A sink dropped from a full budget is gone for good, so count from what there was.
                    for row in (0..before.len()).filter(|r| guarantees.covers(*r, before.len(), budget)) {
                        prop_assert!(kept.contains(&before[row]), "{} guarantees row {}", policy.name(), row);
                    }
                }
                // The rows moved with their positions.
                for (key, position) in cache.keys.chunks_exact(head.dim).zip(&kept) {
                    prop_assert_eq!(key, head.key(*position as usize));
                }
                if to == head.tokens {
                    break;
                }
                (to, phase) = ((to + draft).min(head.tokens), Phase::Decode);
            }
        }
    }

    #[test]
    fn a_larger_budget_keeps_a_superset_of_a_prompt(head in Head::any(MOST), guarantees in guarantees(), budget in 1usize..60) {
        for policy in &mut policies(guarantees) {
            let mut kept = |budget| {
                let mut cache = Cache::new(&head, false);
                cache.pass(&mut **policy, Phase::Prefill, head.tokens, budget);
                cache.positions()
            };
            let (small, large) = (kept(budget), kept(budget + 1));
            prop_assert!(contains_all(&large, &small), "{}", policy.name());
        }
    }

    #[test]
    fn snapkv_keeps_what_the_window_votes_for(head in Head::any(MOST), guarantees in guarantees(), budget in 1usize..60) {
        let n = head.tokens;
        let mut cache = Cache::new(&head, false);
        let mut policy = SnapKv::new(5, 3).expect("valid").with_guarantees(guarantees);
        let before = cache.pass(&mut policy, Phase::Prefill, n, budget);
        let prefix = n.saturating_sub(5);
        let mut scores = pooled(&votes(&head, n - 5.min(n)..n, &before)[..prefix], 3);
        scores.resize(n, 0.0);
        prop_assert!(kept_the_best(&before, &cache.positions(), &scores, at_least(guarantees, 5), budget));
    }

    #[test]
    fn h2o_keeps_the_heavy_hitters(
        head in Head::any(MOST), guarantees in guarantees(), budget in 1usize..30, prompt in 2usize..40, part in 1usize..30,
    ) {
        let mut cache = Cache::new(&head, false);
        let mut policy = H2o::default().with_guarantees(guarantees);
        let mut heavy = vec![0.0; head.tokens];
        let prompt = prompt.min(head.tokens);
        let mut seen = 0;
        while seen < head.tokens {
            // The prompt comes in parts, the rest token by token; only the end of the prompt and decode steps evict.
            let (phase, to) = if seen < prompt { (Phase::Prefill, (seen + part).min(prompt)) } else { (Phase::Decode, seen + 1) };
            let budget = if to < prompt { usize::MAX } else { budget };
            let before = cache.pass(&mut policy, phase, to, budget);
            for (position, vote) in before.iter().zip(votes(&head, seen..to, &before)) {
                heavy[*position as usize] += vote;
            }
            seen = to;
            if before.len() > budget {
                let scores: Vec<f64> = before.iter().map(|p| heavy[*p as usize]).collect();
                let guarantees = at_least(guarantees, budget - budget / 2);
                prop_assert!(kept_the_best(&before, &cache.positions(), &scores, guarantees, budget));
            }
        }
    }

    #[test]
    fn tova_drops_what_the_newest_looks_at_least(
        head in Head::any(MOST), guarantees in guarantees(), budget in 1usize..30, prompt in 1usize..40,
    ) {
        let mut cache = Cache::new(&head, false);
        let mut policy = Tova::default().with_guarantees(guarantees);
        for to in prompt.min(head.tokens)..=head.tokens {
            let before = cache.pass(&mut policy, Phase::Decode, to, budget);
            let scores = votes(&head, to - 1..to, &before);
            prop_assert!(kept_the_best(&before, &cache.positions(), &scores, guarantees, budget));
        }
    }

    #[test]
    fn rkv_mixes_importance_and_redundancy(
        head in Head::any(60), guarantees in guarantees(), budget in 1usize..30, lambda in 0.0f32..1.0,
        copies in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
    ) {
        let (mut head, n) = (head.clone(), head.tokens);
        for copy in copies {
            let (from, to) = (copy.index(n), (copy.index(n) * 7 + 3) % n);
            head.keys.copy_within(from * head.dim..(from + 1) * head.dim, to * head.dim);
        }
        let head = &head;
        let mut cache = Cache::new(head, false);
        let mut policy = RKv::default().with_lambda(lambda).expect("valid").with_observed(4).with_guarantees(guarantees);
        let before = cache.pass(&mut policy, Phase::Prefill, n, budget);
        let (prefix, tokens) = (n.saturating_sub(4), 4.min(n));
        let mut importance = vec![0.0; prefix];
        for t in n - tokens..n {
            for (r, sum) in importance.iter_mut().enumerate() {
                let of = |g| head.weights(t, g, &before)[r] / head.weights(t, g, &before)[..prefix].iter().sum::<f64>();
                *sum += (0..head.group).map(of).fold(0.0, f64::max) / tokens as f64;
            }
        }
        let importance = pooled(&importance, 7);
        let norm = |i: usize| dot(head.key(i), head.key(i)).sqrt();
        let mut similar = vec![vec![0.0; n]; n];
        for (i, row) in similar.iter_mut().enumerate() {
            for (j, cosine) in row.iter_mut().enumerate().filter(|(j, _)| *j != i) {
                *cosine = dot(head.key(i), head.key(j)) / (norm(i) * norm(j));
            }
            if let Some(newest) = (0..n).rev().find(|j| row[*j] > 0.5) {
                row[newest] = 0.0;
            }
        }
        // A cosine this close to the threshold may fall on either side of it.
        let clear = |i: usize, j: usize| i == j || (dot(head.key(i), head.key(j)) / (norm(i) * norm(j)) - 0.5).abs() > 1e-5;
        prop_assume!((0..n).all(|i| norm(i) > 1e-3 && (0..n).all(|j| clear(i, j))));
        let means: Vec<f64> = (0..n).map(|j| (0..n).map(|i| similar[i][j]).sum::<f64>() / n as f64).collect();
        let redundancy = softmax(&means, 1.0);
        let mut scores: Vec<f64> = (0..prefix)
            .map(|r| f64::from(lambda) * importance[r] - (1.0 - f64::from(lambda)) * redundancy[r])
            .collect();
        scores.resize(n, 0.0);
        prop_assert!(kept_the_best(&before, &cache.positions(), &scores, at_least(guarantees, 4), budget));
    }
}

#[test]
fn rkv_evicts_when_its_buffer_is_full() {
    let head = Head {
        group: 1,
        dim: 2,
        tokens: 40,
        queries: vec![1.0; 80],
        keys: (0..80).map(|i| (i % 7) as f32 - 3.0).collect(),
    };
    let mut policy = RKv::default().with_observed(2).with_buffer(5);
    let mut cache = Cache::new(&head, false);
    cache.pass(&mut policy, Phase::Prefill, 20, 8);
    let lengths: Vec<usize> = (21..=32)
        .map(|to| {
            cache.pass(&mut policy, Phase::Decode, to, 8);
            cache.positions().len()
        })
        .collect();
    assert_eq!(lengths, [9, 10, 11, 12, 8, 9, 10, 11, 12, 8, 9, 10]);
}

#[test]
fn of_three_copies_the_oldest_goes() {
    // Rows 0, 2 and 3 are one key, nothing attends to any; row 1 differs. One of the four has to go.
    let keys = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0];
    let queries = [0.0, 0.0];
    let heads = [Rows::contiguous(&queries, 2).expect("divides")];
    let mut book = ResidentArray::<5>::new();
    let mut rows = book.view();
    rows.append(5).expect("room");
    let pass = Pass::new(Phase::Prefill, Rows::contiguous(&keys, 2).expect("divides"), Attention::Queries(&heads));
    let mut memory = Memory { scores: &mut [0.0; 15], entries: &mut [0; 64] };
    RKv::default().with_observed(1).evict(&pass, 4, &mut rows, &mut memory).expect("fits");
    assert!(rows.positions().eq([1, 2, 3, 4]));
}

#[test]
fn what_is_missing_or_wrong_is_said_and_nothing_is_lost() {
    let numbers = [1.0; 64];
    let rows_of = |n: usize, dim| Rows::contiguous(&numbers[..n * dim], dim).expect("divides");
    let mut book = ResidentArray::<8>::new();
    let mut rows = book.view();
    rows.append(6).expect("room");
    let keys = rows_of(6, 4);
    for policy in policies(Guarantees::CURRENT).iter_mut().filter(|p| p.window(Phase::Prefill) > 0) {
        let mut evict = |pass: Pass<'_>, budget, scores: usize| {
            let mut numbers = [0.0; 18];
            let mut memory = Memory { scores: &mut numbers[..scores], entries: &mut [0; 64] };
            policy.evict(&pass, budget, &mut rows, &mut memory)
        };
        let bare = Pass::new(Phase::Prefill, keys, Attention::None);
        assert_eq!(evict(bare, 2, 18), Err(Error::Missing { what: "attention" }));
        let (one, wide) = ([rows_of(1, 4)], [rows_of(1, 5)]);
        let queries = Pass::new(Phase::Prefill, keys, Attention::Queries(&one));
        assert!(matches!(evict(queries, 0, 18), Err(Error::Range { .. })));
        assert!(matches!(evict(queries, 2, 17), Err(Error::Capacity { .. })));
        assert!(evict(Pass::new(Phase::Prefill, rows_of(5, 4), Attention::Queries(&one)), 2, 18).is_err());
        assert!(evict(Pass::new(Phase::Prefill, keys, Attention::Queries(&wide)), 2, 18).is_err());
        assert!(evict(Pass::new(Phase::Prefill, keys, Attention::Weights(&one)), 2, 18).is_err());
        let (many, uneven) = ([rows_of(7, 4)], [rows_of(1, 4), rows_of(2, 4)]);
        assert!(evict(Pass::new(Phase::Prefill, keys, Attention::Queries(&many)), 2, 18).is_err());
        assert!(evict(Pass::new(Phase::Prefill, keys, Attention::Queries(&uneven)), 2, 18).is_err());
        assert!(rows.positions().eq(0..6), "{} lost a row", policy.name());
    }
}
