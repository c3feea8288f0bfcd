//! How to test a kernel of one's own against the core. The kernel here scores an int4 sketch with candle tensors, so it
//! runs on whatever device they live on, and needs no keys: importance and choice are made from its scores.

use candle_core::{DType, Device, Result, Tensor};
use fasa_core::importance::add_softmax;
use fasa_core::policy::{CachePolicy, Fasa, Memory, OwnedPlan, Plan, Ranked, Selection, Step};
use fasa_core::profile::ProfileView;
use fasa_core::select::scratch_len;
use fasa_core::sketch::{HeadPlan, SketchRows, fold_query, quantize_row, score};
use fasa_core::{FasaConfig, Rows};

const PROFILE: &[u8] = include_bytes!("../../../fixtures/nano/fasa-default.profile");
const GROUP: usize = 2;
const DIM: usize = 64;

/// Scores of the folded queries, `[group, 2F]`, against int4 rows: codes `[n, F]` u8, row scales `[n]` f16. `[group, n]`.
fn own_score(codes: &Tensor, scales: &Tensor, folded: &Tensor) -> Result<Tensor> {
    let codes = codes.to_dtype(DType::F32)?;
    let second = (&codes / 16.0)?.floor()?; // the high nibble
    let first = (codes - (&second * 16.0)?)?;
    let numbers = (Tensor::cat(&[first, second], 1)? - 8.0)?; // sketch order
    folded.matmul(&numbers.t()?)?.broadcast_mul(&scales.to_dtype(DType::F32)?)
}

fn noise(seed: u32) -> impl FnMut() -> f32 {
    let mut state = 0x9e37_79b9 ^ seed;
    move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Queries, keys as this head has them, and their sketch.
struct Case {
    queries: Vec<f32>,
    keys: Vec<f32>,
    codes: Vec<u8>,
    scales: Vec<u8>,
    tokens: usize,
}

impl Case {
    fn new(head: &HeadPlan<'_>, profile: &ProfileView<'_>, tokens: usize) -> Self {
        let mut noise = noise(tokens as u32);
        let mut key = |i| profile.key_centre(1, 0, i % DIM) + 2.0 * profile.key_scale(1, 0, i % DIM) * noise();
        let keys: Vec<f32> = (0..tokens * DIM).map(&mut key).collect();
        let queries: Vec<f32> = (0..GROUP * DIM).map(key).collect();
        let (bytes, scale_bytes) = (head.precision().row_bytes(head.chunks()), head.precision().scale_bytes());
        let (mut codes, mut scales) = (vec![0; tokens * bytes], vec![0; tokens * scale_bytes]);
        let rows = codes.chunks_mut(bytes).zip(scales.chunks_mut(scale_bytes));
        for (key, (codes, scale)) in keys.chunks(DIM).zip(rows) {
            quantize_row(head, key, codes, scale).expect("shapes");
        }
        Self { queries, keys, codes, scales, tokens }
    }

    fn sketch(&self, head: &HeadPlan<'_>) -> SketchRows<'_> {
        SketchRows::new(head.precision(), head.chunks(), self.tokens, &self.codes, &self.scales).expect("shapes")
    }

    /// The scores of the kernel, `[group, n]`.
    fn own_scores(&self, head: &HeadPlan<'_>) -> Vec<f32> {
        let device = Device::Cpu;
        let width = head.channels().len();
        let mut folded = vec![0.0; GROUP * width];
        for (query, folded) in self.queries.chunks(DIM).zip(folded.chunks_mut(width)) {
            fold_query(head, query, folded).expect("shapes");
        }
        let codes = Tensor::from_slice(&self.codes, (self.tokens, head.chunks()), &device).expect("a tensor");
        let scales = Tensor::from_raw_buffer(&self.scales, DType::F16, &[self.tokens], &device).expect("a tensor");
        let folded = Tensor::from_slice(&folded, (GROUP, width), &device).expect("a tensor");
        let scores = own_score(&codes, &scales, &folded).expect("runs");
        scores.flatten_all().and_then(|scores| scores.to_vec1()).expect("host")
    }
}

fn with_cases(check: impl Fn(&Plan<'_>, &HeadPlan<'_>, &Case)) {
    let profile = ProfileView::parse(PROFILE).expect("a profile");
    let plan = OwnedPlan::new(&profile, FasaConfig::DEFAULT).expect("fits");
    let head = plan.view().head(1, 0).expect("exists");
    for tokens in [1, 2, 31, 32, 33, 1000] {
        check(&plan.view(), &head, &Case::new(&head, &profile, tokens));
    }
}

#[test]
fn scores_equal_the_core_up_to_rounding() {
    with_cases(|_, head, case| {
        let got = case.own_scores(head);
        let (mut folded, mut want) = (vec![0.0; head.channels().len()], vec![0.0; case.tokens]);
        for (query, got) in case.queries.chunks(DIM).zip(got.chunks(case.tokens)) {
            fold_query(head, query, &mut folded).expect("shapes");
            score(&case.sketch(head), &folded, &mut want).expect("shapes");
            // An f32 sum may be off by as much as its terms are large, whatever the order of summing.
            let largest = want.iter().fold(1.0f32, |m, s| m.max(s.abs()));
            for (g, w) in got.iter().zip(&want) {
                assert!((g - w).abs() <= 1e-5 * largest, "{} tokens: {g} {w}", case.tokens);
            }
        }
    });
}

#[test]
fn choices_equal_the_policy_up_to_ties() {
    with_cases(|plan, head, case| {
        let (tokens, budget) = (case.tokens, 24.min(case.tokens));
        let (mut entries, guarantees) = (vec![0; scratch_len(budget)], plan.config().guarantees);

        // From scores to tokens without keys: the mean over the group of softmax(S/√d), then the best beside the guaranteed.
        let mut importance = vec![0.0; tokens];
        for scores in case.own_scores(head).chunks_mut(tokens) {
            let (scale, weight) = (1.0 / (DIM as f32).sqrt(), 1.0 / GROUP as f32);
            add_softmax(scores, scale, weight, &mut importance).expect("lengths");
        }
        let mut own = vec![0; budget];
        guarantees.pick(&importance, budget, &mut entries, &mut own).expect("room");

        let step = Step {
            layer: 1,
            kv_head: 0,
            queries: Rows::contiguous(&case.queries, DIM).expect("rows"),
            keys: Rows::contiguous(&case.keys, DIM).expect("rows"),
            sketches: &[case.sketch(head)],
        };
        let (mut positions, mut lengths, mut scores) = (vec![0; budget], [0], vec![0.0; Memory::scores_len(1, tokens)]);
        let mut memory = Memory { scores: &mut scores, entries: &mut entries };
        let mut selection = Selection::new(&mut positions, &mut lengths, budget).expect("room");
        let mut policy = Ranked::new("fasa", Fasa::new(*plan), guarantees);
        policy.select(&step, budget, &mut memory, &mut selection).expect("shapes");

        // Where two tokens are all but equally important, rounding decides; so compare what was gathered, not the list.
        let gathered = |set: &[u32]| set.iter().map(|t| importance[*t as usize]).sum::<f32>();
        assert!((gathered(&own) - gathered(selection.set(0))).abs() < 1e-5, "{own:?} {:?}", selection.set(0));
    });
}
