//! `fasa chat`: a conversation, turn by turn, over one cache.

use super::generate::{LARGEST_PROMPT, read_prompt_file, summary};
use crate::model::LanguageModel;
use crate::report::{self, Format, TierReport};
use crate::settings::ModelArgs;
use crate::terminal;
use crate::writing::{ChatArgs, SessionArgs, Setup, Stream, WritingArgs};
use anyhow::{Context, Result, ensure};
use console::style;
use fasa_burn::chat::Conversation;
use fasa_burn::generate::{Cancel, Options, Outcome, StopReason};
use serde::Serialize;
use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::Path;

/// Arguments of `fasa chat`.
///
/// Each line is a message; one that ends with a backslash goes on in the next line.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    writing: WritingArgs,

    #[command(flatten)]
    conversation: ChatArgs,

    #[command(flatten)]
    session: SessionArgs,

    /// How to print replies; `json` prints an object per reply, in one line
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What `--format json` prints for each reply.
#[derive(Debug, Serialize)]
struct Report<'a> {
    text: &'a str,
    tokens: &'a [u32],
    stop: StopReason,
    prompt_tokens: usize,
    /// Those of them that were in the cache and were not read again.
    held_tokens: usize,
    prefill_seconds: f64,
    decode_tokens_per_second: Option<f64>,
}

const HELP: &str = "\
/read FILE  the file's text is part of the next message
/new        forget the conversation, but for the system message
/exit       end (so does Ctrl-D)
Ctrl-C stops a reply; a line that ends with \\ goes on in the next one";

/// A line that a person types.
#[derive(Debug, PartialEq)]
enum Line<'a> {
    Message(&'a str),
    Read(&'a str),
    New,
    Help,
    Exit,
    Unknown(&'a str),
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Self {
        let text = line.trim();
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        match word {
            "/new" if rest.is_empty() => Line::New,
            "/exit" | "/quit" if rest.is_empty() => Line::Exit,
            "/help" if rest.is_empty() => Line::Help,
            "/read" if !rest.is_empty() => Line::Read(rest.trim()),
            // A path or a fraction may begin a message, a single word with a slash is a mistyped command.
            _ if word.starts_with('/') && word[1..].chars().all(char::is_alphabetic) && word.len() > 1 => {
                Line::Unknown(word)
            }
            _ => Line::Message(line.trim_end_matches(['\n', '\r'])),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// If the model, profile or parameters are at fault; with the input not from a terminal, also if a message is.
pub fn run(args: &Args, cancel: &Cancel) -> Result<()> {
    let model = LanguageModel::load(&args.model)?;
    let Setup { options, .. } = args.writing.setup(&model, args.model.device, true, cancel)?;
    ensure!(options.max_new_tokens > 0, "`--max-new-tokens` is 0; use at least 1");
    let session = args.session.load(&model, &options.method, options.max_new_tokens)?;
    let mut conversation = args.conversation.begin(&model, session)?;
    let by_hand = std::io::stdin().is_terminal();
    if by_hand {
        terminal::note(format_args!("{}; /help shows what else there is", model.name));
    }
    let mut attached = String::new();
    while let Some(line) = read_line(by_hand, cancel)? {
        let done = match Line::parse(&line) {
            Line::Exit => break,
            Line::Message("") if attached.is_empty() => Ok(()),
            Line::Message(text) => {
                let message = if attached.is_empty() { text.into() } else { format!("{attached}\n{text}") };
                let done = turn(args, &model, &options, &mut conversation, &message);
                if done.is_ok() {
                    attached.clear();
                }
                done
            }
            Line::Read(path) => read_prompt_file(Path::new(path)).map(|text| {
                terminal::note(format_args!("{} of text go with the next message", report::bytes(text.len() as u64)));
                attached = text;
            }),
            Line::New => {
                conversation.start_again();
                attached.clear();
                Ok(())
            }
            Line::Help => {
                terminal::note(HELP);
                Ok(())
            }
            Line::Unknown(word) => Err(anyhow::anyhow!("`{word}` is no command; `/help` shows what there is")),
        };
        match done {
            // A stopped turn is no failure: the conversation goes on without it.
            Err(_) if cancel.is_cancelled() => terminal::note("stopped"),
            Err(error) if by_hand => {
                let _ = terminal::fail(&error);
            }
            done => done?,
        }
        cancel.reset();
    }
    if conversation.sequence().tokens().is_empty() {
        return Ok(());
    }
    args.session.save_conversation(&model, &options.method, &mut conversation)
}

/// Puts `message` to the model and shows the reply.
fn turn(
    args: &Args,
    model: &LanguageModel,
    options: &Options,
    conversation: &mut Conversation,
    message: &str,
) -> Result<()> {
    let streaming = args.format == Format::Text;
    let mut stream = Stream::new(model, &args.writing.stop, streaming);
    let outcome = conversation.ask(message, &model.decoder, &model.tokenizer, options, &mut |event| stream.hear(event));
    let (text, outcome) = stream.finish(outcome)?;
    conversation.reply(text.as_str());
    match streaming {
        true => {
            let tier = TierReport::of(conversation.sequence().cache());
            terminal::note(summary(model, &options.method, &outcome, tier.as_ref()));
            Ok(())
        }
        false => print(&text, &outcome),
    }
}

fn print(text: &str, outcome: &Outcome) -> Result<()> {
    let report = Report {
        text,
        tokens: &outcome.tokens,
        stop: outcome.stop,
        prompt_tokens: outcome.prompt_tokens,
        held_tokens: outcome.held_tokens,
        prefill_seconds: outcome.prefill.as_secs_f64(),
        decode_tokens_per_second: outcome.tokens_per_second(),
    };
    report::text(serde_json::to_string(&report).context("cannot write the reply as JSON")?)
}

/// The next message or command, its continued lines joined; `None` at the end of the input.
fn read_line(by_hand: bool, cancel: &Cancel) -> Result<Option<String>> {
    // Nothing runs that a first Ctrl-C could stop, so it ends the program, as a second one does elsewhere.
    cancel.cancel();
    let mut whole = String::new();
    let line = loop {
        if by_hand {
            let mut out = std::io::stderr().lock();
            let _ = write!(out, "{} ", style(if whole.is_empty() { ">" } else { "." }).for_stderr().bold());
            let _ = out.flush();
        }
        let left = LARGEST_PROMPT.saturating_sub(whole.len() as u64);
        let stdin = std::io::stdin().lock();
        let read = stdin.take(left).read_line(&mut whole).context("cannot read a message; it must be UTF-8 text")?;
        ensure!(whole.len() as u64 != LARGEST_PROMPT, "a message is longer than 256 MB; cut it");
        match whole.strip_suffix('\n').and_then(|text| text.strip_suffix('\\')) {
            Some(text) if read > 0 => whole = format!("{text}\n"),
            _ => break (read > 0 || !whole.is_empty()).then_some(whole),
        }
    };
    cancel.reset();
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        for (line, want) in [
            ("Hello there\n", Line::Message("Hello there")),
            ("  indented", Line::Message("  indented")),
            ("", Line::Message("")),
            ("/new\n", Line::New),
            (" /exit ", Line::Exit),
            ("/quit", Line::Exit),
            ("/read a b.txt\n", Line::Read("a b.txt")),
            ("/read", Line::Unknown("/read")),
            ("/neu", Line::Unknown("/neu")),
            ("/etc/passwd is a file", Line::Message("/etc/passwd is a file")),
            ("/ or \\", Line::Message("/ or \\")),
            ("/1", Line::Message("/1")),
        ] {
            assert_eq!(Line::parse(line), want, "{line:?}");
        }
    }
}
