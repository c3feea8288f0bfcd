//! `fasa bench crossover`: from which length on FASA is faster.

use super::in_turns;
use crate::crossover::{self, Conditions};
use crate::model;
use crate::report::{self, Format};
use crate::settings::{DtypeName, FasaArgs, Preset};
use anyhow::{Context, Result};
use fasa_burn::DeviceName;
use fasa_burn::generate::Cancel;
use fasa_burn::measure::{Attention, AttentionShape, Memory, awake, wait};
use fasa_core::{Budget, FasaConfig};
use serde::Serialize;
use std::path::PathBuf;

/// Arguments of `fasa bench crossover`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Query heads, KV heads and dimensions per head
    #[arg(long, value_name = "HQ,HKV,D", default_value = "32,8,128", value_parser = super::attention::parse_shape)]
    shape: AttentionShape,

    /// Take them from a model's config.json instead; `nano` is the model inside this binary
    #[arg(long, value_name = "FOLDER", conflicts_with = "shape")]
    model: Option<PathBuf>,

    /// Do not remember the result for `fasa generate`
    #[arg(long)]
    no_save: bool,

    /// Tokens that FASA keeps
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    budget: usize,

    /// FASA settings to start from
    #[arg(long, value_enum, default_value_t)]
    preset: Preset,

    /// Changes to the preset
    #[command(flatten)]
    fasa: FasaArgs,

    /// Where it runs: see `fasa devices`
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: DeviceName,

    /// Number format of the cache
    #[arg(long, value_enum, default_value_t = DtypeName::F16)]
    dtype: DtypeName,

    /// Threads to use [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Report {
    /// The shortest context that was tried from which on FASA was faster; none if it never was.
    faster_from: Option<usize>,
    /// The file that `fasa generate` reads it from.
    remembered_in: Option<PathBuf>,
    tried: Vec<Tried>,
}

#[derive(Debug, Serialize)]
struct Tried {
    tokens_in_cache: usize,
    fasa_over_dense: f64,
}

/// Contexts longer than this pay on any machine or never.
const LONGEST: usize = 64 << 10;

/// Runs the command.
///
/// # Errors
/// If the shape is none that a model has, or an operation fails.
pub fn run(args: &Args, cancel: &Cancel) -> Result<()> {
    anyhow::ensure!(args.budget > 0, "`--budget` is 0; use at least 1");
    crate::threads::start(args.threads)?;
    let device = args.device.open()?;
    let dtype = args.dtype.dtype(true, &device);
    let config = FasaConfig { dense_layers: 0, ..args.fasa.apply(args.preset) };
    let shape = match &args.model {
        Some(folder) => crossover::shape(&model::read_config(folder)?),
        None => args.shape,
    };
    let mut report = Report { faster_from: None, remembered_in: None, tried: vec![] };
    // No bound is held against these times.
    let unread = Memory::new(0);
    // A budget that covers the context is dense attention: the first length beyond that, then half as much more each time.
    let mut length = args.budget + 1;
    while length <= LONGEST {
        let mut attention = Attention::new(shape, length, dtype, &device)?;
        let plan = attention.plan(config).context("the settings do not fit the shape")?;
        let turns = awake(|| {
            in_turns::<2>(101, &unread, cancel, |i| {
                match i {
                    0 => attention.dense()?,
                    _ => attention.fasa(&plan, args.budget)?,
                };
                Ok(wait(&device)?)
            })
        })?;
        let [dense, fasa] = turns.seconds;
        let tried = Tried { tokens_in_cache: length, fasa_over_dense: dense / fasa };
        if args.format == Format::Text {
            report::text(format_args!("{:>9} tokens: {:.2}x", report::count(length), tried.fasa_over_dense))?;
        }
        // Timing wavers: one length in front is chance, two in a row are not.
        let before = report.tried.last().filter(|t| t.fasa_over_dense > 1.0).map(|t| t.tokens_in_cache);
        let faster = tried.fasa_over_dense > 1.0;
        report.tried.push(tried);
        if faster && before.is_some() {
            report.faster_from = before;
            break;
        }
        length += length.div_ceil(2);
    }
    let path = crossover::path().filter(|_| !args.no_save);
    if let Some(path) = &path {
        let budget = Budget::Tokens(u32::try_from(args.budget).unwrap_or(u32::MAX));
        let conditions = Conditions::new(&args.device.to_string(), shape, dtype, &config, budget);
        crossover::remember(path, conditions, report.faster_from)?;
    }
    report.remembered_in = path;
    if args.format == Format::Json {
        return report::json(&report);
    }
    match report.faster_from {
        Some(length) => report::text(format_args!("FASA is faster from {} tokens on", report::count(length)))?,
        None => report::text(format_args!("FASA was not faster up to {} tokens", report::count(LONGEST)))?,
    }
    let Some(path) = report.remembered_in else { return Ok(()) };
    report::text(format_args!(
        "`fasa generate` will be dense below that with these heads and settings; remembered in {}",
        path.display()
    ))
}
