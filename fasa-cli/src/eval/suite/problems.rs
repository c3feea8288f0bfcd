//! Problems with one right answer, solved in words: GSM8K, MATH-500, AIME 2024.

use super::{Suite, rows_of};
use crate::eval::question::{Question, Then, Writing};
use crate::eval::record::Setting;
use crate::model::LanguageModel;
use crate::scoring::number;
use anyhow::{Context, Result, ensure};
use fasa_burn::sampling::Sampling;
use serde::Deserialize;
use std::path::Path;

/// Which problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collection {
    /// Grade-school word problems; the answer is a number.
    Gsm8k,
    /// Competition problems; the answer is an expression.
    Math500,
    /// The American Invitational Mathematics Examinations of 2024; the answer is a whole number below 1,000.
    Aime24,
}

impl Collection {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Gsm8k, Self::Math500, Self::Aime24];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gsm8k => "gsm8k",
            Self::Math500 => "math500",
            Self::Aime24 => "aime24",
        }
    }

    /// Worked examples in front of a question, unless told otherwise.
    pub fn shots(self) -> usize {
        if self == Self::Gsm8k { EXAMPLES.len() } else { 0 }
    }
}

/// A line of a file: `question` in GSM8K, `problem` in the others.
#[derive(Debug, Clone, Deserialize)]
struct Row {
    #[serde(alias = "problem")]
    question: String,
    answer: String,
}

/// How answers are written.
#[derive(Debug, Clone)]
pub struct Answers {
    /// Worked examples.
    pub shots: usize,
    /// Answers to each problem; the score is the share that is right, pass@1.
    pub samples: usize,
    /// Tokens of an answer, at most.
    pub max_new_tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
}

/// Problems of one file.
pub struct Problems {
    collection: Collection,
    rows: Vec<Row>,
    /// Names what is in the file.
    content: String,
    answers: Answers,
}

impl Problems {
    /// The first `instances` problems of a file.
    ///
    /// # Errors
    /// If the file cannot be read or is of another kind, or the settings contradict each other.
    pub fn new(collection: Collection, path: &Path, instances: u64, answers: Answers) -> Result<Self> {
        let (mut rows, content): (Vec<Row>, String) = rows_of(path, instances)?;
        ensure!(answers.shots <= EXAMPLES.len(), "`--shots` is {}; there are {}", answers.shots, EXAMPLES.len());
        ensure!(answers.samples > 0, "`--samples` is 0; use at least 1");
        ensure!(
            answers.samples == 1 || !answers.sampling.is_greedy(),
            "`--samples` is {}, and without `--temperature` they would all be the same; set one, such as 0.6",
            answers.samples
        );
        answers.sampling.validate()?;
        if collection == Collection::Gsm8k {
            for (number, row) in rows.iter_mut().enumerate() {
                let found = row.answer.rsplit_once("####").map(|(_, answer)| answer.trim().replace(',', ""));
                row.answer = found.with_context(|| {
                    format!("line {} of `{}` has no `####` in its answer", number + 1, path.display())
                })?;
            }
        }
        Ok(Self { collection, rows, content, answers })
    }
}

impl Suite for Problems {
    fn task(&self) -> String {
        self.collection.name().into()
    }

    fn len(&self) -> u64 {
        self.rows.len() as u64
    }

    fn describe(&self, setting: &mut Setting) {
        let Answers { shots, samples, max_new_tokens, sampling } = &self.answers;
        setting.seed = sampling.seed;
        setting.protocol = format!("{shots} examples, {samples} answers of up to {max_new_tokens} tokens");
        setting.data = format!("file {}", self.content);
        if !sampling.is_greedy() {
            setting.data += &format!(", temperature {}, top-p {}", sampling.temperature, sampling.top_p);
        }
    }

    fn question(&self, model: &LanguageModel, index: u64) -> Result<Question> {
        let row = self.rows.get(index as usize).context("the file has fewer problems")?;
        let prefill = model.encode_prompt(&prompt(self.collection, &row.question, self.answers.shots))?;
        let (positions, room) = (model.decoder.config().max_position_embeddings, self.answers.max_new_tokens);
        ensure!(
            prefill.len() + room <= positions,
            "the problem has {} tokens and its answer up to {room}, the model has {positions} positions; lower \
             `--max-new-tokens` or `--shots`",
            prefill.len()
        );
        let (collection, truth) = (self.collection, row.answer.clone());
        let writing = Writing {
            max_new_tokens: room,
            stops: vec!["Question:".into()],
            stop_ids: Vec::new(),
            not_first: Vec::new(),
            samples: self.answers.samples,
            // Another seed for every problem; samples of a problem count on from it.
            sampling: Sampling { seed: self.answers.sampling.seed ^ (index << 20), ..self.answers.sampling.clone() },
            grade: Box::new(move |text| grade(collection, text, &truth)),
        };
        Ok(Question { prefill, then: Then::Written(writing) })
    }
}

fn grade(collection: Collection, text: &str, truth: &str) -> Result<f64> {
    let answer = match collection {
        Collection::Gsm8k => number::last_number(text)?,
        Collection::Math500 => number::expression(text),
        Collection::Aime24 => match number::expression(text) {
            Some(answer) => Some(answer),
            None => number::last_number(text)?,
        },
    };
    Ok(f64::from(u8::from(answer.is_some_and(|answer| number::same(&answer, truth)))))
}

fn prompt(collection: Collection, question: &str, shots: usize) -> String {
    let ask = match collection {
        Collection::Gsm8k => "",
        _ => "\nPlease reason step by step, and put your final answer within \\boxed{}.",
    };
    let mut text = String::new();
    for (question, solution, answer) in &EXAMPLES[..shots] {
        let end = if collection == Collection::Gsm8k { answer.to_string() } else { format!("\\boxed{{{answer}}}") };
        text += &format!("Question: {question}{ask}\nAnswer: {solution} The answer is {end}.\n\n");
    }
    text + &format!("Question: {question}{ask}\nAnswer:")
}

/// Problems with their solutions, written for this purpose: none is of the collections.
const EXAMPLES: [(&str, &str, &str); 8] = [
    (
        "A baker fills 6 trays with 12 rolls each and sells 50 rolls before noon. How many rolls are left?",
        "There are 6 * 12 = 72 rolls. After 50 are sold, 72 - 50 = 22 are left.",
        "22",
    ),
    (
        "A train leaves with 84 passengers. At the first stop 19 get off and 7 get on. How many are on the train now?",
        "After 19 get off, 84 - 19 = 65 remain. With 7 more there are 65 + 7 = 72.",
        "72",
    ),
    (
        "Nora reads 15 pages a day. Her book has 240 pages and she has read 60. In how many days does she finish?",
        "She has 240 - 60 = 180 pages to go. At 15 pages a day that takes 180 / 15 = 12 days.",
        "12",
    ),
    (
        "A shirt costs $24 and a coat three times as much. What do two shirts and a coat cost together?",
        "The coat costs 3 * 24 = 72 dollars. Two shirts cost 2 * 24 = 48 dollars. Together that is 72 + 48 = 120 dollars.",
        "120",
    ),
    (
        "Half of the 36 pupils of a class play football, and a third of those also play chess. How many play both?",
        "36 / 2 = 18 pupils play football. 18 / 3 = 6 of them also play chess.",
        "6",
    ),
    (
        "A tank holds 500 litres. It is 30 percent full, and 20 litres are added. How many litres are in it?",
        "30 percent of 500 litres are 150 litres. With 20 more there are 150 + 20 = 170 litres.",
        "170",
    ),
    (
        "Omar is 4 years older than Ida, and together they are 30. How old is Omar?",
        "Without the 4 years both would be equally old: (30 - 4) / 2 = 13. So Ida is 13, and Omar is 13 + 4 = 17.",
        "17",
    ),
    (
        "A cyclist rides 18 km in the first hour and 14 km in each of the next 2 hours. How far does she ride?",
        "In the next 2 hours she rides 2 * 14 = 28 km. Together that is 18 + 28 = 46 km.",
        "46",
    ),
];

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn prompts_show_how_to_answer() {
        let text = prompt(Collection::Gsm8k, "How many?", 2);
        assert!(text.starts_with("Question: A baker") && text.ends_with("Question: How many?\nAnswer:"));
        assert_eq!(text.matches("The answer is ").count(), 2);
        let text = prompt(Collection::Aime24, "Find m + n.", 0);
        assert!(text.starts_with("Question: Find m + n.\nPlease reason step by step") && text.contains("\\boxed{}"));
    }

    #[test]
    fn the_examples_are_right_by_the_same_grading() {
        for (_, solution, answer) in EXAMPLES {
            let (plain, boxed) =
                (format!("{solution} The answer is {answer}."), format!("{solution} \\boxed{{{answer}}}"));
            assert_eq!(grade(Collection::Gsm8k, &plain, answer).unwrap(), 1.0, "{plain}");
            assert_eq!(grade(Collection::Aime24, &boxed, answer).unwrap(), 1.0, "{boxed}");
            assert_eq!(grade(Collection::Gsm8k, &plain, "1").unwrap(), 0.0);
            // The last step computes what the answer says.
            assert_eq!(number::last_number(solution).unwrap().as_deref(), Some(answer), "{solution}");
        }
        assert_eq!(grade(Collection::Math500, "It is \\boxed{p-q}.", "p - q").unwrap(), 1.0);
        assert_eq!(grade(Collection::Math500, "I give up", "p - q").unwrap(), 0.0);
        assert_eq!(grade(Collection::Aime24, "so 073", "73").unwrap(), 1.0);
    }
}
