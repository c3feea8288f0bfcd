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
mod needle;
mod recall;
mod rng;
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
}

impl Task {
    /// All tasks, in the order in which they are reported.
    pub const ALL: [Self; 4] = [Self::Needle, Self::Kv, Self::Chain, Self::Recall];

    /// The name in commands and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Needle => "needle",
            Self::Kv => "kv",
            Self::Chain => "chain",
            Self::Recall => "recall",
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
            None => bail!(
                "there is no task {name:?}; choose from {}",
                Self::ALL.map(Self::name).join(", ")
            ),
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
        Self {
            task,
            seed: 0,
            index: 0,
            target_tokens,
            depth: Depth::ANYWHERE,
            haystack: Haystack::Generated,
        }
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
    let laid_out = episode.lay_out(
        &asked.question,
        request.target_tokens,
        request.depth,
        count_tokens,
    )?;
    Ok(Instance {
        context: laid_out.context,
        question: asked.question,
        answer: asked.answer,
        prompt_tokens: laid_out.tokens,
        depth: laid_out.depths.first().copied().unwrap_or_default(),
    })
}

#[cfg(test)]
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
        Request {
            index,
            ..Request::new(task, target_tokens)
        }
    }

    pub(crate) fn instances(task: Task, target_tokens: usize) -> Vec<Instance> {
        (0..20)
            .map(|index| generate(&request(task, target_tokens, index), &count).unwrap())
            .collect()
    }

    /// The question alone, without the frame around it.
    pub(crate) fn question_of(instance: &Instance) -> &str {
        instance
            .question
            .strip_prefix("\nQuestion: ")
            .and_then(|rest| rest.strip_suffix("\nAnswer:"))
            .unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::test_support::{count, instances, request};
    use super::*;

    /// A change here makes every published figure incomparable with the next one.
    #[test]
    fn the_same_seed_gives_the_same_text_for_ever() {
        for (task, length, start, end) in GOLDEN {
            let text = generate(&request(task, 400, 3), &count).unwrap().text();
            assert!(
                text.starts_with(start) && text.ends_with(end) && text.len() == length,
                "{task}: {} {text:?}",
                text.len()
            );
        }
    }

    const GOLDEN: [(Task, usize, &str, &str); 4] = [
        (Task::Needle, 0, "", ""),
        (Task::Kv, 0, "", ""),
        (Task::Chain, 0, "", ""),
        (Task::Recall, 0, "", ""),
    ];

    #[test]
    fn seeds_and_indices_give_other_texts() {
        for task in Task::ALL {
            let base = request(task, 400, 0);
            let first = generate(&base, &count).unwrap();
            assert_eq!(first, generate(&base, &count).unwrap());
            let others = [Request { seed: 1, ..base }, Request { index: 1, ..base }];
            for other in others {
                assert_ne!(first, generate(&other, &count).unwrap());
            }
        }
    }

    #[test]
    fn the_question_does_not_depend_on_the_length() {
        for task in Task::ALL {
            let [short, long] = [600, 4000].map(|target| instances(task, target));
            for (short, long) in short.iter().zip(&long) {
                assert_eq!(
                    (&short.question, &short.answer),
                    (&long.question, &long.answer)
                );
            }
        }
    }

    #[test]
    fn parts_have_their_fixed_ends() {
        for task in Task::ALL {
            for instance in instances(task, 500) {
                assert!(instance.context.ends_with('\n') && !instance.context.ends_with("\n\n"));
                assert!(instance.question.starts_with("\nQuestion: "));
                assert!(instance.question.ends_with("?\nAnswer:"));
                assert!(instance.answer.starts_with(' ') && !instance.answer.ends_with('\n'));
                let gap = if task == Task::Kv { ": " } else { " " };
                assert!(!instance.context.contains("  ") && instance.context.contains(gap));
                assert_eq!(instance.text(), instance.prompt() + &instance.answer + "\n");
            }
        }
    }

    /// The asked fact in the context, by the words that only it has.
    fn place_of(instance: &Instance, task: Task) -> (usize, usize) {
        let value = instance.answer.trim();
        let question = test_support::question_of(instance);
        let is_asked = |piece: &str| match task {
            Task::Recall => {
                let (name, object) = question
                    .strip_prefix("Where does ")
                    .and_then(|rest| rest.strip_suffix('?'))
                    .and_then(|rest| rest.split_once(" keep the "))
                    .unwrap();
                piece.contains(&format!("{name} keeps the {object} in the "))
            }
            _ => piece.contains(value),
        };
        let separator = if task == Task::Kv { "\n" } else { ". " };
        let mut start = 0;
        for piece in instance.context.split_inclusive(separator) {
            if is_asked(piece) {
                return (start, start + piece.trim_end().len());
            }
            start += piece.len();
        }
        panic!("no fact in {instance:?}")
    }

    #[test]
    fn the_asked_fact_stays_in_its_depth_range() {
        for task in Task::ALL {
            for (low, high) in [(0.0, 0.5), (0.4, 0.6), (0.9, 1.0), (0.0, 0.1)] {
                for index in 0..25 {
                    let mut wanted = request(task, 3000, index);
                    wanted.depth = Depth::new(low, high).unwrap();
                    let instance = generate(&wanted, &count).unwrap();
                    assert!((low..=high).contains(&instance.depth));
                    let (begin, end) = place_of(&instance, task);
                    let total = count(&instance.context) as f64;
                    let begin = count(&instance.context[..begin]) as f64 / total;
                    let end = count(&instance.context[..end]) as f64 / total;
                    assert!((begin - instance.depth).abs() < 0.002, "{task} {begin}");
                    assert!(begin > low - 0.002 && end < high + 0.002, "{task} {begin}");
                }
            }
        }
    }

    #[test]
    fn the_whole_chain_stays_in_its_depth_range() {
        for index in 0..25 {
            let mut wanted = request(Task::Chain, 3000, index);
            wanted.depth = Depth::FIRST_HALF;
            let instance = generate(&wanted, &count).unwrap();
            let asked = instance.question.split(' ').nth(4).unwrap();
            let at = instance.context.find(&format!("{asked} copies")).unwrap();
            assert!(count(&instance.context[..at]) * 2 < count(&instance.context));
        }
    }

    #[test]
    fn depths_cover_the_context_evenly() {
        for task in [Task::Needle, Task::Kv, Task::Recall] {
            let mut tenths = [0; 10];
            for index in 0..400 {
                let instance = generate(&request(task, 1000, index), &count).unwrap();
                tenths[(instance.depth * 10.0) as usize] += 1;
            }
            assert!(
                tenths.iter().all(|n| (15..=70).contains(n)),
                "{task}: {tenths:?}"
            );
        }
    }

    #[test]
    fn a_given_text_is_the_prose() {
        let text = "It was late. The lamp had gone out! Nobody spoke.";
        let wanted = Request {
            haystack: Haystack::Text(text),
            ..Request::new(Task::Needle, 600)
        };
        let instance = generate(&wanted, &count).unwrap();
        let prose = sentences(&instance.context)
            .into_iter()
            .map(|sentence| sentence.join(" "))
            .filter(|sentence| !sentence.starts_with("The secret code of"));
        for sentence in prose {
            assert!(text.contains(&sentence), "{sentence}");
        }
    }

    #[test]
    fn short_contexts_keep_the_asked_fact() {
        for task in Task::ALL {
            for index in 0..20 {
                let instance = generate(&request(task, 130, index), &count).unwrap();
                place_of(&instance, task);
            }
        }
    }

    #[test]
    fn names_are_read_and_written() {
        for task in Task::ALL {
            assert_eq!(task.to_string().parse::<Task>().unwrap(), task);
            assert_eq!(
                serde_json::to_string(&task).unwrap(),
                format!("\"{}\"", task.name())
            );
        }
        assert!("Needle".parse::<Task>().is_err());
    }
}
