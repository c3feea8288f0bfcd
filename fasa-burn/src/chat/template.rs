//! Chat templates: Jinja, as `transformers` runs it.
//!
//! Templates come from strangers. They see the messages and nothing else of the machine but the date, and what they may
//! do is bounded: every instruction and every byte of text they make costs fuel, of which there is a fixed amount. (Known
//! gap: a list that is added to itself many times is walked for nothing by filters such as `list`; minijinja does not count
//! that.)

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};

use super::{Message, Role, clock};
use crate::checkpoint::read_whole;
use crate::error::{Error, Result};
use crate::text::TokenizerSettings;

/// The template's own file, which goes before `tokenizer_config.json`.
const FILE: &str = "chat_template.jinja";

/// The longest in use have some twenty kilobytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Instructions that a template may run, beside those that its input pays for: well under a second of work, and, at 64
/// bytes for one, at most 128 MB of text.
const FUEL: u64 = 2_000_000;

const NAME: &str = "chat";

/// Turns messages into the text that a model was trained to continue.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    path: PathBuf,
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// The template of a checkpoint: `chat_template.jinja` in its folder, else that in its settings; `None` without either.
    ///
    /// # Errors
    /// As [`read_file`](Self::read_file).
    pub fn find(folder: Option<&Path>, settings: Option<&TokenizerSettings>) -> Result<Option<Self>> {
        if let Some(file) = folder.map(|folder| folder.join(FILE)).filter(|file| file.exists()) {
            return Self::read_file(&file, settings).map(Some);
        }
        let Some(settings) = settings else { return Ok(None) };
        match settings.chat_template()? {
            Some(source) => Self::new(source, settings.path(), Some(settings)).map(Some),
            None => Ok(None),
        }
    }

    /// A template in a file of its own; the special tokens come from `settings`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Template`] if it is no template.
    pub fn read_file(file: &Path, settings: Option<&TokenizerSettings>) -> Result<Self> {
        let bytes = read_whole(file, MAX_FILE_BYTES)?;
        let source = String::from_utf8(bytes)
            .map_err(|_| Error::template(file, "this is no UTF-8 text", "save it as UTF-8, or download it again"))?;
        Self::new(&source, file, settings)
    }

    /// A template from its text; `path` is its name in errors.
    ///
    /// # Errors
    /// [`Error::Template`] if it is no template.
    pub fn new(source: &str, path: &Path, settings: Option<&TokenizerSettings>) -> Result<Self> {
        let mut environment = Environment::new();
        let fault = |error: &minijinja::Error| {
            Error::template(path, format!("this is no chat template: {error}"), "download it again, or pass another")
        };
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| fault(&error))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<Value, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{REFUSED}{message}")))
            },
        );
        environment.add_function("strftime_now", |format: String| {
            clock::now(&format).map_err(|directive| {
                let problem = format!("strftime_now does not know %{directive}");
                minijinja::Error::new(ErrorKind::InvalidOperation, problem)
            })
        });
        let source = without_generation_tags(source);
        environment.add_template_owned(NAME, source).map_err(|error| fault(&error))?;
        let special_tokens = settings.map(TokenizerSettings::special_tokens).unwrap_or_default();
        let special_tokens = special_tokens.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned()));
        Ok(Self { path: path.to_owned(), environment, special_tokens: special_tokens.collect() })
    }

    /// The text of a conversation, up to where the model's next message begins. `arguments` are further variables that a
    /// template may know, such as `enable_thinking`.
    ///
    /// Takes a bounded time and amount of memory, but for the gap that this module's head names.
    ///
    /// # Errors
    /// [`Error::Template`] if the template refuses the messages, fails, does not end, or leaves the system message out.
    pub fn render(&self, messages: &[Message], arguments: &BTreeMap<String, serde_json::Value>) -> Result<String> {
        let mut context: BTreeMap<&str, Value> = BTreeMap::new();
        for (name, text) in &self.special_tokens {
            context.insert(name, Value::from(text.as_str()));
        }
        context.insert("messages", Value::from(Serde(messages)));
        context.insert("add_generation_prompt", Value::from(true));
        for absent in ["tools", "documents"] {
            context.insert(absent, Value::from(()));
        }
        for (name, value) in arguments {
            context.insert(name, Value::from(Serde(value)));
        }
        let given: u64 = messages.iter().map(|message| message.content.len() as u64).sum();
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(FUEL.saturating_add(given)));
        let text = environment
            .get_template(NAME)
            .and_then(|template| template.render(Value::from(Serde(context))))
            .map_err(|error| self.failed(&error))?;
        let system = messages.iter().find(|message| message.role == Role::System);
        if let Some(message) = system.filter(|message| !text.contains(message.content.trim())) {
            let start: String = message.content.chars().take(40).collect();
            let problem = format!("the chat template leaves the system message out (\"{start}\")");
            return Err(Error::template(&self.path, problem, "say it in the first message instead of `--system`"));
        }
        Ok(text)
    }

    fn failed(&self, error: &minijinja::Error) -> Error {
        let detail = error.detail().unwrap_or_default();
        let line = error.line().map_or_else(String::new, |line| format!(" in line {line}"));
        if error.kind() == ErrorKind::OutOfFuel {
            let problem = format!("the chat template does not come to an end{line}: it was stopped");
            return Error::template(&self.path, problem, "download it again, or pass another as `--chat-template`");
        }
        if let Some(message) = detail.strip_prefix(REFUSED) {
            let problem = format!("the chat template refuses the conversation: {message}");
            return Error::template(&self.path, problem, "change the messages (some templates know no system message)");
        }
        let problem = format!("the chat template fails{line}: {error}");
        Error::template(&self.path, problem, "pass another as `--chat-template`")
    }
}

/// Marks what a template raised by itself.
const REFUSED: &str = "refused: ";

/// Templates mark what the model wrote, for training, by a block that adds nothing to the text. It is an extension that
/// `transformers` brings along; here it becomes a block that is always taken.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let Some(end) = rest.find("%}").map(|at| at + 2) else { break };
        let tag = &rest[..end];
        let word = tag[2..tag.len() - 2].trim_matches(|c: char| c.is_whitespace() || "-+".contains(c));
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// `tojson` as `transformers` has it: Python's spacing, nothing escaped for HTML.
fn to_json(value: Value, kwargs: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let failed = |error: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut bytes = Vec::new();
    match indent {
        Some(width) if width > 16 => {
            return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "tojson indents by at most 16"));
        }
        Some(width) => {
            let spaces = " ".repeat(width);
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter)).map_err(failed)?;
        }
        None => {
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Spaced)).map_err(failed)?;
        }
    }
    Ok(Value::from(String::from_utf8_lossy(&bytes).into_owned()))
}

/// `{"a": 1, "b": 2}`.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
