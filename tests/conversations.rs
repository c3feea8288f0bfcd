//! A conversation over one cache is the same as the whole of it read at once.

mod fixture;
#[path = "fixture/model.rs"]
mod model;

use fasa_burn::chat::{ChatTemplate, Conversation, Message, Role};
use fasa_burn::generate::{Cancel, Options, StopReason};
use fasa_burn::method::Method;
use fasa_burn::model::{Decoder, to_host};
use fasa_burn::sampling::Sampling;
use fasa_burn::sequence::Sequence;
use fasa_burn::text::Tokenizer;
use fasa_burn::{Device, Dtype, Error};
use fasa_core::profile::ProfileView;
use fasa_core::{Budget, FasaConfig};
use std::collections::BTreeMap;
use std::path::Path;

const TEMPLATE: &str = "<|endoftext|>{% for message in messages %}
{{ message.role }}: {{ message.content | trim }}
{% endfor %}
assistant:";

const TURNS: [&str; 3] = [
    "The secret code of calm-otter is 31415. The lion and the river were painted golden.",
    "Question: What is the secret code of calm-otter?",
    "Naïve 你好?",
];

struct Talk {
    model: Decoder,
    tokenizer: Tokenizer,
}

impl Talk {
    fn new(dtype: Dtype) -> Self {
        let folder = fixture::folder().join("nano");
        let tokenizer = Tokenizer::read(folder.join("tokenizer.json")).expect("a tokenizer");
        Self { model: model::load_as(&folder, &Device::flex(), dtype), tokenizer }
    }

    fn conversation(&self, messages: &[Message]) -> Conversation {
        let template = ChatTemplate::new(TEMPLATE, Path::new("t.jinja"), None).expect("a template");
        Conversation::new(template, BTreeMap::new(), messages.to_vec(), Sequence::new(&self.model, 1))
    }

    fn ask(&self, talk: &mut Conversation, text: &str, options: &Options) -> fasa_burn::Result<(String, [usize; 2])> {
        let outcome = talk.ask(text, &self.model, &self.tokenizer, options, &mut |_| true)?;
        let reply = self.tokenizer.decode(&outcome.tokens).expect("text");
        talk.reply(reply.as_str());
        Ok((reply, [outcome.prompt_tokens, outcome.held_tokens]))
    }
}

fn options(method: Method) -> Options {
    Options { method, max_new_tokens: 12, sampling: Sampling::default(), stop_ids: vec![0], cancel: Cancel::default() }
}

/// A budget that covers the context, so that decode steps compute what a prefill would.
fn covering() -> Method {
    let profile = std::fs::read(fixture::folder().join("nano/fasa-default.profile")).expect("a profile");
    let view = ProfileView::parse(&profile).expect("a profile");
    Method::fasa(&view, FasaConfig::DEFAULT, Budget::Tokens(4096)).expect("it fits")
}

#[test]
fn turns_with_the_cache_kept_equal_the_conversation_at_once() {
    // Keys of one position computed alone and among others differ by rounding.
    for (dtype, method, tolerance) in
        [(Dtype::F32, Method::Dense, 5e-4), (Dtype::F32, covering(), 5e-4), (Dtype::F16, Method::Dense, 2e-2)]
    {
        let talk = Talk::new(dtype);
        let options = options(method);
        let mut kept = talk.conversation(&[Message::new(Role::System, "Be brief.")]);
        let mut before = 0;
        for turn in TURNS {
            let said = kept.messages().to_vec();
            let (reply, [prompt, held]) = talk.ask(&mut kept, turn, &options).expect("a reply");
            // All that was read before is held, and the prompt at least need not be read again.
            assert!(held >= before && (held > 0) == (before > 0), "{held} of {before} tokens are held");
            assert!(prompt - held < 80, "{prompt} tokens, {held} held");
            before = prompt;
            // The same at once, over an empty cache.
            let mut fresh = talk.conversation(&said);
            let (at_once, [fresh_prompt, fresh_held]) = talk.ask(&mut fresh, turn, &options).expect("a reply");
            assert_eq!((at_once, fresh_prompt, fresh_held), (reply, prompt, 0));
            assert_eq!(kept.sequence().tokens(), fresh.sequence().tokens());
            assert_eq!(kept.sequence().tokens().len(), kept.sequence().cache().len());
            for layer in [0, 5] {
                let rows = |talk: &Conversation| {
                    let (keys, values) = talk.sequence().cache().rows(layer).expect("rows");
                    [keys, values].map(|rows| to_host(rows).expect("host"))
                };
                for (kept, fresh) in rows(&kept).into_iter().zip(rows(&fresh)) {
                    let differs = kept.iter().zip(&fresh).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
                    assert!(differs < tolerance, "{dtype} layer {layer}: {differs}");
                }
            }
        }
    }
}

#[test]
fn a_new_conversation_keeps_the_system_message_and_its_cache() {
    let talk = Talk::new(Dtype::F32);
    let options = options(Method::Dense);
    let mut conversation = talk.conversation(&[Message::new(Role::System, "Be brief, and answer in numbers.")]);
    let (first, _) = talk.ask(&mut conversation, TURNS[0], &options).expect("a reply");
    conversation.start_again();
    assert_eq!(conversation.messages().len(), 1);
    let (again, [prompt, held]) = talk.ask(&mut conversation, TURNS[0], &options).expect("a reply");
    assert_eq!((again, held), (first, prompt - 1), "all but the last token is held");
}

#[test]
fn a_turn_that_fails_leaves_the_conversation_as_it_was() {
    let talk = Talk::new(Dtype::F32);
    let good = options(Method::Dense);
    let mut conversation = talk.conversation(&[]);
    talk.ask(&mut conversation, TURNS[0], &good).expect("a reply");
    let messages = conversation.messages().to_vec();
    let too_long = "word ".repeat(9000);
    let error = talk.ask(&mut conversation, &too_long, &good).expect_err("too long");
    assert!(matches!(error, Error::Prompt { .. }), "{error}");
    let stopped = options(Method::Dense);
    stopped.cancel.cancel();
    assert!(matches!(talk.ask(&mut conversation, TURNS[1], &stopped), Err(Error::Cancelled)));
    assert_eq!(conversation.messages(), messages);
    assert_eq!(conversation.sequence().tokens().len(), conversation.sequence().cache().len());
    // And it goes on as if nothing had happened.
    let (reply, _) = talk.ask(&mut conversation, TURNS[1], &good).expect("a reply");
    let mut fresh = talk.conversation(&messages);
    assert_eq!(talk.ask(&mut fresh, TURNS[1], &good).expect("a reply").0, reply);
}

/// The penalty of repetitions sees what the cache holds, not only what is read now.
#[test]
fn a_held_text_counts_for_the_penalty_of_repetitions() {
    let talk = Talk::new(Dtype::F32);
    let mut options = options(Method::Dense);
    options.sampling.repetition_penalty = 1.8;
    let ids = talk.tokenizer.encode_prompt(&format!("{} {}", TURNS[0], TURNS[1]), Some(0)).expect("encodes");
    let mut sequence = Sequence::new(&talk.model, 1);
    let whole = talk.model.follow(&mut sequence, &ids, &options, &mut |_| true).expect("text");
    sequence.truncate(ids.len());
    let held = talk.model.follow(&mut sequence, &ids, &options, &mut |_| true).expect("text");
    assert_eq!((&held.tokens, held.stop), (&whole.tokens, whole.stop));
    assert_eq!((held.held_tokens, whole.held_tokens), (ids.len() - 1, 0));
    assert_ne!(whole.stop, StopReason::Cancelled);
}
