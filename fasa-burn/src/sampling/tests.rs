use super::*;

fn sampling(change: impl FnOnce(&mut Sampling)) -> Sampling {
    let mut sampling = Sampling { temperature: 1.0, ..Sampling::default() };
    change(&mut sampling);
    sampling
}

/// How often each id comes in `draws` draws.
fn counts(sampling: &Sampling, logits: &[f32], draws: usize) -> Vec<usize> {
    let mut sampler = Sampler::new(sampling).unwrap();
    let mut counts = vec![0; logits.len()];
    for _ in 0..draws {
        counts[sampler.next(&mut logits.to_vec(), &[]) as usize] += 1;
    }
    counts
}

/// The ids that are drawn at all.
fn support(change: impl FnOnce(&mut Sampling), logits: &[f32]) -> Vec<usize> {
    let counts = counts(&sampling(change), logits, 2000);
    (0..logits.len()).filter(|&id| counts[id] > 0).collect()
}

/// Logits of these probabilities.
fn logs(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln()).collect()
}

#[test]
fn greedy_takes_the_first_of_the_highest() {
    const NAN: f32 = f32::NAN;
    const INF: f32 = f32::INFINITY;
    let cases: &[(&[f32], u32)] = &[
        (&[0.0], 0),
        (&[1.0, 3.0, 3.0, 2.0], 1),
        (&[-0.0, 0.0], 0),
        (&[NAN, -5.0, NAN, -6.0], 1),
        (&[2.0, INF, NAN, INF], 1),
        (&[-INF, -INF, -1e38], 2),
        (&[NAN, NAN], 0),
        (&[-INF, -INF], 0),
    ];
    for &(logits, expected) in cases {
        let mut sampler = Sampler::new(&Sampling::default()).unwrap();
        assert_eq!(sampler.next(&mut logits.to_vec(), &[]), expected, "{logits:?}");
    }
}

#[test]
fn repetition_penalty_acts_once_per_token_and_by_sign() {
    let greedy = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
    let mut sampler = Sampler::new(&greedy).unwrap();
    let mut logits = vec![4.0, -1.0, 3.0, 0.0, f32::NAN];
    // Ids beyond the logits are passed over.
    let next = sampler.next(&mut logits, &[0, 1, 0, 0, 3, 4, 99, u32::MAX]);
    assert_eq!(logits, [2.0, -2.0, 3.0, 0.0, f32::NEG_INFINITY]);
    assert_eq!(next, 2);
}

#[test]
fn filters_keep_what_transformers_keeps() {
    let logits = logs(&[0.1, 0.4, 0.2, 0.3]);
    type Case = (fn(&mut Sampling), &'static [usize]);
    let cases: &[Case] = &[
        (|_| (), &[0, 1, 2, 3]),
        (|s| s.top_k = 1, &[1]),
        (|s| s.top_k = 2, &[1, 3]),
        (|s| s.top_k = 4, &[0, 1, 2, 3]),
        (|s| s.top_k = usize::MAX, &[0, 1, 2, 3]),
        (|s| s.top_p = 1e-30, &[1]),
        (|s| s.top_p = 0.39, &[1]),
        (|s| s.top_p = 0.5, &[1, 3]),
        (|s| s.top_p = 0.85, &[1, 2, 3]),
        (|s| s.top_p = 0.999, &[0, 1, 2, 3]),
        (|s| s.min_p = 1.0, &[1]),
        (|s| s.min_p = 0.7, &[1, 3]),
        (|s| s.min_p = 0.45, &[1, 2, 3]),
        // Top-p sees what top-k left: 0.4 / 0.7 and 0.3 / 0.7.
        (
            |s| {
                s.top_k = 2;
                s.top_p = 0.56;
            },
            &[1],
        ),
        // The temperature comes before top-p: at 2 the most probable token has 0.32, at 0.2 it has 0.78.
        (
            |s| {
                s.temperature = 2.0;
                s.top_p = 0.35;
            },
            &[1, 3],
        ),
        (
            |s| {
                s.temperature = 0.2;
                s.top_p = 0.7;
            },
            &[1],
        ),
        (|s| s.temperature = 1e-40, &[1]),
    ];
    for (number, &(change, expected)) in cases.iter().enumerate() {
        assert_eq!(support(change, &logits), expected, "case {number}");
    }
}

#[test]
fn ties_with_the_kth_stay() {
    assert_eq!(support(|s| s.top_k = 2, &[1.0, 2.0, 1.0, 0.0]), [0, 1, 2]);
}

#[test]
fn top_p_among_equals_keeps_the_lowest_ids() {
    assert_eq!(support(|s| s.top_p = 0.4, &[0.0; 8]), [0, 1, 2, 3]);
}

#[test]
fn dropping_improbable_tokens_early_changes_nothing() {
    // A long tail, against the definition on the sorted whole.
    let mut rng = ChaCha8Rng::from_seed([3; 32]);
    let logits: Vec<f32> = (0..1000).map(|_| (rng.next_u32() as f32 / u32::MAX as f32) * 12.0).collect();
    let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    for top_p in [0.01, 0.3, 0.9, 0.99, 0.9999] {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let mut before = 0.0;
        order.retain(|&id| {
            let keep = before < f64::from(top_p);
            before += f64::from(logits[id]).exp() / total;
            keep
        });
        let mut sampler = Sampler::new(&sampling(|s| s.top_p = top_p)).unwrap();
        sampler.next(&mut logits.clone(), &[]);
        let kept: Vec<usize> = sampler.candidates.iter().map(|c| c.id as usize).collect();
        assert_eq!(kept, order, "top_p {top_p}");
    }
}

#[test]
fn frequencies_follow_the_probabilities() {
    let probabilities = [0.1, 0.4, 0.2, 0.3];
    let draws = 20_000;
    let counts = counts(&sampling(|_| ()), &logs(&probabilities), draws);
    for (count, p) in counts.iter().zip(probabilities) {
        let expected = p * draws as f32;
        assert!((*count as f32 - expected).abs() < 5.0 * expected.sqrt(), "{counts:?}");
    }
}

#[test]
fn a_seed_is_a_sequence() {
    let logits = vec![0.0; 50];
    let draw = |seed: u64| -> Vec<u32> {
        let mut sampler = Sampler::new(&sampling(|s| s.seed = seed)).unwrap();
        (0..8).map(|_| sampler.next(&mut logits.clone(), &[])).collect()
    };
    assert_eq!(draw(7), draw(7));
    assert_ne!(draw(7), draw(8));
    // The stream of ChaCha8 with a zero key, as its specification gives it: a change here means that users' seeds no
    // longer give the texts they gave.
    assert_eq!(draw(0), [41, 31, 11, 5, 12, 4, 0, 13]);
}

#[test]
fn logits_beyond_numbers_are_survived() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    assert_eq!(support(|_| (), &[nan, 0.0, -inf, 0.0]), [1, 3]);
    assert_eq!(support(|s| s.top_k = 3, &[nan, nan, 1.0, nan]), [2]);
    assert_eq!(support(|s| s.top_p = 0.9, &[1.0, inf, nan, inf]), [1, 3]);
    assert_eq!(support(|s| s.min_p = 0.5, &[-inf, nan]), [0]);
    assert_eq!(support(|_| (), &[f32::MAX, f32::MIN]), [0]);
}

#[test]
fn parameters_out_of_range_are_named() {
    type Case = (fn(&mut Sampling), &'static str);
    let cases: &[Case] = &[
        (|s| s.temperature = -1.0, "temperature"),
        (|s| s.temperature = f32::NAN, "temperature"),
        (|s| s.temperature = f32::INFINITY, "temperature"),
        (|s| s.top_p = 0.0, "top_p"),
        (|s| s.top_p = 1.1, "top_p"),
        (|s| s.top_p = f32::NAN, "top_p"),
        (|s| s.min_p = -0.1, "min_p"),
        (|s| s.min_p = 1.5, "min_p"),
        (|s| s.min_p = f32::NAN, "min_p"),
        (|s| s.repetition_penalty = 0.0, "repetition_penalty"),
        (|s| s.repetition_penalty = -2.0, "repetition_penalty"),
        (|s| s.repetition_penalty = f32::NAN, "repetition_penalty"),
        (
            |s| {
                s.temperature = 0.0;
                s.top_k = 40;
            },
            "top_k",
        ),
        (
            |s| {
                s.temperature = 0.0;
                s.top_p = 0.9;
            },
            "top_p",
        ),
    ];
    for &(change, name) in cases {
        match Sampler::new(&sampling(change)) {
            Err(Error::Request { field, .. }) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    assert!(Sampling::default().validate().is_ok());
    assert!(Sampling::default().is_greedy());
}
