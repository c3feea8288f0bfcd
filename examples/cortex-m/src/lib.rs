//! FASA decode steps over a cache of one KV head, with all memory in one value of constant size.
//!
//! Nothing here knows what it runs on: `main.rs` prints the same lines on a microcontroller and on a desktop.
#![no_std]
#![forbid(unsafe_code)]

pub mod cache;
pub mod context;

use cache::{Cache, DIM};
use context::Context;
use core::fmt::Write;
use fasa_core::attend::attend;
use fasa_core::policy::{CachePolicy, Fasa, MemoryArray, Plan, Ranked, Selection, Step};
use fasa_core::profile::{ProfileError, ProfileView};
use fasa_core::select::scratch_len;
use fasa_core::{FasaConfig, Guarantees, Rows};

/// The profile, as it lies in flash: 8.5 kB, read where it is.
pub static PROFILE: &[u8] = include_bytes!("../../../fixtures/nano/fasa-default.profile");

/// The head of the model that this program runs.
pub const LAYER: usize = 1;
/// See [`LAYER`].
pub const KV_HEAD: usize = 0;
/// Query heads that share the KV head.
pub const GROUP: usize = 2;
/// Tokens in the cache before the first step.
pub const PROMPT: usize = 96;
/// Decode steps.
pub const STEPS: usize = 4;
/// Tokens that a step reads.
pub const BUDGET: usize = 12;

/// Entries of each table of the plan: layers × KV heads × 2 × chunks of the model in [`PROFILE`].
const TABLE: usize = 6 * 2 * 2 * cache::CHUNKS;

/// Everything that the program keeps in RAM beside its stack.
pub struct Memory {
    channels: [u16; TABLE],
    scale: [f32; TABLE],
    centre: [f32; TABLE],
    cache: Cache,
    /// One token set: one row of scores, and as much again to work in.
    select: MemoryArray<{ 2 * cache::CAPACITY }, { scratch_len(BUDGET) }>,
    chosen: [u32; BUDGET],
}

/// What can go wrong.
#[derive(Debug)]
pub enum Problem {
    /// The profile is damaged.
    Profile(ProfileError),
    /// A shape does not fit.
    Core(fasa_core::Error),
    /// The lines cannot be printed.
    Print,
}

impl Memory {
    /// Memory before the first token.
    pub const fn new() -> Self {
        Self {
            channels: [0; TABLE],
            scale: [0.0; TABLE],
            centre: [0.0; TABLE],
            cache: Cache::new(),
            select: MemoryArray::new(),
            chosen: [0; BUDGET],
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

/// How the program runs FASA: the default, with guarantees that suit a small budget.
pub const CONFIG: FasaConfig = FasaConfig { guarantees: Guarantees { sinks: 2, recent: 4 }, ..FasaConfig::DEFAULT };

/// Reads a prompt into the cache, decodes [`STEPS`] tokens and prints which tokens each step attended to.
///
/// # Errors
/// [`Problem`].
pub fn run(memory: &mut Memory, out: &mut impl Write) -> Result<(), Problem> {
    let Memory { channels, scale, centre, cache, select, chosen } = memory;
    let profile = ProfileView::parse(PROFILE)?;
    let plan = Plan::build(&profile, CONFIG, channels, scale, centre)?;
    let head = plan.head(LAYER, KV_HEAD)?;
    let model = profile.model();
    writeln!(
        out,
        "{}: layer {LAYER} of {}, KV head {KV_HEAD} of {}",
        model.architecture,
        plan.layers(),
        model.kv_heads
    )?;
    writeln!(out, "sketch: {} of {} chunks, {}", plan.chunks(), DIM / 2, head.precision().name())?;

    let mut context = Context::new(&profile);
    let mut policy = Ranked::new("fasa", Fasa::new(plan), CONFIG.guarantees);
    for _ in 0..PROMPT {
        let (key, value) = context.token();
        cache.append(&head, &key, &value)?;
    }
    for step in 0..STEPS {
        let (key, value) = context.token();
        cache.append(&head, &key, &value)?;
        let (keys, values) = (cache.keys()?, cache.values()?);
        let looked_for = context::looked_for(step);
        let queries = looked_for.map(|token| context.query(keys.row(token)));

        let mut lengths = [0];
        let mut selection = Selection::new(chosen, &mut lengths, BUDGET)?;
        let decode = Step {
            layer: LAYER,
            kv_head: KV_HEAD,
            queries: Rows::contiguous(queries.as_flattened(), DIM)?,
            keys,
            sketches: &[cache.sketch()?],
        };
        policy.select(&decode, BUDGET, &mut select.view(), &mut selection)?;

        let positions = selection.set(0);
        writeln!(out, "step {step}: looks for {looked_for:?}, reads {positions:?} of {}", cache.len())?;
        for (g, query) in queries.iter().enumerate() {
            let mut attended = [0.0; DIM];
            attend(query, keys, values, Some(positions), &mut attended)?;
            writeln!(out, "  head {g}: {:.3?} ...", &attended[..4])?;
        }
    }
    Ok(())
}

impl From<ProfileError> for Problem {
    fn from(error: ProfileError) -> Self {
        Self::Profile(error)
    }
}

impl From<fasa_core::Error> for Problem {
    fn from(error: fasa_core::Error) -> Self {
        Self::Core(error)
    }
}

impl From<core::fmt::Error> for Problem {
    fn from(_: core::fmt::Error) -> Self {
        Self::Print
    }
}
