//! What makes the printed lines comparable between processors: every set holds what was looked for, and no choice is so
//! close that the last bits of a number could decide it.

use fasa_core::importance::Importance;
use fasa_core::policy::{Fasa, Plan, Step};
use fasa_core::profile::ProfileView;
use fasa_core::{Rows, Scope};
use fasa_example_cortex_m::cache::{Cache, DIM};
use fasa_example_cortex_m::context::{Context, looked_for};
use fasa_example_cortex_m::{BUDGET, CONFIG, KV_HEAD, LAYER, Memory, PROFILE, PROMPT, STEPS, run};

/// The lines, and the positions in those that list some.
fn printed() -> (String, Vec<Vec<u32>>) {
    let mut lines = String::new();
    run(&mut Memory::new(), &mut lines).expect("runs");
    let lists = lines.lines().filter_map(|line| line.split_once("reads ["));
    let numbers = |(_, list): (&str, &str)| {
        let (list, _) = list.split_once(']').expect("closed");
        list.split(", ").map(|n| n.parse().expect("a number")).collect()
    };
    let lists = lists.map(numbers).collect();
    (lines, lists)
}

#[test]
fn every_step_reads_what_it_looks_for() {
    let (lines, sets) = printed();
    assert_eq!(sets.len(), STEPS, "{lines}");
    for (step, set) in sets.iter().enumerate() {
        assert_eq!(set.len(), BUDGET);
        assert!(looked_for(step).iter().all(|t| set.contains(&(*t as u32))), "{lines}");
    }
    assert_eq!(lines, printed().0, "the same lines every time");
}

#[test]
fn no_choice_is_close() {
    let (_, sets) = printed();
    let profile = ProfileView::parse(PROFILE).expect("a profile");
    let len = Plan::table_len(&profile, &CONFIG).expect("fits");
    let (mut channels, mut scale, mut centre) = (vec![0; len], vec![0.0; len], vec![0.0; len]);
    let plan = Plan::build(&profile, CONFIG, &mut channels, &mut scale, &mut centre).expect("fits");
    let head = plan.head(LAYER, KV_HEAD).expect("exists");
    let mut fasa = Fasa::new(plan);
    assert_eq!(fasa.scope(), Scope::KvHead);
    let (mut context, mut cache) = (Context::new(&profile), Cache::new());
    for token in 0..PROMPT + STEPS {
        let (key, value) = context.token();
        cache.append(&head, &key, &value).expect("fits");
        let Some(step) = token.checked_sub(PROMPT) else { continue };
        let queries = looked_for(step).map(|t| context.query(cache.keys().expect("rows").row(t)));
        let step_data = Step {
            layer: LAYER,
            kv_head: KV_HEAD,
            queries: Rows::contiguous(queries.as_flattened(), DIM).expect("rows"),
            keys: cache.keys().expect("rows"),
            sketches: &[cache.sketch().expect("rows")],
        };
        let (mut scores, mut scratch) = (vec![0.0; cache.len()], vec![0.0; cache.len()]);
        fasa.importance(&step_data, &mut scratch, &mut scores).expect("fits");
        let free = |t: &usize| !CONFIG.guarantees.covers(*t, cache.len(), BUDGET);
        let (kept, left): (Vec<_>, Vec<_>) =
            (0..cache.len()).filter(free).partition(|t| sets[step].contains(&(*t as u32)));
        let worst = kept.iter().map(|t| scores[*t]).fold(f32::INFINITY, f32::min);
        let best = left.iter().map(|t| scores[*t]).fold(0.0, f32::max);
        assert!(worst > 1.001 * best, "step {step}: {worst} is kept, {best} is not");
    }
}
