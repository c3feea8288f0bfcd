//! A conversation that goes on: messages, and the cache of all that was said.

use std::collections::BTreeMap;

use super::{ChatTemplate, Message, Role};
use crate::error::Result;
use crate::generate::{Event, Options, Outcome};
use crate::model::Decoder;
use crate::sequence::Sequence;
use crate::text::Tokenizer;

/// Messages, the template that they go through, and the sequence that holds what was read of them.
///
/// Every turn renders the whole conversation, as if it were prefilled at once, and reads only what the cache does not
/// hold yet: the tokens are those of the whole text whatever the turns were. Where a template writes the past differently
/// than it was written (some drop a reply's thoughts), reading begins again at the first difference.
#[derive(Debug)]
pub struct Conversation {
    template: ChatTemplate,
    arguments: BTreeMap<String, serde_json::Value>,
    messages: Vec<Message>,
    sequence: Sequence,
}

impl Conversation {
    /// A conversation behind `messages`, of which `sequence` may hold a part.
    pub fn new(
        template: ChatTemplate,
        arguments: BTreeMap<String, serde_json::Value>,
        messages: Vec<Message>,
        sequence: Sequence,
    ) -> Self {
        Self { template, arguments, messages, sequence }
    }

    /// What was said so far.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// What the cache holds of it.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// What the cache holds of it, for saving it.
    pub fn sequence_mut(&mut self) -> &mut Sequence {
        &mut self.sequence
    }

    /// Says `text` and lets the model write its reply, which enters the conversation by [`reply`](Self::reply). If
    /// this fails, the conversation is as before.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`], [`Tokenizer::encode`] and [`Decoder::follow`].
    pub fn ask(
        &mut self,
        text: &str,
        decoder: &Decoder,
        tokenizer: &Tokenizer,
        options: &Options,
        listen: &mut dyn FnMut(Event) -> bool,
    ) -> Result<Outcome> {
        self.messages.push(Message::new(Role::User, text));
        let outcome = self
            .template
            .render(&self.messages, &self.arguments)
            .and_then(|rendered| tokenizer.encode(&rendered))
            .and_then(|ids| decoder.follow(&mut self.sequence, &ids, options, listen));
        if outcome.is_err() {
            self.messages.pop();
        }
        outcome
    }

    /// Takes what the model wrote into the conversation, as its reply to the last message.
    pub fn reply(&mut self, text: impl Into<String>) {
        self.messages.push(Message::new(Role::Assistant, text));
    }

    /// Forgets all messages but the system message. The cache keeps what the next conversation may begin with.
    pub fn start_again(&mut self) {
        self.messages.retain(|message| message.role == Role::System);
    }
}
