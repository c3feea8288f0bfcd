//! `tokenizer_config.json`: special tokens by name, and often a chat template.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Tokenizer;
use crate::checkpoint::read_whole;
use crate::error::{Error, Result};

/// The name of the file.
pub const FILE: &str = "tokenizer_config.json";

/// With thousands of added tokens spelled out it has a few megabytes.
const MAX_FILE_BYTES: u64 = 64 << 20;

const COMES_WITH: &str = "use the tokenizer_config.json that comes with the model";

/// What `tokenizer_config.json` says beside the tokenizer itself.
#[derive(Debug, Clone)]
pub struct TokenizerSettings {
    path: PathBuf,
    fields: Map<String, Value>,
}

impl TokenizerSettings {
    /// Reads the file in `folder`; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, else as [`from_json`](Self::from_json).
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        match path.exists() {
            true => Self::from_json(&read_whole(&path, MAX_FILE_BYTES)?, &path).map(Some),
            false => Ok(None),
        }
    }

    /// Reads the contents of the file; `path` is its name in errors.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if it is no JSON object.
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self> {
        let fields = serde_json::from_slice(json)
            .map_err(|error| Error::tokenizer(path, format!("this is no JSON object: {error}"), COMES_WITH))?;
        Ok(Self { path: path.to_owned(), fields })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The special tokens by their names: `bos_token`, `eos_token`, ...
    pub fn special_tokens(&self) -> BTreeMap<&str, &str> {
        let named = self.fields.iter().filter(|(name, _)| name.ends_with("_token"));
        named.filter_map(|(name, value)| Some((name.as_str(), content(value)?))).collect()
    }

    /// The id of the token called `name`, where it is named and the tokenizer has it.
    pub fn token_id(&self, name: &str, tokenizer: &Tokenizer) -> Option<u32> {
        tokenizer.id_of(content(self.fields.get(name)?)?)
    }

    /// The token that begins a prompt: as `add_bos_token` says, else what the tokenizer itself puts in front. `of_config`
    /// is the token of `config.json`, for a file that names none.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if `add_bos_token` is neither true nor false.
    pub fn bos(&self, tokenizer: &Tokenizer, of_config: Option<u32>) -> Result<Option<u32>> {
        match self.fields.get("add_bos_token") {
            Some(Value::Bool(false)) => Ok(None),
            Some(Value::Bool(true)) => Ok(self.token_id("bos_token", tokenizer).or(of_config)),
            None | Some(Value::Null) => tokenizer.front(),
            Some(_) => Err(Error::tokenizer(&self.path, "field `add_bos_token` is neither true nor false", COMES_WITH)),
        }
    }

    /// The chat template: `default` of several.
    ///
    /// # Errors
    /// [`Error::Template`] if there are several without a default, or the field holds something else.
    pub fn chat_template(&self) -> Result<Option<&str>> {
        match self.fields.get("chat_template") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(template)) => Ok(Some(template)),
            Some(Value::Array(list)) => {
                let named = |name: &str| list.iter().find(|one| one["name"] == name)?["template"].as_str();
                named("default").map(Some).ok_or_else(|| {
                    let names: Vec<&str> = list.iter().filter_map(|one| one["name"].as_str()).collect();
                    Error::template(
                        &self.path,
                        format!("field `chat_template` holds {} but no `default`", names.join(", ")),
                        "copy the one you want into a file and pass it as `--chat-template`",
                    )
                })
            }
            Some(_) => Err(Error::template(
                &self.path,
                "field `chat_template` is neither a text nor a list of named texts",
                COMES_WITH,
            )),
        }
    }

    /// Checks that the tokens which the file lists with their ids are those of `tokenizer`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] naming the first that differs: the files are of different models.
    pub fn check(&self, tokenizer: &Tokenizer) -> Result<()> {
        let Some(Value::Object(added)) = self.fields.get("added_tokens_decoder") else { return Ok(()) };
        for (id, token) in added {
            let (Ok(id), Some(text)) = (id.parse::<u32>(), content(token)) else {
                let problem = format!("field `added_tokens_decoder.{id}` is no token with its id");
                return Err(Error::tokenizer(&self.path, problem, COMES_WITH));
            };
            let found = tokenizer.id_of(text);
            if found != Some(id) {
                let found = found.map_or("does not have it".to_owned(), |other| format!("gives it the id {other}"));
                return Err(Error::tokenizer(
                    &self.path,
                    format!(
                        "field `added_tokens_decoder` gives the token {text:?} the id {id}, but `{}` {found}",
                        tokenizer.path.display()
                    ),
                    "use tokenizer.json and tokenizer_config.json of the same model",
                ));
            }
        }
        Ok(())
    }
}

/// A token's text, which is written alone or with its properties.
fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn settings(value: Value) -> TokenizerSettings {
        TokenizerSettings::from_json(value.to_string().as_bytes(), Path::new("c.json")).unwrap()
    }

    fn nano() -> Tokenizer {
        Tokenizer::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/nano/tokenizer.json")).unwrap()
    }

    #[test]
    fn tokens_are_texts_or_objects() {
        let read = settings(json!({
            "bos_token": "<|endoftext|>", "eos_token": {"content": "<end>", "lstrip": false}, "pad_token": null,
            "model_max_length": 3
        }));
        assert_eq!(read.special_tokens(), BTreeMap::from([("bos_token", "<|endoftext|>"), ("eos_token", "<end>")]));
        assert_eq!((read.token_id("bos_token", &nano()), read.token_id("eos_token", &nano())), (Some(0), None));
        assert_eq!(read.token_id("pad_token", &nano()), None);
    }

    #[test]
    fn a_prompt_begins_as_the_settings_say() {
        let bos = |value: Value| settings(value).bos(&nano(), Some(7));
        assert_eq!(bos(json!({"add_bos_token": true, "bos_token": "<|endoftext|>"})).unwrap(), Some(0));
        assert_eq!(bos(json!({"add_bos_token": true})).unwrap(), Some(7));
        assert_eq!(bos(json!({"add_bos_token": false, "bos_token": "<|endoftext|>"})).unwrap(), None);
        // nano's tokenizer adds nothing by itself.
        assert_eq!(bos(json!({"bos_token": "<|endoftext|>"})).unwrap(), None);
        assert!(bos(json!({"add_bos_token": "yes"})).is_err());
    }

    #[test]
    fn templates_are_one_or_several_by_name() {
        let list = json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
        for (value, want) in [(json!("x"), Some("x")), (json!(null), None), (list, Some("d"))] {
            assert_eq!(settings(json!({"chat_template": value})).chat_template().unwrap(), want);
        }
        for (value, part) in [(json!(3), "neither"), (json!([{"name": "rag", "template": "t"}]), "rag")] {
            let text = settings(json!({"chat_template": value})).chat_template().unwrap_err().to_string();
            assert!(text.contains("`c.json`") && text.contains("`chat_template`") && text.contains(part), "{text}");
        }
    }

    #[test]
    fn tokens_of_another_tokenizer_are_refused() {
        let with = |id: &str, text: &str| settings(json!({"added_tokens_decoder": {id: {"content": text}}}));
        assert!(with("0", "<|endoftext|>").check(&nano()).is_ok());
        for (id, text, part) in
            [("1", "<|endoftext|>", "id 0"), ("0", "<s>", "does not have it"), ("x", "<s>", "`added_tokens_decoder.x`")]
        {
            let message = with(id, text).check(&nano()).unwrap_err().to_string();
            assert!(message.contains("`c.json`") && message.contains(part), "{message}");
        }
        for json in ["", "[]", "3", "{"] {
            assert!(TokenizerSettings::from_json(json.as_bytes(), Path::new("c.json")).is_err());
        }
    }
}
