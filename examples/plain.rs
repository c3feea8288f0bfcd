//! FASA over plain vectors: calibrate, sketch, select, attend. `cargo run -p fasa-core --example plain`
#![allow(clippy::print_stdout)]

use fasa_core::attend::attend;
use fasa_core::criterion::{CriterionKind, Margin, Observation, Tally};
use fasa_core::policy::{CachePolicy, Fasa, Memory, OwnedPlan, Ranked, Selection, Step};
use fasa_core::profile::{Model, Profile};
use fasa_core::select::scratch_len;
use fasa_core::sketch::{SketchRows, quantize_row};
use fasa_core::{FasaConfig, Pairing, Rows, Scope};

const DIM: usize = 64;
const TOKENS: usize = 2048;
const BUDGET: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // What an engine has: rotated keys and values, [tokens, dim], and rotated queries. These queries look for one earlier
    // token each, and weigh the odd chunks: the pairs of dimensions (1, 33), (3, 35), ...
    let mut state = 1u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let keys: Vec<f32> = (0..TOKENS * DIM).map(|_| noise()).collect();
    let values: Vec<f32> = (0..TOKENS * DIM).map(|_| noise()).collect();
    let (keys, values) = (Rows::contiguous(&keys, DIM)?, Rows::contiguous(&values, DIM)?);
    let query = |token| -> Vec<f32> {
        keys.row(token).iter().enumerate().map(|(c, k)| if c % 2 == 1 { 10.0 * k } else { *k }).collect()
    };

    // 1. Once per model: which chunks tell what a head attends to? Decode steps of two query heads are the judges.
    #[rustfmt::skip]
    let model = Model {
        architecture: "toy", layers: 1, query_heads: 2, kv_heads: 1, head_dim: DIM as u32, rotary_dim: DIM as u32,
        rope_theta: 10_000.0, pairing: Pairing::HalfSplit, weights: 0,
        unrotated_layers: &[],
    };
    let chunks = model.chunks()?;
    let mut tally = Tally::new(CriterionKind::Margin, 2, chunks.len());
    for seen in (100..TOKENS).step_by(50) {
        for head in 0..2 {
            let query = query(seen * (head + 1) / 3);
            tally.observe(&Margin, head, &Observation { query: &query, keys: keys.first(seen), chunks: &chunks })?;
        }
    }
    let (scale, mean) = ([0.6; DIM], [0.0; DIM]); // standard deviation and mean of each key channel
    let profile = Profile::new(model, CriterionKind::Margin, 0, Scope::KvHead, &tally, &scale, &mean, "noise")?;
    // Its file is `profile.as_bytes()`; whoever reads it back starts here.
    let config = FasaConfig { dense_layers: 0, ..FasaConfig::DEFAULT };
    let plan = OwnedPlan::new(&profile.view()?, config)?;

    // 2. For every token that enters the cache: a sketch row, 4 bits for each dimension of half of the chunks.
    let head = plan.view().head(0, 0)?;
    let (bytes, scale_bytes) = (head.precision().row_bytes(head.chunks()), head.precision().scale_bytes());
    let (mut codes, mut scales) = (vec![0; TOKENS * bytes], vec![0; TOKENS * scale_bytes]);
    for ((key, row), scale) in keys.iter().zip(codes.chunks_mut(bytes)).zip(scales.chunks_mut(scale_bytes)) {
        quantize_row(&head, key, row, scale)?;
    }

    // 3. In every decode step: choose tokens by the sketch, attend to those alone.
    let queries = [query(300), query(1500)].concat();
    let sketch = SketchRows::new(head.precision(), head.chunks(), TOKENS, &codes, &scales)?;
    let step = Step { layer: 0, kv_head: 0, queries: Rows::contiguous(&queries, DIM)?, keys, sketches: &[sketch] };
    let (mut scores, mut entries) = (vec![0.0; Memory::scores_len(1, TOKENS)], vec![0; scratch_len(BUDGET)]);
    let (mut positions, mut lengths) = ([0; BUDGET], [0]);
    let mut selection = Selection::new(&mut positions, &mut lengths, BUDGET)?;
    let mut policy = Ranked::new("fasa", Fasa::new(plan.view()), config.guarantees);
    policy.select(&step, BUDGET, &mut Memory { scores: &mut scores, entries: &mut entries }, &mut selection)?;
    println!("reads {} of {TOKENS} tokens: {:?}", selection.set(0).len(), selection.set(0));
    for (g, query) in queries.chunks(DIM).enumerate() {
        let (mut sparse, mut dense) = ([0.0; DIM], [0.0; DIM]);
        attend(query, keys, values, Some(selection.of_query(g)), &mut sparse)?;
        attend(query, keys, values, None, &mut dense)?;
        let norm = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>().sqrt();
        let apart: Vec<f32> = sparse.iter().zip(&dense).map(|(s, d)| s - d).collect();
        println!("head {g}: {:.1} % off dense attention", 100.0 * norm(&apart) / norm(&dense));
    }
    Ok(())
}
