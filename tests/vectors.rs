//! The method against its definitions: vectors computed elsewhere in double precision.
//!
//! `FASA_VECTORS=dir` reads other files of the same form.

mod fixture;

use fasa_core::attend::attend;
use fasa_core::criterion::{
    Agreement, Criterion, CriterionKind, Observation, Tally, Workspace, dominant, group_mean, rank,
};
use fasa_core::importance::Importance;
use fasa_core::policy::{Oracle, Step};
use fasa_core::select::{scratch_len, top_n};
use fasa_core::sketch::{HeadPlan, Precision, SketchRows, fold_query, quantize_row, score};
use fasa_core::{Chunks, Pairing, Rows, Scope};
use fixture::Fixture;

/// One file, unpacked.
struct Case {
    file: Fixture,
    chunks: Chunks,
    query_heads: usize,
    kv_heads: usize,
    tokens: usize,
    steps: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case {
    fn all() -> Vec<Self> {
        let named = |f: &Fixture| f.has("agreement");
        Fixture::all("FASA_VECTORS", "vectors").into_iter().filter(named).map(Self::unpack).collect()
    }

    fn unpack(file: Fixture) -> Self {
        let pairing = match file.parameter("layout").as_str() {
            "half" => Pairing::HalfSplit,
            "interleaved" => Pairing::Interleaved,
            other => panic!("{}: unknown layout {other}", file.name),
        };
        let dim = file.number("head_dim");
        Self {
            chunks: Chunks::new(dim, dim, pairing).expect("valid"),
            query_heads: file.number("query_heads"),
            kv_heads: file.number("kv_heads"),
            tokens: file.number("tokens"),
            steps: file.number("steps"),
            q: file.f32("q"),
            k: file.f32("k"),
            v: file.f32("v"),
            file,
        }
    }

    fn group(&self) -> usize {
        self.query_heads / self.kv_heads
    }

    fn query(&self, step: usize, head: usize) -> &[f32] {
        let dim = self.chunks.head_dim();
        &self.q[(step * self.query_heads + head) * dim..][..dim]
    }

    fn rows<'a>(&self, data: &'a [f32], kv_head: usize, seen: usize) -> Rows<'a> {
        let dim = self.chunks.head_dim();
        Rows::strided(&data[kv_head * dim..], seen, dim, self.kv_heads * dim).expect("fits")
    }

    fn observation(&self, step: usize, head: usize) -> Observation<'_> {
        let keys = self.rows(&self.k, head / self.group(), self.tokens - self.steps + step + 1);
        Observation { query: self.query(step, head), keys, chunks: &self.chunks }
    }

    fn tally(&self, k: usize) -> Tally {
        let agreement = Agreement::new(k).expect("positive");
        let mut tally = Tally::new(CriterionKind::Agreement, self.query_heads, self.chunks.len());
        for step in 0..self.steps {
            for head in 0..self.query_heads {
                tally.observe(&agreement, head, &self.observation(step, head)).expect("fits");
            }
        }
        tally
    }

    fn agreement_ks(&self) -> Vec<usize> {
        let list = self.file.parameter("agreement_k");
        list.trim_matches(['[', ']']).split(',').map(|k| k.trim().parse().expect("a number")).collect()
    }

    /// Dominant sets under `scope`.
    ///
    /// Agreements are multiples of 1/K, so exact ties are common. The files were made by adding `agreement / steps` step
    /// by step; where that sum's rounding told exactly tied chunks apart, their sets follow it. [`Tally`] divides once at
    /// the end and keeps such ties for the lower index. To compare sets at all, the mean is taken here as the files do.
    fn dominant_sets(&self, scope: Scope) -> Vec<Vec<u16>> {
        let agreement = Agreement::new(self.agreement_ks()[0]).expect("positive");
        let chunks = self.chunks.len();
        let mut means = vec![0.0; self.query_heads * chunks];
        let (scores, entries, positions) = agreement.workspace_len(self.tokens);
        let (mut scores, mut entries, mut positions) = (vec![0.0; scores], vec![0; entries], vec![0; positions]);
        for step in 0..self.steps {
            for (head, mean) in means.chunks_exact_mut(chunks).enumerate() {
                let mut workspace = Workspace { scores: &mut scores, entries: &mut entries, positions: &mut positions };
                let mut one = vec![0.0; chunks];
                agreement.observe(&self.observation(step, head), &mut workspace, &mut one).expect("fits");
                mean.iter_mut().zip(one).for_each(|(m, a)| *m += a / self.steps as f64);
            }
        }
        let (mut grouped, mut ranking) = (vec![0.0; chunks], vec![0; chunks]);
        let mut set = vec![0; self.file.number("chunks")];
        means
            .chunks_exact(self.query_heads / scope.rows(self.query_heads, self.kv_heads) * chunks)
            .map(|group| {
                group_mean(group, &mut grouped).expect("heads");
                rank(&grouped, &mut ranking).expect("lengths");
                dominant(ranking.iter().copied(), set.len(), &mut set).expect("fits").to_vec()
            })
            .collect()
    }

    /// TIP scores of the last step, one row per query head, from an f32 sketch.
    fn importance(&self, sets: &[Vec<u16>]) -> Vec<Vec<f32>> {
        (0..self.query_heads)
            .map(|head| {
                let set = &sets[head * sets.len() / self.query_heads];
                let mut channels = vec![0; 2 * set.len()];
                self.chunks.channels(set, &mut channels).expect("exist");
                let (scale, centre) = (vec![1.0; channels.len()], vec![0.0; channels.len()]);
                let plan = HeadPlan::new(Precision::F32, &channels, &scale, &centre).expect("valid");
                let bytes = Precision::F32.row_bytes(set.len());
                let mut codes = vec![0; self.tokens * bytes];
                let keys = self.rows(&self.k, head / self.group(), self.tokens);
                for (row, key) in codes.chunks_exact_mut(bytes).zip(keys.iter()) {
                    quantize_row(&plan, key, row, &mut []).expect("fits");
                }
                let rows = SketchRows::new(Precision::F32, set.len(), self.tokens, &codes, &[]).expect("lengths");
                let (mut folded, mut scores) = (vec![0.0; channels.len()], vec![0.0; self.tokens]);
                fold_query(&plan, self.query(self.steps - 1, head), &mut folded).expect("fits");
                score(&rows, &folded, &mut scores).expect("fits");
                scores
            })
            .collect()
    }

    fn attention(&self, head: usize, positions: Option<&[u32]>) -> Vec<f32> {
        let kv_head = head / self.group();
        let (keys, values) = (self.rows(&self.k, kv_head, self.tokens), self.rows(&self.v, kv_head, self.tokens));
        let mut out = vec![0.0; self.chunks.head_dim()];
        attend(self.query(self.steps - 1, head), keys, values, positions, &mut out).expect("shapes");
        out
    }
}

fn assert_near(what: &str, got: impl IntoIterator<Item = f64>, want: &[f32], tolerance: f64) {
    let got: Vec<f64> = got.into_iter().collect();
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - f64::from(*w)).abs() <= tolerance, "{what} [{i}]: {g}, reference {w}");
    }
}

#[test]
fn agreement() {
    for case in Case::all() {
        let (mut mean, mut all, mut grouped) = (vec![0.0; case.chunks.len()], vec![], vec![]);
        for (i, k) in case.agreement_ks().into_iter().enumerate() {
            let tally = case.tally(k);
            for head in 0..case.query_heads {
                tally.mean(head, &mut mean).expect("head");
                all.extend_from_slice(&mean);
            }
            for kv_head in (0..case.kv_heads).filter(|_| i == 0) {
                tally.mean_of_group(kv_head * case.group(), case.group(), &mut mean).expect("heads");
                grouped.extend_from_slice(&mean);
            }
        }
        assert_near(&format!("{} agreement", case.file.name), all, &case.file.f32("agreement"), 1e-6);
        assert_near(&format!("{} group", case.file.name), grouped, &case.file.f32("group_agreement"), 1e-6);
    }
}

#[test]
fn compound_agreement() {
    for case in Case::all() {
        let sets = case.dominant_sets(Scope::QueryHead);
        let agreement = Agreement::new(case.agreement_ks()[0]).expect("positive");
        let (mut scores, mut entries, mut positions) =
            (vec![0.0; case.tokens], vec![0; scratch_len(agreement.k())], vec![0; 2 * agreement.k()]);
        // The files divide this one number by K even where fewer tokens were seen; the definition says min(K, seen).
        let files_divide_by_k = agreement.k().min(case.tokens) as f64 / agreement.k() as f64;
        let got = (0..case.query_heads).map(|head| {
            let mut workspace = Workspace { scores: &mut scores, entries: &mut entries, positions: &mut positions };
            let step = case.observation(case.steps - 1, head);
            agreement.compound(&step, &sets[head], &mut workspace).expect("fits") * files_divide_by_k
        });
        let want = case.file.f32("compound_agreement_last_step");
        assert_near(&format!("{} compound", case.file.name), got.collect::<Vec<_>>(), &want, 1e-6);
    }
}

#[test]
fn dominant_sets_selected_tokens_and_attention() {
    for case in Case::all() {
        for (scope, suffix) in [(Scope::QueryHead, "query_head"), (Scope::KvHead, "kv_head")] {
            let name = |what: &str| format!("{what}_{suffix}");
            let sets = case.dominant_sets(scope);
            // The reference lists chunks by rank; a set has no order.
            let count = case.file.number("chunks");
            let mut want = case.file.u32(&format!("dominant_per_{suffix}"));
            want.chunks_exact_mut(count).for_each(<[u32]>::sort_unstable);
            let got: Vec<u32> = sets.iter().flatten().map(|c| u32::from(*c)).collect();
            assert_eq!(got, want, "{} {}", case.file.name, name("dominant"));

            let importance = case.importance(&sets);
            let wide: Vec<f64> = importance.iter().flatten().map(|s| f64::from(*s)).collect();
            let largest = wide.iter().fold(1.0f64, |m, s| m.max(s.abs()));
            let reference = case.file.f32(&name("importance"));
            assert_near(&format!("{} {}", case.file.name, name("importance")), wide, &reference, 1e-6 * largest);

            let budget = case.file.number("budget");
            let kept = budget.min(case.tokens);
            let (mut scratch, mut out) = (vec![0; scratch_len(budget)], vec![0; kept]);
            let selected = case.file.u32(&name("selected"));
            let attention = case.file.f32(&name("attention"));
            for (head, scores) in importance.iter().enumerate() {
                // The vectors force no token, not even the current one.
                top_n(scores, kept, &mut scratch, &mut out).expect("fits");
                let mut want = selected[head * kept..(head + 1) * kept].to_vec();
                want.sort_unstable();
                assert_eq!(out, want, "{} {} head {head}", case.file.name, name("selected"));
                let got = case.attention(head, Some(&out)).into_iter().map(f64::from);
                let dim = case.chunks.head_dim();
                let want = &attention[head * dim..(head + 1) * dim];
                assert_near(&format!("{} {} head {head}", case.file.name, name("attention")), got, want, 1e-5);
            }
        }
    }
}

#[test]
fn full_attention_and_the_oracle() {
    for case in Case::all() {
        let full: Vec<f64> = (0..case.query_heads).flat_map(|h| case.attention(h, None)).map(f64::from).collect();
        assert_near(&format!("{} attention_full", case.file.name), full, &case.file.f32("attention_full"), 1e-5);

        let (group, budget) = (case.group(), case.file.number("budget"));
        let kept = budget.min(case.tokens);
        let mut oracle = Oracle { scope: Scope::QueryHead };
        let mut want = case.file.u32("oracle_selected");
        want.chunks_exact_mut(kept).for_each(<[u32]>::sort_unstable);
        for kv_head in 0..case.kv_heads {
            let dim = case.chunks.head_dim();
            let queries = &case.q[((case.steps - 1) * case.query_heads + kv_head * group) * dim..][..group * dim];
            let step = Step {
                layer: 0,
                kv_head,
                queries: Rows::contiguous(queries, dim).expect("divides"),
                keys: case.rows(&case.k, kv_head, case.tokens),
                sketches: &[],
            };
            let (mut scores, mut scratch) = (vec![0.0; group * case.tokens], vec![0.0; case.tokens]);
            oracle.importance(&step, &mut scratch, &mut scores).expect("shapes");
            let (mut entries, mut kept_positions) = (vec![0; scratch_len(budget)], vec![0; kept]);
            for g in 0..group {
                let head = kv_head * group + g;
                let row = &scores[g * case.tokens..(g + 1) * case.tokens];
                top_n(row, kept, &mut entries, &mut kept_positions).expect("fits");
                assert_eq!(kept_positions, &want[head * kept..(head + 1) * kept], "{} head {head}", case.file.name);
            }
        }
    }
}
