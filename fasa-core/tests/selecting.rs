//! Methods that select, against naive versions of themselves: what they score, and which sets follow.

mod cases;

use cases::{Head, contains_all, is_ascending, is_best, mean_softmax, softmax};
use fasa_core::budget::TopP;
use fasa_core::config::ChunkCount;
use fasa_core::importance::Importance;
use fasa_core::policy::quest::PAGE;
use fasa_core::policy::{
    CachePolicy, CacheShape, Full, Memory, MemoryArray, Oracle, Quest, Random, Ranked, Selection, Sparq, Step,
    Streaming, select_fixed,
};
use fasa_core::select::scratch_len;
use fasa_core::{Guarantees, Rows, Scope};
use proptest::prelude::*;

type OwnedQuest = Quest<Vec<f32>, Vec<u32>>;

fn quest(head: &Head, scope: Scope, guarantees: Guarantees) -> OwnedQuest {
    let shape = CacheShape { layers: 2, kv_heads: 3, head_dim: head.dim, tokens: head.tokens };
    let (bounds, filled) = (vec![0.0; Quest::bounds_len(shape)], vec![9; Quest::filled_len(shape)]);
    Quest::new(shape, bounds, filled).expect("sizes").with_scope(scope).with_guarantees(guarantees)
}

/// The decode step of token `n - 1`.
fn step(head: &Head, n: usize) -> Step<'_> {
    let (queries, keys) = (head.group_queries(n - 1), head.first_keys(n));
    Step { layer: 1, kv_head: 2, queries, keys, sketches: &[] }
}

fn select(policy: &mut dyn CachePolicy, step: &Step<'_>, budget: usize) -> Vec<Vec<u32>> {
    let n = step.keys.len();
    let sets = policy.scope().rows(step.queries.len(), 1);
    let (mut positions, mut lengths) = (vec![0; sets * n], vec![0; sets]);
    let mut selection = Selection::new(&mut positions, &mut lengths, n).expect("sizes");
    let (mut scores, mut entries) = (vec![f32::NAN; Memory::scores_len(sets, n)], vec![0; scratch_len(budget.min(n))]);
    policy
        .select(step, budget, &mut Memory { scores: &mut scores, entries: &mut entries }, &mut selection)
        .expect("fits");
    (0..sets).map(|s| selection.set(s).to_vec()).collect()
}

fn scores(scorer: &mut dyn Importance, step: &Step<'_>) -> Vec<Vec<f32>> {
    let n = step.keys.len();
    let rows = scorer.scope().rows(step.queries.len(), 1);
    let (mut scores, mut scratch) = (vec![f32::NAN; rows * n], vec![f32::NAN; n]);
    scorer.importance(step, &mut scratch, &mut scores).expect("fits");
    scores.chunks_exact(n).map(<[f32]>::to_vec).collect()
}

/// One row per query head, or the group's mean of their softmax.
fn combined(head: &Head, scope: Scope, rows: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    match scope {
        Scope::KvHead if rows.len() > 1 => vec![mean_softmax(&rows, 1.0 / (head.dim as f64).sqrt())],
        _ => rows,
    }
}

fn assert_near(got: &[Vec<f32>], want: &[Vec<f64>]) -> Result<(), TestCaseError> {
    prop_assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().flatten().zip(want.iter().flatten()) {
        prop_assert!((f64::from(*g) - w).abs() < 2e-5 * (1.0 + w.abs()), "{g} {w}");
    }
    Ok(())
}

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![Just(Scope::KvHead), Just(Scope::QueryHead)]
}

fn guarantees() -> impl Strategy<Value = Guarantees> {
    (0u32..6, 0u32..9).prop_map(|(sinks, recent)| Guarantees { sinks, recent })
}

/// `Σ_c max(q_c min_c, q_c max_c)` of every page.
fn page_bounds(head: &Head, n: usize, g: usize) -> Vec<f64> {
    let bound = |page: &[usize]| -> f64 {
        let of = |c: usize, f: fn(f32, f32) -> f32| page.iter().map(|t| head.key(*t)[c]).reduce(f).expect("a token");
        let query = head.query(n - 1, g);
        (0..head.dim).map(|c| f64::from(query[c] * of(c, f32::min)).max(f64::from(query[c] * of(c, f32::max)))).sum()
    };
    (0..n).collect::<Vec<_>>().chunks(PAGE).map(bound).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_oracle_scores_whole_products(head in Head::any(60), scope in scope()) {
        let rows = (0..head.group).map(|g| (0..head.tokens).map(|t| head.product(head.tokens - 1, g, t)).collect());
        let want = combined(&head, scope, rows.collect());
        assert_near(&scores(&mut Oracle { scope }, &step(&head, head.tokens)), &want)?;
    }

    #[test]
    fn sparq_scores_the_largest_components(head in Head::any(60), scope in scope(), share in 1u16..5) {
        let n = head.tokens;
        let count = (head.dim / share as usize).max(1);
        let row = |g: usize| -> Vec<f64> {
            let q = head.query(n - 1, g);
            let mut order: Vec<usize> = (0..head.dim).collect();
            order.sort_by(|a, b| q[*b].abs().total_cmp(&q[*a].abs()).then(a.cmp(b)));
            let magnitude = |c: &[usize]| c.iter().map(|c| f64::from(q[*c].abs())).sum::<f64>();
            // softmax(q_r.k / √(d part)) is softmax(S/√d) of this.
            let part = magnitude(&order[..count]) / magnitude(&order);
            let score = |t| order[..count].iter().map(|c| f64::from(q[*c]) * f64::from(head.key(t)[*c])).sum::<f64>();
            (0..n).map(|t| score(t) / part.sqrt()).collect()
        };
        let want = combined(&head, scope, (0..head.group).map(row).collect());
        let mut sparq = Sparq::new(ChunkCount::Share(share), scope);
        assert_near(&scores(&mut sparq, &step(&head, n)), &want)?;

        // The correction: with every token read it is plain attention, with one read the mean stands for the others.
        let (keys, query) = (head.first_keys(n), head.query(n - 1, 0));
        let mean = vec![0.5; head.dim];
        let (mut scratch, mut out) = (vec![0.0; n], vec![0.0; head.dim]);
        let everything: Vec<u32> = (0..n as u32).collect();
        let alpha = sparq.attend(query, keys, keys, &mean, &everything, &mut scratch, &mut out).expect("shapes");
        prop_assert!((alpha - 1.0).abs() < 1e-5);
        let alpha = sparq.attend(query, keys, keys, &mean, &[1], &mut scratch, &mut out).expect("shapes");
        prop_assert!((f64::from(alpha) - softmax(&row(0), 1.0 / (head.dim as f64).sqrt())[1]).abs() < 1e-5);
        for (out, value) in out.iter().zip(head.key(1)) {
            prop_assert!((out - (alpha * value + (1.0 - alpha) * 0.5)).abs() < 1e-5);
        }
    }

    #[test]
    fn random_numbers_ignore_the_head(head in Head::any(60), scope in scope(), seed in any::<u64>()) {
        let step = step(&head, head.tokens);
        let rows = scores(&mut Random::new(seed, scope), &step);
        prop_assert_eq!(rows.len(), scope.rows(head.group, 1));
        prop_assert!(rows.iter().flatten().all(|s| (0.0..1.0).contains(s)));
        let zeros = Head { keys: vec![0.0; head.keys.len()], ..head.clone() };
        prop_assert_eq!(rows, scores(&mut Random::new(seed, scope), &Step { keys: zeros.first_keys(head.tokens), ..step }));
    }

    #[test]
    fn ranked_keeps_the_guaranteed_and_the_best(
        head in Head::any(60), scope in scope(), guarantees in guarantees(), budget in 1usize..70,
    ) {
        let (n, step) = (head.tokens, step(&head, head.tokens));
        let rows = scores(&mut Oracle { scope }, &step);
        let sets = select(&mut Ranked::new("oracle", Oracle { scope }, guarantees), &step, budget);
        for (row, set) in rows.iter().zip(&sets) {
            prop_assert_eq!(set.len(), budget.min(n));
            let wide: Vec<f64> = row.iter().map(|s| f64::from(*s)).collect();
            prop_assert!(is_best(set, &wide, |t| guarantees.covers(t, n, budget)));
        }
    }

    #[test]
    fn quest_keeps_the_best_pages(
        head in Head::any(120), scope in scope(), guarantees in guarantees(), budget in 1usize..130,
    ) {
        let n = head.tokens;
        let sets = select(&mut quest(&head, scope, guarantees), &step(&head, n), budget);
        let bounds = combined(&head, scope, (0..head.group).map(|g| page_bounds(&head, n, g)).collect());
        for (bounds, set) in bounds.iter().zip(&sets) {
            if budget >= n {
                prop_assert_eq!(set.len(), n);
                continue;
            }
            let count = (budget / PAGE).max(3).min(bounds.len());
            let forced = |t: usize| guarantees.covers(t, n, budget);
            let outside: Vec<u32> = set.iter().copied().filter(|t| !forced(*t as usize)).collect();
            // Pages are whole, but for the last of the context and the worst kept.
            let mut pages: Vec<u32> = outside.iter().map(|t| t / PAGE as u32).collect();
            pages.dedup();
            prop_assert!(pages.len() <= count && set.len() <= budget);
            let missing = |page: u32| {
                let tokens = page * PAGE as u32..n.min((page as usize + 1) * PAGE) as u32;
                tokens.into_iter().any(|t| !set.contains(&t))
            };
            let cut: Vec<u32> = pages.iter().copied().filter(|p| missing(*p)).collect();
            prop_assert!(cut.len() <= 1, "{cut:?}");
            for page in &cut {
                prop_assert_eq!(set.len(), budget);
                prop_assert!(pages.iter().all(|p| bounds[*p as usize] >= bounds[*page as usize] - 1e-4));
            }
            // And no page left out beats one that is in.
            let worst = pages.iter().map(|p| bounds[*p as usize]).fold(f64::INFINITY, f64::min);
            let left = (0..bounds.len()).filter(|p| missing(*p as u32) && !pages.contains(&(*p as u32)));
            prop_assert!(left.map(|p| bounds[p]).all(|b| b <= worst + 1e-4));
        }
    }

    #[test]
    fn quest_remembers_what_it_saw(head in Head::any(90), budget in 1usize..50, cuts in prop::collection::vec(1usize..90, 1..8)) {
        let mut growing = quest(&head, Scope::QueryHead, Guarantees::CURRENT);
        for cut in cuts {
            let n = cut.min(head.tokens);
            growing.rewind(n);
            let fresh = select(&mut quest(&head, Scope::QueryHead, Guarantees::CURRENT), &step(&head, n), budget);
            prop_assert_eq!(select(&mut growing, &step(&head, n), budget), fresh, "{} tokens", n);
        }
        // Another sequence.
        let other = Head { keys: head.keys.iter().map(|k| -k).collect(), ..head.clone() };
        growing.rewind(0);
        let fresh = select(&mut quest(&other, Scope::QueryHead, Guarantees::CURRENT), &step(&other, head.tokens), budget);
        prop_assert_eq!(select(&mut growing, &step(&other, head.tokens), budget), fresh);
    }

    #[test]
    fn every_set_is_sound(
        head in Head::any(100), scope in scope(), guarantees in guarantees(), budget in 1usize..110, seed in any::<u64>(),
        p in 0.05f32..1.0,
    ) {
        let (n, step) = (head.tokens, step(&head, head.tokens));
        let top_p = TopP::new(p, 1, u32::MAX).expect("valid");
        let mut quest = quest(&head, scope, guarantees);
        let mut policies: Vec<Box<dyn CachePolicy + '_>> = vec![
            Box::new(Ranked::new("oracle", Oracle { scope }, guarantees)),
            Box::new(Ranked::new("adaptive", Oracle { scope }, guarantees).with_top_p(top_p)),
            Box::new(Ranked::new("sparq", Sparq::new(ChunkCount::Share(4), scope), guarantees)),
            Box::new(Ranked::new("random", Random::new(seed, scope), guarantees)),
        ];
        let ranked = policies.len();
        policies.push(Box::new(Streaming { sinks: guarantees.sinks }));
        for (i, policy) in policies.iter_mut().map(|p| &mut **p).chain([&mut quest as &mut dyn CachePolicy]).enumerate() {
            let (sets, larger) = (select(policy, &step, budget), select(policy, &step, budget + 1));
            prop_assert_eq!(sets.len(), policy.scope().rows(head.group, 1));
            for (set, larger) in sets.iter().zip(&larger) {
                prop_assert!(is_ascending(set) && !set.is_empty() && set.len() <= budget, "{}", policy.name());
                prop_assert_eq!(*set.last().expect("not empty") as usize, n - 1, "{}", policy.name());
                prop_assert!(contains_all(larger, set), "{} grows with its budget", policy.name());
                for t in (0..n).filter(|t| i != ranked && guarantees.covers(*t, n, budget)) {
                    prop_assert!(set.contains(&(t as u32)), "{} guarantees {}", policy.name(), t);
                }
            }
        }
        let everything: Vec<u32> = (0..n as u32).collect();
        prop_assert_eq!(select(&mut Full, &step, budget), vec![everything.clone()]);
        prop_assert_eq!(select(&mut *policies[0], &step, n), vec![everything; scope.rows(head.group, 1)]);
    }

    #[test]
    fn top_p_reaches_its_share_of_the_attention(head in Head::any(80), scope in scope(), p in 0.05f32..0.95) {
        let (n, step) = (head.tokens, step(&head, head.tokens));
        let top_p = TopP::new(p, 1, u32::MAX).expect("valid");
        let sets = select(&mut Ranked::new("adaptive", Oracle { scope }, Guarantees::CURRENT).with_top_p(top_p), &step, n);
        let scale = 1.0 / (head.dim as f64).sqrt();
        let products = |g| (0..n).map(|t| head.product(n - 1, g, t)).collect::<Vec<f64>>();
        let rows: Vec<Vec<f64>> = (0..head.group).map(products).collect();
        let weights = match scope {
            Scope::KvHead => vec![mean_softmax(&rows, scale)],
            Scope::QueryHead => rows.iter().map(|row| softmax(row, scale)).collect(),
        };
        for (weights, set) in weights.iter().zip(&sets) {
            let mass = |set: &[u32]| set.iter().map(|t| weights[*t as usize]).sum::<f64>();
            prop_assert!(mass(set) >= f64::from(p) - 1e-5);
            // Without its weakest token, the current one aside, it would not.
            let weakest = set[..set.len() - 1].iter().min_by(|a, b| weights[**a as usize].total_cmp(&weights[**b as usize]));
            if let Some(weakest) = weakest {
                prop_assert!(mass(set) - weights[*weakest as usize] <= f64::from(p) + 1e-5);
            }
        }
    }

    #[test]
    fn fixed_memory_changes_nothing(head in Head::any(50), budget in 1usize..20) {
        let step = step(&head, head.tokens);
        let mut policy = Ranked::new("oracle", Oracle { scope: Scope::KvHead }, Guarantees::CURRENT);
        let mut memory = MemoryArray::<{ Memory::scores_len(1, 50) }, 64>::new();
        let fixed = select_fixed::<16>(&mut policy, &step, budget, &mut memory.view()).expect("fits");
        prop_assert_eq!(&fixed[..], &select(&mut policy, &step, budget.min(16))[0][..]);
        let mut per_query = Ranked::new("oracle", Oracle { scope: Scope::QueryHead }, Guarantees::CURRENT);
        let several = select_fixed::<16>(&mut per_query, &step, budget, &mut memory.view());
        prop_assert_eq!(several.is_err(), head.group > 1);
    }
}

#[test]
fn quest_refuses_what_does_not_fit() {
    let shape = CacheShape { layers: 1, kv_heads: 1, head_dim: 4, tokens: 20 };
    assert_eq!((Quest::bounds_len(shape), Quest::filled_len(shape)), (2 * 2 * 4, 1));
    assert!(Quest::new(shape, vec![0.0; 15], vec![0; 1]).is_err());
    assert!(Quest::new(shape, vec![0.0; 16], vec![0; 2]).is_err());
    assert!(Quest::new(CacheShape { layers: 0, ..shape }, vec![], vec![]).is_err());
    let mut quest = Quest::new(shape, vec![0.0; 16], vec![0; 1]).expect("sizes");
    let numbers = [1.0; 21 * 4];
    let rows = |n: usize, dim| Rows::contiguous(&numbers[..n * dim], dim).expect("divides");
    let good = Step { layer: 0, kv_head: 0, queries: rows(1, 4), keys: rows(20, 4), sketches: &[] };
    let mut refuses = |step: &Step<'_>| {
        let (mut positions, mut lengths) = ([0; 8], [0]);
        let mut selection = Selection::new(&mut positions, &mut lengths, 8).expect("sizes");
        let mut memory = Memory { scores: &mut [0.0; 42], entries: &mut [0; 64] };
        quest.select(step, 8, &mut memory, &mut selection).is_err()
    };
    assert!(!refuses(&good));
    assert!(refuses(&Step { layer: 1, ..good }) && refuses(&Step { kv_head: 1, ..good }));
    assert!(refuses(&Step { keys: rows(21, 4), ..good }));
    assert!(refuses(&Step { queries: rows(1, 2), keys: rows(8, 2), ..good }));
}

/// FASA's scorer, with and without a sketch.
#[cfg(feature = "alloc")]
mod fasa {
    use super::cases::dot;
    use super::*;
    use fasa_core::config::FasaConfig;
    use fasa_core::criterion::{CriterionKind, Margin, Observation, Tally};
    use fasa_core::policy::{Fasa, OwnedPlan};
    use fasa_core::profile::{Model, Profile};
    use fasa_core::sketch::{Precision, SketchRows, quantize_row};
    use fasa_core::{Pairing, Result};

    fn profile(head: &Head, scope: Scope) -> Result<Profile> {
        let model = Model {
            architecture: "llama",
            layers: 2,
            query_heads: 3 * head.group as u32,
            kv_heads: 3,
            head_dim: head.dim as u32,
            rotary_dim: head.dim as u32,
            rope_theta: 1e4,
            pairing: Pairing::HalfSplit,
            weights: 0,
            unrotated_layers: &[],
        };
        let chunks = model.chunks()?;
        let heads = 6 * head.group;
        let mut tally = Tally::new(CriterionKind::Margin, heads, chunks.len());
        for i in 0..heads {
            let n = head.tokens - i % head.tokens.min(3);
            let query = head.query(n - 1, i % head.group);
            tally.observe(&Margin, i, &Observation { query, keys: head.first_keys(n), chunks: &chunks })?;
        }
        let (scale, centre) = (vec![0.7; 6 * head.dim], vec![0.1; 6 * head.dim]);
        Profile::new(model, CriterionKind::Margin, 0, scope, &tally, &scale, &centre, "noise")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn scores_the_dominant_chunks(
            head in Head::any(40), chunk_scope in scope(), token_scope in scope(), share in 1u16..4,
        ) {
            let profile = profile(&head, chunk_scope).expect("valid");
            let view = profile.view().expect("valid");
            let precision = Precision::F32;
            let chunks = ChunkCount::Share(share);
            let config = FasaConfig { chunk_scope, token_scope, chunks, precision, ..FasaConfig::DEFAULT };
            let owned = OwnedPlan::new(&view, config).expect("fits");
            let (plan, n, step) = (owned.view(), head.tokens, step(&head, head.tokens));
            let row_of = |g: usize| if chunk_scope == Scope::KvHead { 2 } else { 2 * head.group + g };
            let naive = |g: usize| -> Vec<f64> {
                let best: Vec<u16> = view.ranking(1, row_of(g)).take(plan.chunks()).collect();
                let part = |row: &[f32]| -> Vec<f32> {
                    best.iter().flat_map(|i| [row[usize::from(*i)], row[usize::from(*i) + head.dim / 2]]).collect()
                };
                (0..n).map(|t| dot(&part(head.query(n - 1, g)), &part(head.key(t)))).collect()
            };
            let want = combined(&head, token_scope, (0..head.group).map(naive).collect());
            let bare = scores(&mut Fasa::new(plan), &step);
            assert_near(&bare, &want)?;

            let bytes = precision.row_bytes(plan.chunks());
            let sketches: Vec<Vec<u8>> = (0..chunk_scope.rows(head.group, 1)).map(|g| {
                let mut codes = vec![0; n * bytes];
                for (t, row) in codes.chunks_exact_mut(bytes).enumerate() {
                    quantize_row(&plan.head(1, row_of(g)).expect("exists"), head.key(t), row, &mut []).expect("fits");
                }
                codes
            }).collect();
            let rows: Vec<SketchRows<'_>> =
                sketches.iter().map(|s| SketchRows::new(precision, plan.chunks(), n, s, &[]).expect("lengths")).collect();
            let sketched = Step { sketches: &rows, ..step };
            prop_assert_eq!(scores(&mut Fasa::new(plan), &sketched), bare, "an f32 sketch gives the same bits");

            let guarantees = config.guarantees;
            let sets = select(&mut Ranked::new("fasa", Fasa::new(plan), guarantees), &sketched, 24);
            for (row, set) in want.iter().zip(&sets) {
                prop_assert!(is_ascending(set) && set.len() == 24.min(n));
                prop_assert!(is_best(set, row, |t| guarantees.covers(t, n, 24)));
            }
        }
    }
}
