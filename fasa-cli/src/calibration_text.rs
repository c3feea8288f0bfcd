//! The built-in text that chunks are calibrated on.
//!
//! Calibration watches which frequency chunks of a head tell the tokens that the head attends to from the others. A
//! head that fetches facts from far back shows this only while it fetches something: over plain prose it rests on the
//! first and the latest tokens, and the chunks that look dominant there are those of resting. On the nano model, with a
//! budget of 64 of 2,048 tokens and 8 of 32 chunks per key-value head by attention margin, chunks calibrated on a novel
//! answered 4 of 36 questions of the evaluation tasks; calibrated on these samples, all 36. So each sample asks for
//! facts from its own far past. Part of it is prose, for those who judge every step: by attention margin that gave nano a
//! perplexity of 23.9 on another novel instead of 24.2 (dense: 22.8; 16 chunks, 128 tokens), but it costs answers where
//! many query heads share their chunks, so `fasa calibrate` judges the answers alone unless told otherwise.
//!
//! The questions are worded as the evaluation tasks are, but drawn from keys of their own: no evaluation seed gives a
//! text that was calibrated on.

use anyhow::{Context, Result};
use serde::Serialize;

use crate::tasks::{ANSWER_END, Depth, Draws, Episode, Haystack, Purpose, Task, sentences};

/// A text to read and a text to observe the heads over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CalibrationSample {
    /// Read at once, by dense attention.
    pub prompt: String,
    /// Decoded token by token after the prompt; the steps over it are where chunks are judged.
    pub continuation: String,
}

/// What a piece of a continuation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A question up to and including `Answer:`.
    Question,
    /// What is fetched from far back.
    Answer,
    /// Everything else.
    Prose,
}

impl CalibrationSample {
    /// The continuation in pieces, in order; together they are the whole of it.
    pub fn pieces(&self) -> Vec<(Part, &str)> {
        const ASKED: &str = "Question:";
        const GIVEN: &str = "Answer:";
        let mut pieces = Vec::new();
        for line in self.continuation.split_inclusive('\n') {
            if line.starts_with(ASKED) {
                pieces.push((Part::Question, line));
            } else if let Some(rest) = line.strip_prefix(GIVEN) {
                let (answer, end) = rest.split_at(rest.trim_end_matches('\n').len());
                pieces.extend([(Part::Question, GIVEN), (Part::Answer, answer), (Part::Prose, end)]);
            } else {
                pieces.push((Part::Prose, line));
            }
        }
        pieces
    }
}

/// Questions in one continuation, where the sample is long enough.
const MOST_QUESTIONS: usize = 6;

/// A question and its facts should not crowd out the text they are hidden in.
const TOKENS_PER_QUESTION: usize = 128;

/// Sentences of prose in one continuation, about a third of its tokens.
const PROSE_SENTENCES: usize = 4;

/// How much of the prose may stand in prompts. The rest is for continuations: prose that a prompt already holds would
/// only be copied.
const PROMPT_SHARE: f64 = 0.65;

/// `count` samples of at most `tokens_per_sample` tokens each, start token, prompt and continuation together.
///
/// The tasks take turns, so four samples see each of them once; every other round of the tasks with prose around their
/// facts uses real sentences instead of generated ones. `count_tokens` counts without special tokens. Errors when
/// `tokens_per_sample` has no room for two questions and their facts (some 300 tokens).
pub fn samples(
    tokens_per_sample: usize,
    count: usize,
    seed: u64,
    count_tokens: &dyn Fn(&str) -> usize,
) -> Result<Vec<CalibrationSample>> {
    let prose = sentences(PROSE);
    let cut = (prose.len() as f64 * PROMPT_SHARE) as usize;
    let (told, untold) = prose.split_at(cut);
    let told: Vec<String> = told.iter().map(|sentence| sentence.join(" ")).collect();
    let told = told.join(" ");

    let questions = (tokens_per_sample / TOKENS_PER_QUESTION).clamp(2, MOST_QUESTIONS);
    let rounds = Task::SIMPLE.into_iter().cycle().enumerate().take(count);
    rounds
        .map(|(index, task)| {
            // Shifted by one each round: in the next round a task meets the other kind of prose.
            let haystack = if (index + index / Task::SIMPLE.len()).is_multiple_of(2) {
                Haystack::Generated
            } else {
                Haystack::Text(&told)
            };
            let mut draws = Draws::new(Purpose::Calibration, task, seed, index as u64);
            let start = draws.between(0, untold.len().saturating_sub(PROSE_SENTENCES));
            let passage: Vec<String> =
                (untold[start..].iter().take(PROSE_SENTENCES)).map(|sentence| sentence.join(" ")).collect();
            let episode = Episode::draw(draws, task, questions, haystack)?;
            let continuation = continuation(&episode, &passage.join(" "));
            // Not in the last quarter: a recent window must not be able to answer.
            let depth = Depth::new(0.0, 0.75)?;
            let laid_out = episode
                .lay_out(&continuation, tokens_per_sample, depth, count_tokens)
                .context("the calibration samples are too short")?;
            Ok(CalibrationSample { prompt: laid_out.context, continuation })
        })
        .collect()
}

/// Questions with a passage of prose in their middle, so that whoever observes only a part of the steps still meets
/// both.
fn continuation(episode: &Episode<'_>, passage: &str) -> String {
    let mut text = String::new();
    for (at, asked) in episode.asked().iter().enumerate() {
        if at == episode.asked().len() / 2 {
            text.extend(["\n", passage, "\n"]);
        }
        text.extend([&*asked.question, &asked.answer, ANSWER_END]);
    }
    text
}

/// Written for this purpose, so that no model has read it before, in sentences of ordinary length.
const PROSE: &str = r#"
The ferry to the outer islands left twice a week, and on the days between, the harbour belonged to the gulls. Old
Marten kept the ticket office, though in winter there were few tickets to sell. He swept the floor every morning,
lit the stove, and set the kettle where the draught from the door would not reach it. Then he sat down behind the
little window and read whatever the last boat had brought him. Nobody in the village could say how long he had been
there. Some said thirty years, and some said that he had come with the window.

In the spring of that year a stranger arrived, a surveyor from the capital, with two cases of instruments and a coat
that was much too thin. She had been sent to measure how far the sea had moved. "Moved?" asked Marten, who had never
seen it do anything else. She laughed and explained that the coast was sinking by the width of a finger in ten
years, and that somebody had to write it down. Marten thought about this for some time. At last he said that it
seemed a slow way to lose a house, and offered her tea.

She stayed in the room above the bakery, where the walls were warm before sunrise. By day she walked along the shore
with a pole and a notebook, and by night she copied her figures into a larger book, because paper that has been wet
cannot be trusted. The children followed her at a distance. They had decided that the pole was a weapon, and that
the notebook held the names of people who would be taken away. When she asked one of them to hold the pole upright,
the boy turned pale, but he held it, and from that hour he was the most important person in the school.

What she found did not please her. The old sea wall, which everyone believed to stand on rock, stood on nothing but
clay and good intentions. Wherever she pushed her iron rod into the ground behind it, the rod went down without
complaint. She counted the paces from the wall to the chapel, from the chapel to the well, and from the well to the
first of the houses. Afterwards she sat on the steps of the ticket office for a long while and said nothing. Marten
brought out a second chair.

"You could tell them on Sunday," he said. "They are all in one place on Sundays." She answered that people who have
just sung together do not like to hear about clay. There was also the matter of money, for a new wall costs more
than a village earns in a generation, and the capital was far away and had walls of its own to mend. Still, a thing
that has been measured is harder to forget than a thing that has only been feared. She wrote her report in plain
words, with a drawing that even the mayor could understand, and posted it by the next boat.

Summer came, and with it the visitors, who bought shells that they might have picked up for nothing. The surveyor
had gone by then, but she had left the iron rod behind, leaning in the corner of the office. Marten used it to prop
the door open on hot afternoons. Sometimes he took it down to the wall after closing and pushed it into the ground
at the place she had marked with white paint. It seemed to him that it went in a little more easily each time,
although this may have been his imagination, or the rain.

The answer from the capital arrived in October, in an envelope with a seal as large as a plum. The mayor read it
aloud in the tavern, first quickly and then again slowly, since nobody had believed him. There was to be a wall. It
would be built of stone from the northern quarries, and it would stand on piles of oak driven down through the clay
until they met something that refused to move. The work would take three years and employ every man who could lift a
hammer. For a moment the room was quiet enough to hear the tide. Then somebody began to sing, rather badly, and the
rest joined in.

Marten did not sing. He had noticed a second page, which the mayor had laid face down upon the table, and when the
noise was at its height he turned it over. It was a copy of her drawing, and beneath it stood a single line in her
careful hand. She asked whether the door still needed holding open, and whether he would mind returning the rod, as
there was another coast, further south, that had begun to interest her. He folded the page and put it into his coat.
On the following morning, for the first time that anyone could remember, the ticket office was closed. A notice in
the window said that the clerk had gone to deliver something, and that passengers should pay on the boat.

He was away for eleven days. When he returned, he brought with him a sack of oranges, a cough, and a great many
opinions about railways. The children asked him what the south was like, and he told them that it was much the same
as here, except that the water was on the wrong side. To the mayor he reported that there was no need to hurry. The
engineers would come after the winter storms, when they could see for themselves what the sea was able to do. In the
meantime it would be wise to move the flour from the cellar of the bakery to the loft, and the church books to the
school. People did as he said, partly because he had travelled, and partly because it was the sort of advice that
costs nothing to follow.

The storm that came in January was not the worst on record, but it was the longest. For two nights the wind leaned
against the houses as a tired man leans against a bar. On the second night the wall gave way at the white mark, with
no more noise than a drawer being shut, and by morning there was a boat in the churchyard. Nobody was hurt. The
flour was dry, the books were dry, and the boy who had once held the pole went from door to door and explained, to
anybody who would listen, exactly how it had been foreseen.
"#;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::tasks::test_support::count;
    use crate::tasks::{Request, generate};

    fn made(tokens: usize) -> Vec<CalibrationSample> {
        samples(tokens, 8, 5, &count).unwrap()
    }

    #[test]
    fn samples_are_the_same_each_time() {
        let first = made(1500);
        assert_eq!(first, made(1500));
        assert_ne!(first, samples(1500, 8, 6, &count).unwrap());
        assert_eq!(first[..3], samples(1500, 3, 5, &count).unwrap());
        assert!(first[0].continuation.starts_with(START), "{:?}", first[0].continuation);
    }

    const START: &str = "\nQuestion: What is the secret code of tidy-gate?\nAnswer: 24844\n\nQuestion: ";

    #[test]
    fn lengths_are_kept() {
        for tokens in [400, 1000, 4000] {
            for sample in made(tokens) {
                let all = 1 + count(&(sample.prompt + &sample.continuation));
                // Prose comes in whole sentences of up to some forty tokens.
                assert!((tokens - 60..=tokens).contains(&all), "{all} of {tokens}");
            }
        }
    }

    #[test]
    fn every_task_asks_about_the_first_three_quarters() {
        let openings = ["What is the secret code of ", "What is the value of ", "What does variable ", "Where does "];
        for (at, sample) in made(4000).iter().enumerate() {
            let blocks: Vec<&str> = sample.continuation.split("\nQuestion: ").skip(1).collect();
            assert_eq!(blocks.len(), MOST_QUESTIONS);
            for block in blocks {
                assert!(block.starts_with(openings[at % 4]), "{block}");
                let (_, answer) = block.split_once("\nAnswer: ").unwrap();
                let answer = answer.lines().next().unwrap();
                let begin = sample.prompt.find(answer).unwrap();
                // Names of places recur; numbers do not.
                if at % 4 != 3 {
                    let share = count(&sample.prompt[..begin]) as f64 / count(&sample.prompt) as f64;
                    assert!(share < 0.75, "{share}");
                }
            }
        }
    }

    #[test]
    fn pieces_are_the_whole_continuation() {
        for sample in made(2000) {
            let pieces = sample.pieces();
            assert_eq!(pieces.iter().map(|(_, text)| *text).collect::<String>(), sample.continuation);
            let answers: Vec<&str> = pieces.iter().filter(|(part, _)| *part == Part::Answer).map(|(_, t)| *t).collect();
            assert_eq!(answers.len(), MOST_QUESTIONS);
            assert!(answers.iter().all(|a| a.starts_with(' ') && !a.contains('\n')), "{answers:?}");
        }
    }

    #[test]
    fn questions_are_distinct() {
        for sample in made(2000) {
            let questions: HashSet<&str> =
                (sample.continuation.lines()).filter(|line| line.starts_with("Question:")).collect();
            assert_eq!(questions.len(), MOST_QUESTIONS);
        }
    }

    #[test]
    fn continuations_hold_prose_that_no_prompt_holds() {
        for sample in made(6000) {
            let prose = (sample.continuation.lines())
                .filter(|line| !line.is_empty())
                .find(|line| !line.starts_with("Question:") && !line.starts_with("Answer:"))
                .unwrap();
            let passage = sentences(prose);
            assert_eq!(passage.len(), PROSE_SENTENCES);
            for sentence in passage {
                assert!(!sample.prompt.contains(&sentence.join(" ")));
            }
        }
    }

    #[test]
    fn evaluation_never_asks_what_was_calibrated_on() {
        let calibrated: String = made(1000).into_iter().map(|s| s.continuation).collect();
        for task in [Task::Needle, Task::Kv, Task::Chain] {
            for index in 0..50 {
                let wanted = Request { seed: 5, index, ..Request::new(task, 1000) };
                let instance = generate(&wanted, &count).unwrap();
                assert!(!calibrated.contains(&instance.question));
            }
        }
    }

    #[test]
    fn too_short_is_an_error() {
        assert!(samples(100, 1, 0, &count).is_err());
        assert!(samples(100, 0, 0, &count).unwrap().is_empty());
    }
}
