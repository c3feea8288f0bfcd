//! Text to token ids and back, also token by token while they come.

mod settings;
mod stream;

use std::path::{Path, PathBuf};

use tokenizers::ModelWrapper;

use crate::checkpoint::read_whole;
use crate::error::{Error, Result};

pub use settings::TokenizerSettings;
pub use stream::TextStream;

/// The largest vocabularies in use take about 40 MB.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// The tokenizer of a checkpoint, as its `tokenizer.json` describes it.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Where it came from, for errors.
    path: PathBuf,
    /// The token with the highest id.
    last: (u32, String),
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, else as [`Tokenizer::from_bytes`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(path, &read_whole(path, MAX_FILE_BYTES)?)
    }

    /// Reads the contents of a `tokenizer.json`; `name` is its name in errors.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if it is damaged, empty or splits words at random.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self> {
        Self::parse(Path::new(name), bytes)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| {
            Error::tokenizer(
                path,
                format!("this is no tokenizer: {error}"),
                "use the tokenizer.json that comes with the model",
            )
        })?;
        // Settings left over from training: they would cut long prompts short without a word, or fill short ones up.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| Error::tokenizer(path, error.to_string(), "remove `truncation`"))?;
        if let ModelWrapper::BPE(bpe) = inner.get_model()
            && bpe.dropout.is_some_and(|dropout| dropout > 0.0)
        {
            return Err(Error::tokenizer(
                path,
                "`model.dropout` splits words at random, so that no result could be repeated",
                "set it to null",
            ));
        }
        let last = inner.get_vocab(true).into_iter().max_by_key(|(_, id)| *id);
        let Some((token, id)) = last else {
            return Err(Error::tokenizer(
                path,
                "the vocabulary is empty",
                "use the tokenizer.json that comes with the model",
            ));
        };
        Ok(Self { inner, path: path.to_owned(), last: (id, token) })
    }

    /// The ids of `text`, with nothing added to it. Special tokens written out in the text become their one id.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer cannot express the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self.inner.encode_fast(text, false) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(self.failed("encode the text", error)),
        }
    }

    /// As [`Tokenizer::encode`], with the id `bos` in front unless the text already begins with it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(&self, text: &str, bos: Option<u32>) -> Result<Vec<u32>> {
        let mut ids = self.encode(text)?;
        if let Some(bos) = bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The text of `ids`, special tokens written out. Ids without a token (models round their vocabulary up) give no
    /// text; bytes that are no UTF-8 give U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, false).map_err(|error| self.failed("decode the token ids", error))
    }

    /// Starts decoding a new text token by token.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream::new(self)
    }

    /// One more than the highest id; not all ids below need have a token.
    pub fn vocab_size(&self) -> usize {
        self.last.0 as usize + 1
    }

    /// Checks that every id this tokenizer can produce is one that the model knows, and that it can produce most of them
    /// (models round their vocabulary up, by a few percent at most).
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if an id is not below the model's `vocab_size`, or less than three quarters of the ids have a
    /// token: it is the tokenizer of another model.
    pub fn check_vocab(&self, vocab_size: usize) -> Result<()> {
        let tokens = self.vocab_size();
        if tokens <= vocab_size && tokens >= vocab_size - vocab_size / 4 {
            return Ok(());
        }
        if tokens < vocab_size {
            return Err(Error::tokenizer(
                &self.path,
                format!("it has {tokens} tokens for a `vocab_size` of {vocab_size}: it belongs to another model"),
                "use the tokenizer.json that comes with the model",
            ));
        }
        let (id, token) = &self.last;
        Err(Error::tokenizer(
            &self.path,
            format!("the token {token:?} has the id {id}, but the model's `vocab_size` is {vocab_size}"),
            "use the tokenizer.json that comes with the model",
        ))
    }

    /// The token that the tokenizer puts in front of every text by itself, if it does.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer fails.
    pub fn front(&self) -> Result<Option<u32>> {
        match self.inner.encode_fast("", true) {
            Ok(encoding) => Ok(encoding.get_ids().first().copied()),
            Err(error) => Err(self.failed("encode the text", error)),
        }
    }

    /// The id of a token, given as it is written.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    fn has_token(&self, id: u32) -> bool {
        self.inner.id_to_token(id).is_some()
    }

    fn failed(&self, task: &str, error: tokenizers::Error) -> Error {
        Error::tokenizer(
            &self.path,
            format!("the tokenizer cannot {task}: {error}"),
            "use the tokenizer.json that comes with the model",
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NANO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/nano/tokenizer.json");

    fn nano() -> Tokenizer {
        Tokenizer::read(NANO).unwrap()
    }

    /// nano's tokenizer with one value replaced.
    fn with(pointer: &str, value: Value) -> Result<Tokenizer> {
        let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(NANO).unwrap()).unwrap();
        *tokenizer.pointer_mut(pointer).unwrap() = value;
        Tokenizer::from_bytes("t.json", tokenizer.to_string().as_bytes())
    }

    #[test]
    fn text_survives_the_round_trip() {
        let tokenizer = nano();
        for text in ["", " ", "The secret code is 12345.\n", "naïve 你好 👩‍👩‍👧 \u{0}\t", "\u{fffd}"] {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
        assert!(tokenizer.encode("").unwrap().is_empty());
        assert_eq!(tokenizer.vocab_size(), 4096);
    }

    #[test]
    fn special_tokens_in_the_text_are_recognised_and_none_is_added() {
        let tokenizer = nano();
        assert_eq!(tokenizer.encode("<|endoftext|>").unwrap(), [0]);
        let plain = tokenizer.encode("Hello").unwrap();
        assert!(!plain.contains(&0));
        let with_bos = [&[0], plain.as_slice()].concat();
        let prompt = |text, bos| tokenizer.encode_prompt(text, bos).unwrap();
        assert_eq!(prompt("Hello", None), plain);
        assert_eq!(prompt("Hello", Some(0)), with_bos);
        assert_eq!(prompt("<|endoftext|>Hello", Some(0)), with_bos);
        assert_eq!(prompt("", Some(0)), [0]);
        assert_eq!(tokenizer.decode(&with_bos).unwrap(), "<|endoftext|>Hello");
    }

    #[test]
    fn ids_without_a_token_give_no_text() {
        let tokenizer = nano();
        let mut ids = tokenizer.encode("one two").unwrap();
        ids.insert(1, 4096);
        ids.push(u32::MAX);
        assert_eq!(tokenizer.decode(&ids).unwrap(), "one two");
    }

    #[test]
    fn the_tokenizer_of_another_model_is_refused() {
        let tokenizer = nano();
        assert!(tokenizer.check_vocab(4096).is_ok());
        assert!(tokenizer.check_vocab(5000).is_ok());
        let text = tokenizer.check_vocab(4095).unwrap_err().to_string();
        assert!(text.contains("tokenizer.json") && text.contains("4095"), "{text}");
        let text = tokenizer.check_vocab(6000).unwrap_err().to_string();
        assert!(text.contains("4096 tokens") && text.contains("6000"), "{text}");
    }

    #[test]
    fn truncation_and_padding_are_switched_off() {
        let truncation = json!({
            "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0
        });
        let padding = json!({
            "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "<|endoftext|>"
        });
        let text = "one two three four five six";
        let expected = nano().encode(text).unwrap();
        for (pointer, value) in [("/truncation", truncation), ("/padding", padding)] {
            let tokenizer = with(pointer, value).unwrap();
            assert_eq!(tokenizer.encode(text).unwrap(), expected, "{pointer}");
        }
    }

    #[test]
    fn damaged_tokenizers_are_errors() {
        let whole = std::fs::read(NANO).unwrap();
        for length in [0, 1, 2, 100, whole.len() / 2, whole.len() - 2] {
            let text = Tokenizer::from_bytes("t.json", &whole[..length]).unwrap_err().to_string();
            assert!(text.contains("`t.json`"), "{text}");
        }
        for bytes in ["{}", "[]", "null", r#"{"model":{"type":"BPE"}}"#] {
            assert!(Tokenizer::from_bytes("t.json", bytes.as_bytes()).is_err(), "{bytes}");
        }
        let text = with("/model/dropout", json!(0.1)).unwrap_err().to_string();
        assert!(text.contains("model.dropout"), "{text}");
        assert!(matches!(Tokenizer::read("absent/tokenizer.json"), Err(Error::Io { .. })));
    }
}
