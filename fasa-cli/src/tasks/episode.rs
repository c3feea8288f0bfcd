//! Facts, the questions about them and the prose around them, before a length is chosen.

use anyhow::Result;

use super::depth::Depth;
use super::haystack::{Filler, Haystack};
use super::kv::Lines;
use super::layout::{Frame, LaidOut, lay_out};
use super::multikey::Needles;
use super::rng::Draws;
use super::words::Words;
use super::{Task, chain, kv, multikey, multivalue, needle, recall, tracking};

/// A question, and the statements in the context that answer it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// In the order in which they must be read.
    pub(super) statements: Vec<String>,
    pub(crate) question: String,
    pub(crate) answer: String,
}

impl Asked {
    pub(super) fn new(statements: Vec<String>, question: &str, value: &str) -> Self {
        Self { statements, question: format!("\nQuestion: {question}\nAnswer:"), answer: format!(" {value}") }
    }
}

/// What one task hides in a context.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) asked: Vec<Asked>,
    /// Facts nobody asks for; the statements of one entry keep their order.
    pub(super) others: Vec<Vec<String>>,
}

/// A context that still has to get its length.
///
/// Facts are drawn first and filler last, so seed and index decide what is asked and the target length only how much
/// stands around it: the same index is the same question at every length that has room for it.
pub(crate) struct Episode<'a> {
    draws: Draws,
    facts: Facts,
    filler: Filler<'a>,
}

impl<'a> Episode<'a> {
    pub(crate) fn draw(mut draws: Draws, task: Task, questions: usize, haystack: Haystack<'a>) -> Result<Self> {
        let words = Words::built_in()?;
        let (facts, filler) = match task {
            Task::Kv => {
                let mut lines = Lines::new();
                let facts = kv::facts(&mut draws, &mut lines, questions);
                (facts, Filler::Lines(lines))
            }
            Task::Multikey => {
                let mut needles = Needles::new(words);
                let facts = multikey::facts(&mut draws, &mut needles, questions);
                (facts, Filler::Needles(needles))
            }
            in_prose => {
                let draw = match in_prose {
                    Task::Needle => needle::facts,
                    Task::Chain => chain::facts,
                    Task::Multivalue => multivalue::facts,
                    Task::Tracking => tracking::facts,
                    Task::Recall | Task::Kv | Task::Multikey => recall::facts,
                };
                let facts = draw(&mut draws, &words, questions);
                (facts, Filler::prose(haystack, words, &mut draws)?)
            }
        };
        Ok(Self { draws, facts, filler })
    }

    /// The questions, in the order in which [`LaidOut::depths`] answers them.
    pub(crate) fn asked(&self) -> &[Asked] {
        &self.facts.asked
    }

    /// Writes the context so that, with one token before it and `tail` after it, it comes as near to `target_tokens`
    /// as whole sentences allow and never exceeds it.
    pub(crate) fn lay_out(
        mut self,
        tail: &str,
        target_tokens: usize,
        depth: Depth,
        count_tokens: &dyn Fn(&str) -> usize,
    ) -> Result<LaidOut> {
        let frame = Frame { tail, target_tokens, depth, count_tokens };
        lay_out(&self.facts, &mut self.filler, &frame, &mut self.draws)
    }
}
