//! `fasa generate --prompts`: several prompts of any lengths, written together.

use super::generate::LARGEST_PROMPT;
use crate::model::LanguageModel;
use crate::report::{self, Format};
use crate::settings::parse_budget;
use crate::terminal;
use crate::writing::{ChatArgs, Stream};
use anyhow::{Context, Result, ensure};
use fasa_burn::chat::{Message, Role};
use fasa_burn::generate::{Options, Outcome, StopReason};
use fasa_burn::method::Method;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One line of the file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    prompt: String,
    /// As `--budget`.
    budget: Option<String>,
    max_new_tokens: Option<usize>,
    seed: Option<u64>,
    /// As `--system`.
    system: Option<String>,
}

/// What `--format json` prints for each prompt, in one line.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// The line of the prompt.
    line: usize,
    text: &'a str,
    tokens: &'a [u32],
    stop: StopReason,
    prompt_tokens: usize,
    tokens_kept: usize,
    prefill_seconds: f64,
    decode_tokens_per_second: Option<f64>,
}

/// What all prompts share.
pub(super) struct Batch<'a> {
    pub model: &'a LanguageModel,
    pub options: &'a Options,
    /// Stop texts.
    pub stops: &'a [String],
    /// How a prompt becomes a message; `None` for plain texts.
    pub conversation: Option<&'a ChatArgs>,
    /// Prompts that are written together.
    pub size: usize,
    pub format: Format,
}

impl Batch<'_> {
    /// Writes what follows each prompt of `file`, in order.
    ///
    /// # Errors
    /// If the file cannot be read, or a prompt does not fit, named by its line.
    pub fn run(&self, file: &Path) -> Result<()> {
        ensure!(self.size > 0, "`--batch` is 0; use at least 1");
        let requests = read(file)?;
        let name = |line: usize| format!("line {line} of `{}`", file.display());
        let mut prepared = Vec::new();
        for (line, request) in &requests {
            let of_line = || name(*line);
            prepared.push((
                *line,
                self.encode(request).with_context(of_line)?,
                self.options(request).with_context(of_line)?,
            ));
        }
        for group in prepared.chunks(self.size) {
            if self.options.cancel.is_cancelled() {
                break;
            }
            let texts: Vec<(&[u32], &Options)> =
                group.iter().map(|(_, ids, options)| (ids.as_slice(), options)).collect();
            let mut streams: Vec<Stream<'_>> =
                group.iter().map(|_| Stream::new(self.model, self.stops, false)).collect();
            let outcomes =
                self.model.decoder.generate_batch(&texts, &mut |number, event| streams[number].hear(event))?;
            for (((line, _, options), stream), outcome) in group.iter().zip(streams).zip(outcomes) {
                let (text, outcome) = stream.finish(outcome).with_context(|| name(*line))?;
                self.print(*line, &text, &outcome, &options.method)?;
            }
        }
        Ok(())
    }

    fn encode(&self, request: &Request) -> Result<Vec<u32>> {
        let Some(chat) = self.conversation else {
            ensure!(request.system.is_none(), "`system` is for conversations; add `--chat`");
            return self.model.encode_prompt(&request.prompt);
        };
        let mut messages = match &request.system {
            Some(text) => vec![Message::new(Role::System, text)],
            None => chat.messages(),
        };
        messages.push(Message::new(Role::User, request.prompt.as_str()));
        Ok(self.model.tokenizer.encode(&chat.template(self.model)?.render(&messages, &chat.arguments())?)?)
    }

    fn options(&self, request: &Request) -> Result<Options> {
        let mut options = self.options.clone();
        if let Some(text) = &request.budget {
            let wanted = parse_budget(text)?;
            match &mut options.method {
                Method::Fasa { budget, .. } | Method::Policy { budget, .. } => *budget = wanted,
                _ => anyhow::bail!("`budget` means nothing to `--method dense`; leave it out"),
            }
        }
        options.max_new_tokens = request.max_new_tokens.unwrap_or(options.max_new_tokens);
        options.sampling.seed = request.seed.unwrap_or(options.sampling.seed);
        Ok(options)
    }

    fn print(&self, line: usize, text: &str, outcome: &Outcome, method: &Method) -> Result<()> {
        if self.format == Format::Text {
            terminal::note(format_args!("line {line}:"));
            return report::text(text);
        }
        let seen = outcome.prompt_tokens + outcome.tokens.len();
        let report = Report {
            line,
            text,
            tokens: &outcome.tokens,
            stop: outcome.stop,
            prompt_tokens: outcome.prompt_tokens,
            tokens_kept: method.kept(seen),
            prefill_seconds: outcome.prefill.as_secs_f64(),
            decode_tokens_per_second: outcome.tokens_per_second(),
        };
        report::text(serde_json::to_string(&report).context("cannot write the result as JSON")?)
    }
}

/// The prompts of a file and their lines, counted from 1. Empty lines are none.
fn read(path: &Path) -> Result<Vec<(usize, Request)>> {
    let size = std::fs::metadata(path)
        .with_context(|| format!("cannot read the prompts `{}`; check the path", path.display()))?
        .len();
    ensure!(
        size <= LARGEST_PROMPT,
        "the prompts `{}` are {} long; cut them to 256 MB",
        path.display(),
        report::bytes(size)
    );
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the prompts `{}`; it must be UTF-8 text", path.display()))?;
    let requests = parse(&text).with_context(|| format!("cannot read the prompts `{}`", path.display()))?;
    ensure!(!requests.is_empty(), "`{}` holds no prompt; write one per line", path.display());
    Ok(requests)
}

fn parse(text: &str) -> Result<Vec<(usize, Request)>> {
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            if !line.trim_start().starts_with('{') {
                return Ok((number, Request { prompt: line.into(), ..Request::default() }));
            }
            let mend = "a line that begins with `{` is JSON with `prompt`, and if you like `budget`, `max_new_tokens`, \
                        `seed` and `system`";
            let request = serde_json::from_str(line).with_context(|| format!("line {number}: {mend}"))?;
            Ok((number, request))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_texts_or_json() {
        let text = "one\n\n  {\"prompt\": \"two\\nlines\", \"budget\": \"3%\", \"seed\": 7}\n three \r\n";
        let plain = |prompt: &str| Request { prompt: prompt.into(), ..Request::default() };
        let json = Request { budget: Some("3%".into()), seed: Some(7), ..plain("two\nlines") };
        assert_eq!(parse(text).expect("valid"), [(1, plain("one")), (3, json), (4, plain(" three "))]);
        for (bad, part) in
            [("{", "line 1"), ("x\n{\"prompt\": 3}", "line 2"), ("{\"prompt\": \"x\", \"temp\": 1}", "line 1")]
        {
            let error = format!("{:#}", parse(bad).expect_err(bad));
            assert!(error.contains(part) && error.contains("`max_new_tokens`"), "{error}");
        }
        assert!(parse("\n \n").expect("valid").is_empty());
    }
}
