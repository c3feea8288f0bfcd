//! `fasa bench memory`: what a context takes and a step costs, by where keys and values lie.

use super::{in_turns, parse_length};
use crate::pictures::curves::{self, Chart, Series};
use crate::report::{self, Format};
use crate::settings::{MethodArgs, MethodName, ModelArgs};
use crate::sizes::parse_bytes;
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use clap::builder::PossibleValuesParser;
use fasa_burn::Dtype;
use fasa_burn::cache::{HostOptions, Placement};
use fasa_burn::generate::Cancel;
use fasa_burn::measure::{Memory, link, release, reserved};
use fasa_burn::method::Method;
use fasa_burn::model::{Decoder, Logits, to_host};
use fasa_burn::random;
use serde::Serialize;
use std::path::PathBuf;

/// Arguments of `fasa bench memory`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Random weights in the shape of a well-known model, and chunks ranked by noise, instead of `--model`
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(random::shapes()))]
    random: Option<String>,

    #[command(flatten)]
    method: MethodArgs,

    /// What is measured; one alone has the process to itself
    #[arg(long, value_enum, value_name = "WHAT,..", value_delimiter = ',', default_value = "fasa-m,fasa-c,dense")]
    what: Vec<Way>,

    /// Tokens in the cache, filled with noise; lengths beyond what the model was trained for are fine
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "2k,8k,32k", value_parser = parse_length)]
    lengths: Vec<usize>,

    /// Steps that are timed, each with another token
    #[arg(long, value_name = "N", default_value_t = 32)]
    steps: usize,

    /// With a GPU, fasa-m: rows of a head that stay on it, per row that a step chooses; with 0 every step fetches all that it
    /// chose. One measurement for each number
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "4")]
    rows_kept: Vec<usize>,

    /// With a GPU, fasa-m: take so much of the host's memory at most, such as `64GB`. Tokens of longer contexts share rows, which
    /// are still fetched from all over that memory
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    host_memory: Option<u64>,

    /// With a GPU, fasa-m: the host gathers the rows that a step chose, also where the GPU could read them by itself
    #[arg(long)]
    host_gathers: bool,

    /// Draw memory and time over the length into this file, .svg or .png
    #[arg(long, value_name = "FILE", value_parser = crate::pictures::parse_path)]
    picture: Option<PathBuf>,

    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Ways to hold a context and to attend to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// Everything in memory and every token read
    Dense,
    /// Everything in memory, FASA
    FasaC,
    /// Keys and values in the second tier, FASA
    FasaM,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Dense => "dense",
            Way::FasaC => "fasa-c",
            Way::FasaM => "fasa-m",
        }
    }
}

/// What `--format json` prints.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    dtype: Dtype,
    threads: usize,
    /// F / d, of the dimensions that the sketch holds, and so the memory of the published method over that of dense.
    published_memory_share: f64,
    /// Bytes per second from the host's memory to the GPU's.
    link_bytes_per_second: Option<f64>,
    /// What of the GPU's memory weights and cache may take.
    device_memory: Option<u64>,
    results: Vec<Measured>,
    refused: Vec<Refused>,
}

/// What there was no memory for.
#[derive(Debug, Serialize)]
struct Refused {
    tokens_in_cache: usize,
    what: &'static str,
    why: String,
}

#[derive(Debug, Serialize)]
struct Measured {
    tokens_in_cache: usize,
    what: &'static str,
    tokens_kept: usize,
    /// Rows of a head that stay on a GPU, per chosen row; none without a tier in the host's memory.
    rows_kept: Option<usize>,
    /// Tokens whose rows are their own; others share theirs: see `--host-memory`.
    own_rows: usize,
    /// Keys and values in the device's memory, with sketches and recently chosen rows.
    device_bytes: u64,
    /// Keys and values in the second tier.
    tier_bytes: u64,
    /// `device_bytes` over the keys and values of the same context all in memory.
    device_share_of_dense: f64,
    /// What the process took more than before there was a cache, as the operating system counts it; none where it does
    /// not say. What lay free in the process before is not seen.
    resident_bytes: Option<u64>,
    /// What the GPU's memory is taken by, weights included; none for the processor.
    device_reserved_bytes: Option<u64>,
    /// Read from and written to the second tier.
    bytes_moved_per_step: f64,
    /// The share of chosen rows that were in memory; none without a second tier.
    hit_rate: Option<f64>,
    /// Bytes that came from the second tier per second, of what the link gives.
    link_share: Option<f64>,
    seconds_per_step: f64,
    tokens_per_second: f64,
    /// Cache bytes that a dense step reads over those that this one reads.
    bytes_fewer: f64,
    /// The same as published, for a sketch in the cache's format: 1 / (F / d + N / n).
    published_bytes_fewer: f64,
}

/// Runs the command.
///
/// # Errors
/// If the model cannot be loaded or fails.
pub fn run(args: &Args, cancel: &Cancel) -> Result<()> {
    ensure!(args.steps > 0, "`--steps` is 0; use at least 1");
    ensure!(
        args.method.method == MethodName::Fasa,
        "`--method` is for other commands: `--what` says what this one measures"
    );
    let tier = match args.model.placement()? {
        Placement::Auto(folder) => Some(Placement::Tiered(folder)),
        Placement::AutoHost => Some(Placement::Host),
        Placement::Device => None,
        placement => Some(placement),
    };
    ensure!(
        tier.is_some() || !args.what.contains(&Way::FasaM),
        "`--cache device` leaves no second tier to measure; leave it out, or leave fasa-m out of `--what`"
    );
    let (name, mut decoder, fasa) = super::decode::subject(&args.model, args.random.as_deref(), &args.method)?;
    let longest = args.lengths.iter().copied().max().unwrap_or(0);
    decoder.allow_positions(longest + args.steps + 8);
    let Method::Fasa { plan, .. } = &fasa else { anyhow::bail!("the method is FASA") };
    let share = plan.view().chunks() as f64 / decoder.config().head_dim as f64;
    let link = link(decoder.device())?;
    ensure!(
        link.is_some() || args.host_memory.is_none(),
        "`--host-memory` is for the tier of a GPU; on the processor keys and values lie in a file"
    );
    let mut report = Report {
        model: name,
        dtype: decoder.dtype(),
        threads: rayon::current_num_threads(),
        published_memory_share: share,
        link_bytes_per_second: link,
        device_memory: fasa_burn::device::memory(decoder.device()),
        results: vec![],
        refused: vec![],
    };
    let text = args.format == Format::Text;
    if text {
        report::text(heading(&report))?;
    }
    for &length in &args.lengths {
        for &way in &args.what {
            decoder.set_placement(match (way, &tier) {
                (Way::FasaM, Some(tier)) => tier.clone(),
                _ => Placement::Device,
            })?;
            let method = if way == Way::Dense { &Method::Dense } else { &fasa };
            let mut listen = |measured: &Measured| if text { report::text(row(measured)) } else { Ok(()) };
            match measure(&decoder, way, method, length, args, share, link, cancel, &mut listen) {
                Ok(measured) => report.results.extend(measured),
                Err(error) => {
                    // Less memory than that is a result; everything else is not.
                    let why = match error.downcast_ref::<fasa_burn::Error>() {
                        Some(fasa_burn::Error::Device { problem, .. }) if problem.contains("too little memory") => {
                            problem
                        }
                        _ => return Err(error),
                    };
                    if text {
                        report::text(format!(
                            "{:>9}  {:<7}  refused: the device {why}",
                            report::count(length),
                            way.name()
                        ))?;
                    }
                    report.refused.push(Refused { tokens_in_cache: length, what: way.name(), why: why.clone() });
                    if args.lengths.len() * args.what.len() == 1 {
                        return Err(error);
                    }
                }
            }
        }
    }
    if let Some(path) = &args.picture {
        curves::draw("Memory and time over the length of the context", &charts(&report), 2).save(path)?;
    }
    if text { Ok(()) } else { report::json(&report) }
}

#[allow(clippy::too_many_arguments)]
fn measure(
    decoder: &Decoder,
    way: Way,
    method: &Method,
    length: usize,
    args: &Args,
    share: f64,
    link: Option<f64>,
    cancel: &Cancel,
    listen: &mut dyn FnMut(&Measured) -> Result<()>,
) -> Result<Vec<Measured>> {
    release(decoder.device())?;
    let (before, steps) = (resident(), args.steps);
    let mut cache = decoder.new_cache(length + steps + 2);
    let in_host = *decoder.placement() == Placement::Host;
    let kept_rows = if in_host { &args.rows_kept[..] } else { &[0] };
    let mut all = Vec::new();
    for (i, &rows_kept) in kept_rows.iter().enumerate() {
        cache.set_host(HostOptions {
            kept_per_chosen: rows_kept,
            shared_beyond: args.host_memory,
            host_gathers: args.host_gathers,
        });
        if i == 0 {
            cache.append_noise(length)?;
        }
        cache.truncate(length);
        let vocabulary = decoder.config().vocab_size as u32;
        let mut token = 0u32;
        let mut traffic = None;
        // No bound is held against these times, and memory to read would be counted.
        let turns = in_turns::<1>(steps, &Memory::new(0), cancel, |_| {
            if token == 1 {
                // Behind the first step, which makes the sketch.
                traffic = cache.tier().map(|tier| tier.traffic);
            }
            token += 1;
            let id = token.wrapping_mul(7919) % vocabulary;
            let logits = decoder.forward(&[id], &mut cache, method, Logits::Last)?;
            Ok(to_host(logits.context("no logits")?).map(drop)?)
        })?;
        let resident_bytes = before.zip(resident()).map(|(before, now)| now.saturating_sub(before));
        let moved = cache.tier().zip(traffic).map(|(tier, before)| tier.traffic.since(&before));
        let (config, dtype, seen) = (decoder.config(), decoder.dtype(), length + 1);
        let dense_read = Method::Dense.bytes_per_step(config, seen, dtype) as f64;
        let row = (2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.bytes()) as f64;
        let (device_bytes, kept) = (cache.device_bytes(), method.kept(seen));
        let [seconds] = turns.seconds;
        let published = if way == Way::Dense { 1.0 } else { 1.0 / (share + kept as f64 / seen as f64) };
        let brought = moved.map_or(0.0, |m| m.bytes_read as f64 / steps as f64);
        let measured = Measured {
            tokens_in_cache: length,
            what: way.name(),
            tokens_kept: kept,
            rows_kept: in_host.then_some(rows_kept),
            own_rows: cache.own_rows().min(length),
            device_bytes,
            tier_bytes: cache.tier().map_or(0, |tier| tier.bytes),
            device_share_of_dense: device_bytes as f64 / (row * (length + steps + 2) as f64),
            resident_bytes,
            device_reserved_bytes: reserved(decoder.device()),
            bytes_moved_per_step: moved.map_or(0.0, |m| (m.bytes_read + m.bytes_written) as f64 / steps as f64),
            hit_rate: moved.and_then(|moved| moved.hit_rate()),
            link_share: link.filter(|_| in_host).map(|link| brought / seconds / link),
            seconds_per_step: seconds,
            tokens_per_second: 1.0 / seconds,
            bytes_fewer: dense_read / method.bytes_per_step(config, seen, dtype) as f64,
            published_bytes_fewer: published,
        };
        listen(&measured)?;
        all.push(measured);
    }
    Ok(all)
}

/// Memory of this process that is no file's, as Linux counts it.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn heading(report: &Report) -> String {
    let of_gpu = match report.link_bytes_per_second {
        Some(link) => format!(
            "; the link to the GPU gives {:.1} GB/s, weights and cache may take {} of its memory",
            link / 1e9,
            report.device_memory.map_or_else(|| "all".into(), report::bytes)
        ),
        None => String::new(),
    };
    format!(
        "{}, {}; memory as published: {:.3} of dense{of_gpu}\n\n\
         {:>9}  {:<7} {:>4}  {:>9} {:>6}  {:>9}  {:>9}  {:>10} {:>6} {:>5}  {:>9}  {:>6} {:>9}",
        report.model,
        report.dtype,
        report.published_memory_share,
        "in cache",
        "what",
        "kept",
        "device",
        "share",
        if report.link_bytes_per_second.is_some() { "reserved" } else { "resident" },
        "tier",
        "moved/step",
        "hits",
        "link",
        "tokens/s",
        "bytes",
        "published"
    )
}

fn row(measured: &Measured) -> String {
    let percent = |share: Option<f64>| share.map_or_else(|| "-".into(), |share| format!("{:.0}%", 100.0 * share));
    let taken = measured.device_reserved_bytes.or(measured.resident_bytes);
    let shared = match measured.own_rows < measured.tokens_in_cache {
        true => format!("  (rows of {} tokens, shared)", report::count(measured.own_rows)),
        false => String::new(),
    };
    format!(
        "{:>9}  {:<7} {:>4}  {:>9} {:>6.3}  {:>9}  {:>9}  {:>10} {:>6} {:>5}  {:>9.1}  {:>5.1}x {:>8.1}x{shared}",
        report::count(measured.tokens_in_cache),
        measured.what,
        measured.rows_kept.map_or_else(|| "-".into(), |kept| kept.to_string()),
        report::bytes(measured.device_bytes),
        measured.device_share_of_dense,
        taken.map_or_else(|| "?".into(), report::bytes),
        report::bytes(measured.tier_bytes),
        report::bytes(measured.bytes_moved_per_step as u64),
        percent(measured.hit_rate),
        percent(measured.link_share),
        measured.tokens_per_second,
        measured.bytes_fewer,
        measured.published_bytes_fewer
    )
}

/// Memory and time, a line for each way.
fn charts(report: &Report) -> Vec<Chart> {
    let line = |colour: usize, way: Way, of: &dyn Fn(&Measured) -> f64| {
        let mut points: Vec<(f64, f64)> = report
            .results
            .iter()
            .filter(|measured| measured.what == way.name())
            .map(|measured| (measured.tokens_in_cache as f64, of(measured)))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Series { name: way.name().into(), colour, points, level: false }
    };
    let chart = |title: &str, of: &dyn Fn(&Measured) -> f64| Chart {
        title: title.into(),
        x: "tokens in the cache".into(),
        logarithmic: true,
        share: false,
        series: [Way::Dense, Way::FasaC, Way::FasaM]
            .into_iter()
            .enumerate()
            .map(|(colour, way)| line(colour, way, of))
            .filter(|series| !series.points.is_empty())
            .collect(),
    };
    vec![
        chart("Device memory of the cache (MB)", &|measured| measured.device_bytes as f64 / 1e6),
        chart("Time per token (ms)", &|measured| 1e3 * measured.seconds_per_step),
    ]
}
