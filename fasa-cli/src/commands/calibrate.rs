//! `fasa calibrate`: find the dominant chunks of a model.

use crate::calibration_text::{self, CalibrationSample, Part};
use crate::methods;
use crate::model::LanguageModel;
use crate::report::{self, Format};
use crate::settings::{CriterionName, ModelArgs, Preset, ScopeName};
use crate::terminal;
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use fasa_burn::Dtype;
use fasa_burn::calibrate::{Calibration, Sample};
use fasa_burn::generate::Cancel;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Arguments of `fasa calibrate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Criterion and scope that this preset needs
    #[arg(long, value_enum, default_value_t)]
    preset: Preset,

    /// Criterion, instead of the preset's
    #[arg(long, value_enum)]
    criterion: Option<CriterionName>,

    /// Rank chunks per KV head or per query head, instead of the preset's choice
    #[arg(long, value_enum, value_name = "SCOPE")]
    chunks_per: Option<ScopeName>,

    /// K of the agreement criterion: how many tokens are compared
    #[arg(long, value_name = "K", default_value_t = 256)]
    agreement_k: usize,

    /// Calibrate on this text instead of the built-in one; best with questions about its own far past
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,

    /// Tokens per sample
    #[arg(long, value_name = "N", default_value_t = 2048)]
    tokens: usize,

    /// Samples
    #[arg(long, value_name = "N", default_value_t = 8)]
    samples: usize,

    /// Last tokens of a sample that are judged, with --text
    #[arg(long, value_name = "N", default_value_t = 256)]
    judged: usize,

    /// Steps of the built-in text that are judged
    #[arg(long, value_enum, value_name = "STEPS", default_value_t)]
    judge: Judge,

    /// Draws another built-in text
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Where the profile goes [default: fasa-PRESET.profile beside the model]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Which steps of the built-in text are judged.
///
/// Steps that fetch nothing from far back drown those that do. At 2,048 tokens and a budget of 128, judging everything, the
/// preset `paper` answers 3 of 64 `kv` and `needle` questions on nano and `default` 7 of 12 `kv` questions on a model with
/// four query heads per KV head; judging answers alone, 54 of 64 and 12 of 12. What is lost is a little perplexity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Judge {
    /// Only the steps that fetch an answer from far back
    #[default]
    Answers,
    /// Questions, answers and prose
    Everything,
}

impl Judge {
    fn name(self) -> &'static str {
        match self {
            Judge::Everything => "everything",
            Judge::Answers => "answers",
        }
    }
}

/// What the command did.
#[derive(Debug, Serialize)]
struct Report {
    profile: PathBuf,
    bytes: usize,
    model: String,
    dtype: Dtype,
    criterion: &'static str,
    scope: &'static str,
    samples: usize,
    tokens: usize,
    steps: usize,
    text: String,
    seconds: f64,
}

/// Runs the command.
///
/// # Errors
/// If the model or the text cannot be read, the text is too short, or the profile cannot be written.
pub fn run(args: &Args, cancel: &Cancel) -> Result<()> {
    ensure!(args.samples > 0, "`--samples` is 0; use at least 1");
    ensure!(args.agreement_k > 0, "`--agreement-k` is 0; use at least 1");
    ensure!(
        args.output.is_some() || (args.criterion.is_none() && args.chunks_per.is_none()),
        "with `--criterion` or `--chunks-per` the profile is not the preset's; say where it goes with `--output`"
    );
    let model = LanguageModel::load(&args.model)?;
    let preset = args.preset.config();
    let criterion = args.criterion.map_or(preset.criterion, CriterionName::kind);
    let (samples, text) = samples(args, &model)?;
    let calibration = Calibration {
        criterion,
        agreement_k: args.agreement_k,
        scope: args.chunks_per.map_or(preset.chunk_scope, ScopeName::scope),
        pairing: None,
        text: text.clone(),
    };
    let started = Instant::now();
    let bar = terminal::progress("calibrating", "samples");
    let profile = model
        .decoder
        .calibrate(&samples, &calibration, cancel, &mut |done, total| terminal::advance(&bar, done, total));
    bar.finish_and_clear();
    let profile = profile?;
    let path = args.output.clone().unwrap_or_else(|| methods::profile_path(&model, args.preset));
    write_whole(&path, profile.as_bytes())?;
    let result = Report {
        bytes: profile.as_bytes().len(),
        model: model.name.clone(),
        dtype: model.decoder.dtype(),
        criterion: calibration.criterion.name(),
        scope: calibration.scope.name(),
        samples: samples.len(),
        tokens: samples.iter().map(|s| s.tokens.len()).sum(),
        steps: samples.iter().map(|s| s.judged.len()).sum(),
        text,
        seconds: started.elapsed().as_secs_f64(),
        profile: path,
    };
    match args.format {
        Format::Json => report::json(&result),
        Format::Text => report::text(format_args!(
            "{}: {} per {}, from {} steps in {} samples ({} tokens), {:.1} s",
            result.profile.display(),
            result.criterion,
            result.scope,
            report::count(result.steps),
            result.samples,
            report::count(result.tokens),
            result.seconds
        )),
    }
}

/// The samples, and what to call them in the profile.
fn samples(args: &Args, model: &LanguageModel) -> Result<(Vec<Sample>, String)> {
    let positions = model.decoder.config().max_position_embeddings;
    if args.tokens > positions {
        bail!("`--tokens` is {}, the model has {positions} positions; use at most that many", args.tokens);
    }
    match &args.text {
        None => {
            let texts = calibration_text::samples(args.tokens, args.samples, args.seed, &|t| model.count_tokens(t))?;
            let samples = texts.iter().map(|text| encode(model, text, args.judge)).collect::<Result<_>>()?;
            Ok((samples, format!("built in, seed {}, {} judged", args.seed, args.judge.name())))
        }
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| {
                format!(
                    "cannot read the calibration text `{}`; check the path, and that it is UTF-8 text",
                    path.display()
                )
            })?;
            let window = Windows { tokens: args.tokens, samples: args.samples, judged: args.judged };
            Ok((window.cut(model, &text, path)?, path.display().to_string()))
        }
    }
}

/// A built-in sample as tokens.
pub(crate) fn encode(model: &LanguageModel, text: &CalibrationSample, judge: Judge) -> Result<Sample> {
    let mut tokens = model.encode_prompt(&text.prompt)?;
    let mut judged = Vec::new();
    for (part, piece) in text.pieces() {
        let from = tokens.len();
        tokens.extend(model.tokenizer.encode(piece)?);
        match judge {
            Judge::Everything => judged.extend(from..tokens.len()),
            // The answer's first token is fetched at the token before it; at its last token nothing is fetched any more.
            Judge::Answers if part == Part::Answer => judged.extend(from - 1..tokens.len() - 1),
            Judge::Answers => {}
        }
    }
    Ok(Sample { tokens, judged })
}

/// How a user's text is cut into samples.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Windows {
    /// Tokens of a sample.
    pub(crate) tokens: usize,
    /// Samples, at most.
    pub(crate) samples: usize,
    /// Last tokens that are judged.
    pub(crate) judged: usize,
}

impl Windows {
    /// The first samples of a text.
    pub(crate) fn cut(self, model: &LanguageModel, text: &str, path: &Path) -> Result<Vec<Sample>> {
        let Self { tokens, samples, judged } = self;
        ensure!(
            judged > 0 && judged < tokens,
            "`--judged` is {judged}; use at least 1 and less than `--tokens`, {tokens}"
        );
        let ids = model.tokenizer.encode(text)?;
        let bos = model.decoder.config().bos_token_id;
        let body = tokens - usize::from(bos.is_some());
        let samples: Vec<Sample> = ids
            .chunks_exact(body)
            .take(samples)
            .map(|window| {
                let tokens: Vec<u32> = bos.into_iter().chain(window.iter().copied()).collect();
                Sample { judged: (tokens.len() - judged..tokens.len()).collect(), tokens }
            })
            .collect();
        if samples.is_empty() {
            bail!(
                "`{}` has {} tokens, one sample takes {body}; give a longer text or a smaller `--tokens`",
                path.display(),
                ids.len()
            );
        }
        Ok(samples)
    }
}

/// Writes beside the target first, so that a stopped run never leaves half a profile.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = || format!("cannot write the profile `{}`; choose another place with `--output`", path.display());
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    std::fs::write(&partial, bytes).with_context(failed)?;
    std::fs::rename(&partial, path).with_context(failed)
}
