//! `fasa overlap`: do calibrations by other texts, criteria or windows K choose the same chunks?

use super::calibrate::{Judge, Windows, encode};
use crate::calibration_text;
use crate::model::LanguageModel;
use crate::report::{self, Format};
use crate::settings::{CriterionName, ModelArgs, ScopeName};
use crate::terminal;
use anyhow::{Context, Result, ensure};
use fasa_burn::calibrate::{Calibration, Sample};
use fasa_burn::generate::Cancel;
use fasa_core::criterion::CriterionKind;
use fasa_core::profile::ProfileView;
use serde::Serialize;
use std::collections::HashSet;
use std::fmt::Write;
use std::path::PathBuf;

/// Arguments of `fasa overlap`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Profiles to compare, beside what is calibrated here
    #[arg(value_name = "PROFILE")]
    profiles: Vec<PathBuf>,

    /// Calibrates on each of these texts
    #[arg(long, value_name = "FILE,...", value_delimiter = ',')]
    text: Vec<PathBuf>,

    /// Calibrates on the built-in text, drawn from each of these seeds
    #[arg(long, value_name = "SEED,...", value_delimiter = ',')]
    built_in: Vec<u64>,

    /// What ranks the chunks; several are compared with each other
    #[arg(long, value_enum, value_delimiter = ',', default_value = "agreement")]
    criterion: Vec<CriterionName>,

    /// K of the agreement; several are compared with each other
    #[arg(long, value_name = "K,...", value_delimiter = ',', default_value = "256")]
    agreement_k: Vec<usize>,

    /// Ranks chunks per KV head or per query head
    #[arg(long, value_enum, value_name = "SCOPE", default_value = "query-head")]
    chunks_per: ScopeName,

    /// How many of the best chunks are compared
    #[arg(long, value_name = "F,...", value_delimiter = ',', default_value = "8,16")]
    chunks: Vec<u16>,

    /// Tokens per sample
    #[arg(long, value_name = "N", default_value_t = 2048)]
    tokens: usize,

    /// Samples of each text
    #[arg(long, value_name = "N", default_value_t = 8)]
    samples: usize,

    /// Last tokens of a sample of a text that are judged
    #[arg(long, value_name = "N", default_value_t = 256)]
    judged: usize,

    #[command(flatten)]
    model: ModelArgs,

    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What the command found.
#[derive(Debug, Serialize)]
struct Report {
    calibrations: Vec<String>,
    overlaps: Vec<Overlap>,
}

/// How much of their chunks calibrations share.
#[derive(Debug, Serialize)]
struct Overlap {
    chunks: u16,
    /// What drawn sets would share.
    by_chance: f64,
    /// Share of common chunks, averaged over layers and heads, for every pair.
    shares: Vec<Vec<f64>>,
}

/// A calibration: what it is called, and all chunks of every head, best first.
struct Ranked {
    name: String,
    heads: Vec<Vec<u16>>,
}

/// Runs the command.
///
/// # Errors
/// If there are fewer than two calibrations, one fails, or they are of different models or scopes.
pub fn run(args: &Args, cancel: &Cancel) -> Result<()> {
    ensure!(args.samples > 0, "`--samples` is 0; use at least 1");
    let mut all = Vec::new();
    for path in &args.profiles {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read the profile `{}`", path.display()))?;
        let name = path.file_stem().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        all.push(ranked(name, &bytes).with_context(|| format!("`{}`", path.display()))?);
    }
    if !args.text.is_empty() || !args.built_in.is_empty() {
        calibrated(args, cancel, &mut all)?;
    }
    ensure!(
        all.len() > 1,
        "there is nothing to compare; name two profiles, texts with `--text`, seeds with `--built-in`, or several \
         `--agreement-k` or `--criterion`"
    );
    let first = &all[0];
    for other in &all[1..] {
        let shape = |ranked: &Ranked| (ranked.heads.len(), ranked.heads.first().map_or(0, Vec::len));
        ensure!(
            shape(other) == shape(first),
            "`{}` ranks {:?} heads and chunks, `{}` {:?}; compare profiles of one model and one scope",
            first.name,
            shape(first),
            other.name,
            shape(other)
        );
    }
    let count = first.heads.first().map_or(0, Vec::len);
    let mut overlaps = Vec::new();
    for &chunks in &args.chunks {
        ensure!((1..=count).contains(&usize::from(chunks)), "`--chunks` is {chunks}; a head has {count}");
        let share = |a: &Ranked, b: &Ranked| overlap(&a.heads, &b.heads, usize::from(chunks));
        let shares = all.iter().map(|a| all.iter().map(|b| share(a, b)).collect()).collect();
        overlaps.push(Overlap { chunks, by_chance: f64::from(chunks) / count as f64, shares });
    }
    let result = Report { calibrations: all.into_iter().map(|ranked| ranked.name).collect(), overlaps };
    match args.format {
        Format::Json => report::json(&result),
        Format::Text => report::text(table(&result)?),
    }
}

/// Every text by every criterion and K.
fn calibrated(args: &Args, cancel: &Cancel, all: &mut Vec<Ranked>) -> Result<()> {
    let model = LanguageModel::load(&args.model)?;
    let mut texts: Vec<(String, Vec<Sample>)> = Vec::new();
    for seed in &args.built_in {
        let drawn = calibration_text::samples(args.tokens, args.samples, *seed, &|t| model.count_tokens(t))?;
        let samples = drawn.iter().map(|text| encode(&model, text, Judge::default())).collect::<Result<_>>()?;
        texts.push((format!("built in {seed}"), samples));
    }
    let windows = Windows { tokens: args.tokens, samples: args.samples, judged: args.judged };
    for path in &args.text {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the calibration text `{}`", path.display()))?;
        let name = path.file_stem().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        texts.push((name, windows.cut(&model, &text, path)?));
    }
    for (text, samples) in &texts {
        for criterion in &args.criterion {
            let kind = criterion.kind();
            let windows = if kind == CriterionKind::Margin { &[0][..] } else { &args.agreement_k };
            for &k in windows {
                let mut name = text.clone();
                if args.criterion.len() > 1 {
                    name += &format!(", {}", kind.name());
                }
                if k > 0 && args.agreement_k.len() > 1 {
                    name += &format!(", K {k}");
                }
                let calibration = Calibration {
                    criterion: kind,
                    agreement_k: k.max(1),
                    scope: args.chunks_per.scope(),
                    pairing: None,
                    text: name.clone(),
                };
                let bar = terminal::progress("calibrating", "samples");
                let profile = model
                    .decoder
                    .calibrate(samples, &calibration, cancel, &mut |done, all| terminal::advance(&bar, done, all));
                bar.finish_and_clear();
                all.push(ranked(name, profile?.as_bytes())?);
            }
        }
    }
    Ok(())
}

fn ranked(name: String, bytes: &[u8]) -> Result<Ranked> {
    let view = ProfileView::parse(bytes)?;
    let places = (0..view.model().layers as usize).flat_map(|layer| (0..view.rows()).map(move |row| (layer, row)));
    let heads = places.map(|(layer, row)| view.ranking(layer, row).collect()).collect();
    Ok(Ranked { name, heads })
}

/// Share of the first `count` chunks that two rankings have in common, averaged over heads.
fn overlap(a: &[Vec<u16>], b: &[Vec<u16>], count: usize) -> f64 {
    let common = a.iter().zip(b).map(|(a, b)| {
        let chosen: HashSet<&u16> = a.iter().take(count).collect();
        b.iter().take(count).filter(|chunk| chosen.contains(chunk)).count()
    });
    common.sum::<usize>() as f64 / (count * a.len()).max(1) as f64
}

fn table(result: &Report) -> Result<String> {
    let mut out = String::new();
    let width = result.calibrations.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    for overlap in &result.overlaps {
        writeln!(
            out,
            "chunks in common, in percent, of the best {} (by chance {:.0})",
            overlap.chunks,
            100.0 * overlap.by_chance
        )?;
        write!(out, "{:>2} {:<width$}", "", "")?;
        for number in 1..=result.calibrations.len() {
            write!(out, " {number:>5}")?;
        }
        writeln!(out)?;
        for (number, (name, shares)) in result.calibrations.iter().zip(&overlap.shares).enumerate() {
            write!(out, "{:>2} {name:<width$}", number + 1)?;
            for share in shares {
                write!(out, " {:>5.1}", 100.0 * share)?;
            }
            writeln!(out)?;
        }
        writeln!(out)?;
    }
    Ok(out.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_by_hand() {
        let (a, b) = (vec![vec![0, 1, 2, 3], vec![3, 2, 1, 0]], vec![vec![1, 0, 3, 2], vec![0, 1, 2, 3]]);
        assert_eq!(overlap(&a, &a, 2), 1.0);
        // Both of the first head, none of the second.
        assert_eq!(overlap(&a, &b, 2), 0.5);
        assert_eq!(overlap(&a, &b, 1), 0.0);
        // Two of three (1 and 2) of the second head, two of three (0 and 1) of the first.
        assert_eq!(overlap(&a, &b, 3), 4.0 / 6.0);
    }
}
