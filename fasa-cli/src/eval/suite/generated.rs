//! Generated questions about a long context.

use super::Suite;
use crate::eval::question::{Question, Then};
use crate::eval::record::Setting;
use crate::model::LanguageModel;
use crate::tasks::{self, Depth, Haystack, Request, Task};
use anyhow::Result;
use clap::ValueEnum;

/// What is read densely, and what by the method.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// Context and question are read densely, the answer is decoded by the method
    #[default]
    Answer,
    /// Only the context is read densely: harder
    Question,
}

impl Protocol {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Answer => "answer decode",
            Protocol::Question => "question decode",
        }
    }
}

/// Instances of one generated task.
pub struct Generated {
    /// The task.
    pub task: Task,
    /// Tokens of each prompt.
    pub tokens: usize,
    /// Instances.
    pub instances: u64,
    /// The set of instances.
    pub seed: u64,
    /// Where the asked fact lies.
    pub depth: Depth,
    /// What is read densely.
    pub protocol: Protocol,
    /// The prose around the facts, and what to call it; generated, if there is none.
    pub haystack: Option<(String, String)>,
}

impl Suite for Generated {
    fn task(&self) -> String {
        self.task.name().into()
    }

    fn len(&self) -> u64 {
        self.instances
    }

    fn describe(&self, setting: &mut Setting) {
        setting.tokens = self.tokens;
        setting.seed = self.seed;
        setting.protocol = self.protocol.name().into();
        setting.data = match &self.haystack {
            Some((name, text)) => format!("haystack {name}, {} bytes", text.len()),
            None => String::new(),
        };
        if self.depth != Depth::ANYWHERE {
            setting.data = format!("{} depth {}", setting.data, self.depth).trim_start().to_owned();
        }
    }

    fn question(&self, model: &LanguageModel, index: u64) -> Result<Question> {
        let haystack = self.haystack.as_ref().map_or(Haystack::Generated, |(_, text)| Haystack::Text(text));
        let request =
            Request { seed: self.seed, index, depth: self.depth, haystack, ..Request::new(self.task, self.tokens) };
        let instance = tasks::generate(&request, &|text| model.count_tokens(text))?;
        let (prefill, mut tokens) = match self.protocol {
            Protocol::Answer => (model.encode_prompt(&instance.prompt())?, Vec::new()),
            Protocol::Question => {
                (model.encode_prompt(&instance.context)?, model.tokenizer.encode(&instance.question)?)
            }
        };
        // An answer of several values is right value by value.
        let mut answers = Vec::new();
        for (at, value) in instance.answer.split(',').enumerate() {
            if at > 0 {
                tokens.extend(model.tokenizer.encode(",")?);
            }
            let from = tokens.len();
            tokens.extend(model.tokenizer.encode(value)?);
            answers.push(from..tokens.len());
        }
        Ok(Question { prefill, then: Then::Given { tokens, answers } })
    }
}
