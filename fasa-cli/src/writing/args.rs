//! Arguments of commands that write text.

use super::SamplingArgs;
use crate::crossover::{self, Conditions, DenseBelow, parse_dense_below};
use crate::model::LanguageModel;
use crate::report;
use crate::settings::MethodArgs;
use crate::terminal;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use fasa_burn::DeviceName;
use fasa_burn::chat::{ChatTemplate, Conversation, Message, Role};
use fasa_burn::config::GenerationConfig;
use fasa_burn::generate::{Cancel, Options};
use fasa_burn::method::Method;
use fasa_burn::sequence::Sequence;
use fasa_burn::session::{self, Session};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Tokens written where neither the command line nor the model's author says otherwise.
const MAX_NEW_TOKENS: usize = 128;

/// How a text is written.
#[derive(Debug, Clone, Args)]
pub struct WritingArgs {
    /// Write at most this many tokens [default: as generation_config.json says, else 128]
    #[arg(long, value_name = "N")]
    pub max_new_tokens: Option<usize>,

    /// Stop before this text (may be given several times)
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,

    /// Stop at these token ids instead of those that the model's files name
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub eos_token_id: Vec<u32>,

    /// Decode as if the model had no generation_config.json
    #[arg(long)]
    pub ignore_generation_config: bool,

    /// How decode steps attend
    #[command(flatten)]
    pub method: MethodArgs,

    /// Attend to everything while fewer tokens are in the cache: a number, or `measured` by `fasa bench crossover` on this
    /// machine for a model of this shape and these settings (0 if it never ran)
    #[arg(long, value_name = "TOKENS", default_value = "measured", value_parser = parse_dense_below)]
    pub dense_below: DenseBelow,

    /// How the next token is drawn
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// What arguments and files come to.
pub struct Setup {
    /// How to continue a prompt.
    pub options: Options,
    /// Steps with fewer tokens in the cache attend to all of them.
    pub dense_below: usize,
}

impl WritingArgs {
    /// What these arguments and the model's files come to; `chat` if the text is a conversation.
    ///
    /// # Errors
    /// If a file is damaged or does not belong to the model, or an argument does not fit it.
    pub fn setup(&self, model: &LanguageModel, device: DeviceName, chat: bool, cancel: &Cancel) -> Result<Setup> {
        let file = match &model.folder {
            Some(folder) if !self.ignore_generation_config && model.file.is_none() => GenerationConfig::read(folder)?,
            _ => GenerationConfig::default(),
        };
        let (method, dense_below) = self.method(model, device)?;
        let sampling = self.sampling.sampling(&file);
        if !sampling.is_greedy() && self.sampling.temperature.is_none() {
            terminal::note(format_args!(
                "drawing as generation_config.json says (temperature {}, top-k {}, top-p {}); `--temperature 0` takes the \
                 most likely token",
                sampling.temperature, sampling.top_k, sampling.top_p
            ));
        }
        let options = Options {
            method,
            max_new_tokens: self.max_new_tokens.or(file.max_new_tokens).unwrap_or(MAX_NEW_TOKENS),
            sampling,
            stop_ids: self.stop_ids(model, &file, chat),
            cancel: cancel.clone(),
        };
        Ok(Setup { options, dense_below })
    }

    /// The ids that end a text: those given, else those of `generation_config.json`, else those of `config.json`; a reply
    /// also ends at the tokenizer's own end token.
    fn stop_ids(&self, model: &LanguageModel, file: &GenerationConfig, chat: bool) -> Vec<u32> {
        if !self.eos_token_id.is_empty() {
            return self.eos_token_id.clone();
        }
        let mut ids = match file.eos_token_ids.is_empty() {
            true => model.decoder.config().eos_token_ids.clone(),
            false => file.eos_token_ids.clone(),
        };
        if let Some(settings) = model.tokenizer_settings.as_ref().filter(|_| chat) {
            ids.extend(settings.token_id("eos_token", &model.tokenizer));
        }
        ids
    }

    /// The method, and under how many tokens in the cache it is dense.
    fn method(&self, model: &LanguageModel, device: DeviceName) -> Result<(Method, usize)> {
        let method = self.method.method(model)?;
        let tokens = match (&method, self.dense_below) {
            (Method::Fasa { budget, .. }, DenseBelow::Measured) => {
                let (device, shape) = (device.to_string(), crossover::shape(model.decoder.config()));
                let conditions = Conditions::new(&device, shape, model.decoder.dtype(), &self.method.config(), *budget);
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
}

/// How messages become a prompt.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Conversation")]
pub struct ChatArgs {
    /// What holds for the whole conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// Jinja template of the conversation [default: that of the model]
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,

    /// A variable of the template, such as `enable_thinking=false` (may be given several times)
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_argument)]
    pub template_arg: Vec<(String, serde_json::Value)>,
}

impl ChatArgs {
    /// Whether any of them was given.
    pub fn is_given(&self) -> bool {
        self.system.is_some() || self.chat_template.is_some() || !self.template_arg.is_empty()
    }

    /// The template.
    ///
    /// # Errors
    /// If there is none, or it is damaged.
    pub fn template(&self, model: &LanguageModel) -> Result<ChatTemplate> {
        let settings = model.tokenizer_settings.as_ref();
        if let Some(file) = &self.chat_template {
            return Ok(ChatTemplate::read_file(file, settings)?);
        }
        let folder = model.folder.as_deref().filter(|_| model.file.is_none());
        let found = ChatTemplate::find(folder, settings)?;
        found.with_context(|| {
            format!(
                "`{}` has no chat template (chat_template.jinja, or `chat_template` in tokenizer_config.json): it was not \
                 made for conversations; pass one as `--chat-template`, or use `fasa generate` without `--chat`",
                model.name
            )
        })
    }

    /// The conversation that a session holds, or a new one.
    ///
    /// # Errors
    /// As [`template`](Self::template), and if a system message is given for a conversation that has begun.
    pub fn begin(&self, model: &LanguageModel, session: Session) -> Result<Conversation> {
        let template = self.template(model)?;
        let mut messages = session.messages;
        ensure!(
            self.system.is_none() || messages.is_empty(),
            "`--system` comes before a conversation, and the loaded session has begun one; leave it out"
        );
        messages.extend(self.messages());
        Ok(Conversation::new(template, self.arguments(), messages, session.sequence))
    }

    /// What a new conversation begins with.
    pub fn messages(&self) -> Vec<Message> {
        self.system.iter().map(|text| Message::new(Role::System, text)).collect()
    }

    /// Further variables of the template.
    pub fn arguments(&self) -> BTreeMap<String, serde_json::Value> {
        self.template_arg.iter().cloned().collect()
    }
}

/// The value is JSON where it can be, else text.
fn parse_argument(text: &str) -> Result<(String, serde_json::Value)> {
    let Some((name, value)) = text.split_once('=').filter(|(name, _)| !name.trim().is_empty()) else {
        bail!("`{text}` is no variable with its value; write for example `enable_thinking=false`");
    };
    Ok((name.trim().into(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

/// Texts that were read before.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Saved sessions")]
pub struct SessionArgs {
    /// Save what was read, so that it need not be read again: the prompt (with `--max-new-tokens 0`, nothing is written
    /// behind it), or the conversation
    #[arg(long, value_name = "FILE")]
    pub save_session: Option<PathBuf>,

    /// Continue a saved session
    #[arg(long, value_name = "FILE")]
    pub load_session: Option<PathBuf>,
}

impl SessionArgs {
    /// The saved session, or an empty one; `room` more tokens fit before its cache grows.
    ///
    /// # Errors
    /// If the file is damaged or of another model.
    pub fn load(&self, model: &LanguageModel, method: &Method, room: usize) -> Result<Session> {
        match &self.load_session {
            Some(path) => Ok(session::load(path, &model.decoder, method, room)?),
            None => Ok(Session { sequence: Sequence::new(&model.decoder, room), messages: Vec::new() }),
        }
    }

    /// Saves what `sequence` holds, if asked to.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(
        &self,
        model: &LanguageModel,
        method: &Method,
        sequence: &mut Sequence,
        messages: &[Message],
    ) -> Result<()> {
        let Some(path) = &self.save_session else { return Ok(()) };
        let bytes = session::save(path, &model.decoder, method, sequence, messages)?;
        let (tokens, bytes) = (report::count(sequence.tokens().len()), report::bytes(bytes));
        terminal::note(format_args!("{tokens} tokens saved in `{}` ({bytes})", path.display()));
        Ok(())
    }

    /// Saves a conversation, if asked to.
    ///
    /// # Errors
    /// As [`save`](Self::save).
    pub fn save_conversation(
        &self,
        model: &LanguageModel,
        method: &Method,
        conversation: &mut Conversation,
    ) -> Result<()> {
        let messages = conversation.messages().to_vec();
        self.save(model, method, conversation.sequence_mut(), &messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn template_variables_are_json_or_text() {
        for (text, want) in [
            ("enable_thinking=false", Some(("enable_thinking", json!(false)))),
            ("n=3", Some(("n", json!(3)))),
            ("date=1 May", Some(("date", json!("1 May")))),
            ("a=b=c", Some(("a", json!("b=c")))),
            ("a=", Some(("a", json!("")))),
            ("a", None),
            ("=1", None),
        ] {
            assert_eq!(parse_argument(text).ok(), want.map(|(name, value)| (name.into(), value)), "{text}");
        }
    }
}
