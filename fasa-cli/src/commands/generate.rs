//! `fasa generate`: continue a prompt.

use super::batch::Batch;
use crate::methods;
use crate::model::LanguageModel;
use crate::report::{self, Format, TierReport};
use crate::settings::ModelArgs;
use crate::terminal;
use crate::writing::{ChatArgs, SessionArgs, Setup, Stream, WritingArgs};
use anyhow::{Context, Result, bail, ensure};
use fasa_burn::Dtype;
use fasa_burn::generate::{Cancel, Options, Outcome, StopReason};
use fasa_burn::method::Method;
use fasa_burn::sequence::Sequence;
use fasa_burn::session::Session;
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

    /// File with several prompts, one per line: a text, or JSON such as `{"prompt": "...", "budget": "3%"}`, which may also
    /// set `max_new_tokens`, `seed` and `system`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_file", "save_session", "load_session"])]
    prompts: Option<PathBuf>,

    /// Prompts of `--prompts` that are written together; their caches are in memory at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch: usize,

    /// Put the prompt to a model made for conversations, as the message of a user
    #[arg(long)]
    chat: bool,

    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    writing: WritingArgs,

    #[command(flatten)]
    conversation: ChatArgs,

    #[command(flatten)]
    session: SessionArgs,

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
    /// Those of them that a loaded session held.
    held_tokens: usize,
    tokens_seen: usize,
    tokens_kept: usize,
    /// Steps with fewer tokens in the cache attended to all of them; none: all steps did, FASA was never faster here.
    dense_below: Option<usize>,
    dtype: Dtype,
    cache_bytes_per_step: u64,
    cache_bytes_per_step_dense: u64,
    /// The second tier, if keys and values lay there.
    tier: Option<TierReport>,
    prefill_seconds: f64,
    decode_tokens_per_second: Option<f64>,
}

/// A prompt is text; even the longest contexts are far below this.
pub(super) const LARGEST_PROMPT: u64 = 256 << 20;

/// Runs the command.
///
/// # Errors
/// If the prompt cannot be read or does not fit, or the model, profile or parameters are at fault.
pub fn run(args: &Args, cancel: &Cancel) -> Result<()> {
    ensure!(
        args.chat || !args.conversation.is_given(),
        "`--system`, `--chat-template` and `--template-arg` are for conversations; add `--chat`"
    );
    let prompt = if args.prompts.is_some() { String::new() } else { read_prompt(args)? };
    let model = LanguageModel::load(&args.model)?;
    let Setup { options, dense_below } = args.writing.setup(&model, args.model.device, args.chat, cancel)?;
    if let Some(file) = &args.prompts {
        let conversation = args.chat.then_some(&args.conversation);
        let (stops, size, format) = (args.writing.stop.as_slice(), args.batch, args.format);
        return Batch { model: &model, options: &options, stops, conversation, size, format }.run(file);
    }
    let session = args.session.load(&model, &options.method, options.max_new_tokens)?;
    let streaming = args.format == Format::Text;
    let (text, outcome, tier) = match args.chat {
        true => converse(args, &model, &options, session, &prompt, streaming)?,
        false => match continue_text(args, &model, &options, session.sequence, &prompt, streaming)? {
            Some(written) => written,
            None => return Ok(()),
        },
    };
    let method = &options.method;
    if streaming {
        terminal::note(summary(&model, method, &outcome, tier.as_ref()));
        return Ok(());
    }
    let (config, dtype) = (model.decoder.config(), model.decoder.dtype());
    let seen = outcome.prompt_tokens + outcome.tokens.len();
    let chosen = &args.writing.method;
    report::json(&Report {
        model: model.name.clone(),
        method: methods::label(chosen.method, chosen.preset, &chosen.fasa),
        text,
        stop: outcome.stop,
        prompt_tokens: outcome.prompt_tokens,
        held_tokens: outcome.held_tokens,
        tokens_seen: seen,
        tokens_kept: method.kept(seen),
        dense_below: (dense_below < usize::MAX).then_some(dense_below),
        dtype,
        cache_bytes_per_step: method.bytes_per_step(config, seen, dtype),
        cache_bytes_per_step_dense: Method::Dense.bytes_per_step(config, seen, dtype),
        tier,
        prefill_seconds: outcome.prefill.as_secs_f64(),
        decode_tokens_per_second: outcome.tokens_per_second(),
        tokens: outcome.tokens,
    })
}

/// The prompt as a message, and the reply to it.
fn converse(
    args: &Args,
    model: &LanguageModel,
    options: &Options,
    session: Session,
    prompt: &str,
    streaming: bool,
) -> Result<(String, Outcome, Option<TierReport>)> {
    let mut conversation = args.conversation.begin(model, session)?;
    let mut stream = Stream::new(model, &args.writing.stop, streaming);
    let outcome = conversation.ask(prompt, &model.decoder, &model.tokenizer, options, &mut |event| stream.hear(event));
    let (text, outcome) = stream.finish(outcome)?;
    conversation.reply(text.as_str());
    let tier = TierReport::of(conversation.sequence().cache());
    args.session.save_conversation(model, &options.method, &mut conversation)?;
    Ok((text, outcome, tier))
}

/// What follows the prompt; `None` if it was only to be read.
fn continue_text(
    args: &Args,
    model: &LanguageModel,
    options: &Options,
    mut sequence: Sequence,
    prompt: &str,
    streaming: bool,
) -> Result<Option<(String, Outcome, Option<TierReport>)>> {
    let ids = match args.session.load_session {
        None => model.encode_prompt(prompt)?,
        // What follows a text is no start of one.
        Some(_) => [sequence.tokens(), &model.tokenizer.encode(prompt)?].concat(),
    };
    let mut stream = Stream::new(model, &args.writing.stop, streaming);
    let mut listen = |event| stream.hear(event);
    let written = match options.max_new_tokens {
        0 if args.session.save_session.is_some() => {
            model.decoder.read(&mut sequence, &ids, options, &mut listen)?;
            None
        }
        _ => Some(model.decoder.follow(&mut sequence, &ids, options, &mut listen)),
    };
    let written = written.map(|outcome| stream.finish(outcome)).transpose()?;
    let tier = TierReport::of(sequence.cache());
    sequence.truncate(ids.len());
    args.session.save(model, &options.method, &mut sequence, &[])?;
    Ok(written.map(|(text, outcome)| (text, outcome, tier)))
}

/// How a text was written, in one line.
pub(super) fn summary(model: &LanguageModel, method: &Method, outcome: &Outcome, tier: Option<&TierReport>) -> String {
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
    let held = match outcome.held_tokens {
        0 => String::new(),
        held => format!(" behind {} in the cache", report::count(held)),
    };
    let tier = tier.map_or_else(String::new, TierReport::sentence);
    format!(
        "{} tokens read{held} in {:.1} s, {} written{speed}; last step read {} of {} tokens{short}, {} of {} cache bytes ({dtype}){tier}",
        report::count(outcome.prompt_tokens - outcome.held_tokens),
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

/// The text of a file that a person names.
pub(super) fn read_prompt_file(path: &Path) -> Result<String> {
    let size = std::fs::metadata(path)
        .with_context(|| format!("cannot read the prompt `{}`; check the path", path.display()))?
        .len();
    if size > LARGEST_PROMPT {
        bail!("the prompt `{}` is {} long; cut it to 256 MB", path.display(), report::bytes(size));
    }
    std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the prompt `{}`; it must be UTF-8 text", path.display()))
}
