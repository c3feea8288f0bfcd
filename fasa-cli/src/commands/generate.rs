//! `fasa generate`: continue a prompt.

use crate::crossover::{self, Conditions, DenseBelow, parse_dense_below};
use crate::methods;
use crate::model::LanguageModel;
use crate::report::{self, Format};
use crate::settings::{MethodArgs, ModelArgs, SamplingArgs};
use crate::terminal;
use anyhow::{Context, Result, bail};
use fasa_burn::Dtype;
use fasa_burn::generate::{Cancel, Event, Options, Outcome, StopReason};
use fasa_burn::method::Method;
use serde::Serialize;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

/// Arguments of `fasa generate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The prompt; without it and without --prompt-file, it is read from standard input
    #[arg(conflicts_with = "prompt_file")]
    prompt: Option<String>,

    /// File with the prompt
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,

    /// Write at most this many tokens
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_new_tokens: usize,

    /// Stop before this text (may be given several times)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,

    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    method: MethodArgs,

    /// Attend to everything while fewer tokens are in the cache: a number, or `measured` by `fasa bench crossover` on this
    /// machine for a model of this shape and these settings (0 if it never ran)
    #[arg(long, value_name = "TOKENS", default_value = "measured", value_parser = parse_dense_below)]
    dense_below: DenseBelow,

    #[command(flatten)]
    sampling: SamplingArgs,

    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What `--format json` prints.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    method: String,
    text: String,
    tokens: Vec<u32>,
    stop: StopReason,
    prompt_tokens: usize,
    tokens_seen: usize,
    tokens_kept: usize,
    /// Steps with fewer tokens in the cache attended to all of them; none: all steps did, FASA was never faster here.
    dense_below: Option<usize>,
    dtype: Dtype,
    cache_bytes_per_step: u64,
    cache_bytes_per_step_dense: u64,
    prefill_seconds: f64,
    decode_tokens_per_second: Option<f64>,
}

/// A prompt is text; even the longest contexts are far below this.
const LARGEST_PROMPT: u64 = 256 << 20;

/// Runs the command.
///
/// # Errors
/// If the prompt cannot be read or does not fit, or the model, profile or parameters are at fault.
pub fn run(args: &Args, cancel: &Cancel) -> Result<()> {
    let prompt = read_prompt(args)?;
    let model = LanguageModel::load(&args.model)?;
    let (method, dense_below) = method(args, &model)?;
    let ids = model.encode_prompt(&prompt)?;
    let options = Options {
        method: method.clone(),
        max_new_tokens: args.max_new_tokens,
        sampling: args.sampling.sampling(),
        stop_ids: model.decoder.config().eos_token_ids.clone(),
        cancel: cancel.clone(),
    };
    let streaming = args.format == Format::Text;
    let (text, outcome) = write_text(&model, &ids, &options, &args.stop, streaming)?;
    if streaming {
        terminal::note(summary(&model, &method, &outcome));
        return Ok(());
    }
    let (config, dtype) = (model.decoder.config(), model.decoder.dtype());
    let seen = outcome.prompt_tokens + outcome.tokens.len();
    report::json(&Report {
        model: model.name.clone(),
        method: methods::label(args.method.method, args.method.preset, &args.method.fasa),
        text,
        stop: outcome.stop,
        prompt_tokens: outcome.prompt_tokens,
        tokens_seen: seen,
        tokens_kept: method.kept(seen),
        dense_below: (dense_below < usize::MAX).then_some(dense_below),
        dtype,
        cache_bytes_per_step: method.bytes_per_step(config, seen, dtype),
        cache_bytes_per_step_dense: Method::Dense.bytes_per_step(config, seen, dtype),
        prefill_seconds: outcome.prefill.as_secs_f64(),
        decode_tokens_per_second: outcome.tokens_per_second(),
        tokens: outcome.tokens,
    })
}

/// The method, and under how many tokens in the cache it is dense.
fn method(args: &Args, model: &LanguageModel) -> Result<(Method, usize)> {
    let method = args.method.method(model)?;
    let tokens = match (&method, args.dense_below) {
        (Method::Fasa { budget, .. }, DenseBelow::Measured) => {
            let (device, shape) = (args.model.device.to_string(), crossover::shape(model.decoder.config()));
            let conditions = Conditions::new(&device, shape, model.decoder.dtype(), &args.method.config(), *budget);
            crossover::path().map_or(Ok(0), |path| crossover::recall(&path, &conditions))?
        }
        (Method::Fasa { .. }, DenseBelow::Tokens(tokens)) => tokens,
        (_, DenseBelow::Tokens(_)) => {
            bail!("`--dense-below` is for `--method fasa`; other methods do the same at every length")
        }
        (_, DenseBelow::Measured) => 0,
    };
    Ok((method.dense_below(tokens), tokens))
}

/// Generates and, if asked to, streams the text to stdout. The text ends before the first of `stops`.
fn write_text(
    model: &LanguageModel,
    ids: &[u32],
    options: &Options,
    stops: &[String],
    streaming: bool,
) -> Result<(String, Outcome)> {
    let mut cache = model.decoder.new_cache(ids.len() + 1);
    let mut decoder = model.tokenizer.stream();
    let bar = terminal::progress("reading", "tokens");
    let mut text = StopText::new(stops);
    let mut failure = None;
    let outcome = model.decoder.generate(ids, &mut cache, options, &mut |event| match event {
        Event::Prefill(done, total) => {
            terminal::advance(&bar, done, total);
            true
        }
        Event::Token(token) => match decoder.push(token) {
            Ok(piece) => {
                let ready = text.push(&piece);
                let shown = !streaming || terminal::stream(&ready).is_ok();
                shown && !text.stopped
            }
            Err(error) => {
                failure = Some(error);
                false
            }
        },
    });
    bar.finish_and_clear();
    if let Some(error) = failure {
        return Err(error.into());
    }
    let outcome = outcome?;
    let rest = text.finish(&decoder.flush());
    if streaming {
        // A closed pipe ends the text, it is no failure of this program.
        let _ = terminal::stream(&rest).and_then(|()| terminal::stream("\n"));
    }
    Ok((text.all, outcome))
}

/// Cuts a streamed text before the first stop text, which may come in pieces.
pub(super) struct StopText<'a> {
    stops: &'a [String],
    /// Everything that was let through.
    pub all: String,
    held: String,
    /// Whether a stop text came.
    pub stopped: bool,
}

impl<'a> StopText<'a> {
    pub fn new(stops: &'a [String]) -> Self {
        Self { stops, all: String::new(), held: String::new(), stopped: false }
    }

    /// Adds a piece; returns what is certain not to be part of a stop text.
    pub fn push(&mut self, piece: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(piece);
        let first = self.stops.iter().filter(|s| !s.is_empty()).filter_map(|s| self.held.find(s.as_str())).min();
        if let Some(at) = first {
            self.stopped = true;
            self.held.truncate(at);
            return self.release(at);
        }
        // Hold back the longest end of the text that could begin a stop text.
        let could_begin = |at: &usize| self.stops.iter().any(|s| s.starts_with(&self.held[*at..]));
        let at = self.held.char_indices().map(|(at, _)| at).find(could_begin).unwrap_or(self.held.len());
        self.release(at)
    }

    /// The end of the text: nothing is held back any longer.
    pub fn finish(&mut self, piece: &str) -> String {
        let mut ready = self.push(piece);
        let rest = self.held.len();
        ready.push_str(&self.release(rest));
        ready
    }

    fn release(&mut self, at: usize) -> String {
        let ready: String = self.held.drain(..at).collect();
        self.all.push_str(&ready);
        ready
    }
}

fn summary(model: &LanguageModel, method: &Method, outcome: &Outcome) -> String {
    let (config, dtype) = (model.decoder.config(), model.decoder.dtype());
    let seen = outcome.prompt_tokens + outcome.tokens.len();
    let speed = outcome.tokens_per_second().map_or_else(String::new, |s| format!(", {s:.0} tokens/s"));
    let short = match method {
        Method::Fasa { dense_below, .. } if seen < *dense_below => match dense_below {
            &usize::MAX => " (dense: FASA was not faster on this machine)".into(),
            tokens => format!(" (dense below {} tokens)", report::count(*tokens)),
        },
        _ => String::new(),
    };
    format!(
        "{} tokens read in {:.1} s, {} written{speed}; last step read {} of {} tokens{short}, {} of {} cache bytes ({dtype})",
        report::count(outcome.prompt_tokens),
        outcome.prefill.as_secs_f64(),
        outcome.tokens.len(),
        report::count(method.kept(seen)),
        report::count(seen),
        report::bytes(method.bytes_per_step(config, seen, dtype)),
        report::bytes(Method::Dense.bytes_per_step(config, seen, dtype)),
    )
}

fn read_prompt(args: &Args) -> Result<String> {
    match (&args.prompt, &args.prompt_file) {
        (Some(prompt), _) => Ok(prompt.clone()),
        (None, Some(path)) => read_prompt_file(path),
        (None, None) => {
            let stdin = std::io::stdin();
            if stdin.is_terminal() {
                terminal::note("reading the prompt from the terminal; end it with Ctrl-D");
            }
            let mut text = String::new();
            stdin
                .lock()
                .take(LARGEST_PROMPT)
                .read_to_string(&mut text)
                .context("cannot read the prompt from standard input; it must be UTF-8 text")?;
            Ok(text)
        }
    }
}

fn read_prompt_file(path: &Path) -> Result<String> {
    let size = std::fs::metadata(path)
        .with_context(|| format!("cannot read the prompt `{}`; check the path", path.display()))?
        .len();
    if size > LARGEST_PROMPT {
        bail!("the prompt `{}` is {} long; cut it to 256 MB", path.display(), report::bytes(size));
    }
    std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the prompt `{}`; it must be UTF-8 text", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_texts_may_come_in_pieces() {
        let stops = ["\nQ:".to_owned(), "END".to_owned()];
        let cases: [(&[&str], &str, bool); 5] = [
            (&["a", "b\n", "c"], "ab\nc", false),
            (&["a\n", "Q", ":x"], "a", true),
            (&["aE", "N", "x"], "aENx", false),
            (&["xEND", "y"], "x", true),
            (&["x\n", "Q"], "x\nQ", false),
        ];
        for (pieces, want, stopped) in cases {
            let mut text = StopText::new(&stops);
            let mut shown: String = pieces.iter().map(|p| text.push(p)).collect();
            shown += &text.finish("");
            assert_eq!((shown.as_str(), text.all.as_str(), text.stopped), (want, want, stopped), "{pieces:?}");
        }
    }
}
