//! Generated questions about a long context, with answers that can be checked.
//!
//! Each [`Task`] hides facts in a context and asks for one of them. The wording is fixed, so that models can be trained
//! on it and results compared; everything else is drawn from a seed and an index, and the length is whatever is asked
//! for. [`generate`] makes one [`Instance`]:
//!
//! ```
//! use fasa_cli::tasks::{Request, Task, generate};
//!
//! // Stands for the tokenizer of the model at hand.
//! let count_tokens = |text: &str| text.split([' ', '\n']).count();
//! let instance = generate(&Request::new(Task::Needle, 200), &count_tokens)?;
//! assert!(instance.question.starts_with("\nQuestion: What is the secret code of "));
//! assert!(instance.prompt_tokens <= 200);
//! # Ok::<(), anyhow::Error>(())
//! ```
//!
//! A sequence is the model's start token, the context, the question and the answer. The seam between question and
//! answer lies before a space. Byte-level tokenizers cut there anyway, so the two parts can be encoded apart; for a
//! tokenizer that marks the start of every text, encode the whole and take the answer from its end.

mod chain;
mod depth;
mod episode;
mod haystack;
mod kv;
mod layout;
mod multikey;
mod multivalue;
mod needle;
mod recall;
mod rng;
mod tracking;
mod words;

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use serde::Serialize;

pub use depth::Depth;
pub(crate) use episode::Episode;
pub use haystack::Haystack;
pub(crate) use haystack::sentences;
pub(crate) use rng::{Draws, Purpose};

/// What stands after an answer.
pub const ANSWER_END: &str = "\n";

/// A kind of question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Secret codes in prose, one asked for.
    Needle,
    /// Lines of numbered keys and values without prose, one value asked for.
    Kv,
    /// Variables that copy each other, the value of a copy asked for.
    Chain,
    /// Who keeps what where, one place asked for.
    Recall,
    /// Secret codes and nothing else, one asked for.
    Multikey,
    /// One name with several secret codes, all asked for.
    Multivalue,
    /// Variables that copy each other, all that hold a value asked for.
    Tracking,
}

impl Task {
    /// All tasks, in the order in which they are reported.
    pub const ALL: [Self; 7] =
        [Self::Needle, Self::Kv, Self::Chain, Self::Recall, Self::Multikey, Self::Multivalue, Self::Tracking];

    /// Those that the shipped models were trained on, and chunks are calibrated on. The others are worded after RULER.
    pub const SIMPLE: [Self; 4] = [Self::Needle, Self::Kv, Self::Chain, Self::Recall];

    /// The name in commands and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Needle => "needle",
            Self::Kv => "kv",
            Self::Chain => "chain",
            Self::Recall => "recall",
            Self::Multikey => "multikey",
            Self::Multivalue => "multivalue",
            Self::Tracking => "tracking",
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

impl FromStr for Task {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|task| task.name() == name) {
            Some(task) => Ok(task),
            None => bail!("there is no task {name:?}; choose from {}", Self::ALL.map(Self::name).join(", ")),
        }
    }
}

/// What to generate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request<'a> {
    /// The kind of question.
    pub task: Task,
    /// Chooses a whole set of instances.
    pub seed: u64,
    /// Chooses one instance of the set.
    pub index: u64,
    /// Upper bound for start token, context and question together.
    pub target_tokens: usize,
    /// Where the asked fact lies.
    pub depth: Depth,
    /// The prose around the facts.
    pub haystack: Haystack<'a>,
}

impl Request<'_> {
    /// Seed 0, index 0, generated prose, the asked fact anywhere.
    pub const fn new(task: Task, target_tokens: usize) -> Self {
        Self { task, seed: 0, index: 0, target_tokens, depth: Depth::ANYWHERE, haystack: Haystack::Generated }
    }
}

/// One question with its context and answer. The text is `context`, `question`, `answer` and [`ANSWER_END`], put
/// together as they are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Instance {
    /// Filler and facts, ending with a line break.
    pub context: String,
    /// From `\nQuestion:` to `\nAnswer:`.
    pub question: String,
    /// A space and the value.
    pub answer: String,
    /// Start token, context and question.
    pub prompt_tokens: usize,
    /// How far into the context the asked fact begins, 0 to 1; for `chain` the statement that holds the value.
    pub depth: f64,
}

impl Instance {
    /// Context and question: what a model reads before it answers.
    pub fn prompt(&self) -> String {
        [&*self.context, &self.question].concat()
    }

    /// The whole text, as a model is trained on it.
    pub fn text(&self) -> String {
        [&*self.context, &self.question, &self.answer, ANSWER_END].concat()
    }
}

/// Makes one instance. Its prompt is at most `target_tokens` long and at most about one sentence shorter.
///
/// `count_tokens` counts the tokens of a text without special tokens; one more is reserved for the start token. Errors
/// when the target has no room for the question and what answers it, or when the haystack text is empty.
pub fn generate(request: &Request<'_>, count_tokens: &dyn Fn(&str) -> usize) -> Result<Instance> {
    let draws = Draws::new(Purpose::Evaluation, request.task, request.seed, request.index);
    let episode = Episode::draw(draws, request.task, 1, request.haystack)?;
    let Some(asked) = episode.asked().first().cloned() else {
        bail!("the {} task has no question to ask", request.task);
    };
    let laid_out = episode.lay_out(&asked.question, request.target_tokens, request.depth, count_tokens)?;
    Ok(Instance {
        context: laid_out.context,
        question: asked.question,
        answer: asked.answer,
        prompt_tokens: laid_out.tokens,
        depth: laid_out.depths.first().copied().unwrap_or_default(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod test_support {
    use super::*;

    /// Counts as a byte-level tokenizer cuts before it merges: words with the space before them, single digits, line
    /// breaks, other signs.
    pub(crate) fn count(text: &str) -> usize {
        let mut tokens = 0;
        let mut in_word = false;
        for c in text.chars() {
            let letter = c.is_alphabetic();
            tokens += usize::from(c != ' ' && !(letter && in_word));
            in_word = letter;
        }
        tokens
    }

    pub(crate) fn request(task: Task, target_tokens: usize, index: u64) -> Request<'static> {
        Request { index, ..Request::new(task, target_tokens) }
    }

    pub(crate) fn instances(task: Task, target_tokens: usize) -> Vec<Instance> {
        (0..20).map(|index| generate(&request(task, target_tokens, index), &count).unwrap()).collect()
    }

    /// The question alone, without the frame around it.
    pub(crate) fn question_of(instance: &Instance) -> &str {
        instance.question.strip_prefix("\nQuestion: ").and_then(|rest| rest.strip_suffix("\nAnswer:")).unwrap()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
