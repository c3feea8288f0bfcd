//! What a written answer is worth, as published benchmarks count it.
//!
//! | module | what it holds |
//! |---|---|
//! | [`overlap`] | F1 over the words of an answer, English and Chinese |
//! | [`rouge`] | ROUGE-L over the sentences of a summary |
//! | [`choice`] | classes, numbers of paragraphs, counts |
//! | [`code`] | similarity of a line of code |
//! | [`number`] | the final answer of a solution, and whether two answers are the same |
//!
//! The first four are LongBench's (THUDM/LongBench, `metrics.py`) with the packages it uses: `rouge` 1.0.1, `fuzzywuzzy`
//! 0.18 over `difflib`, `jieba` 0.42. `fixtures/questions/metrics.json` holds what those gave, with a
//! dictionary of a few words; a test compares.

pub mod choice;
pub mod code;
pub mod number;
pub mod overlap;
pub mod rouge;

use anyhow::{Context, Result};
use regex::Regex;

/// Words between white space, as Python's `str.split` finds them.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)).filter(|word| !word.is_empty())
}

fn pattern(text: &str) -> Result<Regex> {
    Regex::new(text).with_context(|| format!("`{text}` is no pattern"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Every case of the reference, computed by LongBench's own code.
    #[test]
    fn every_metric_gives_what_longbench_gives() {
        type Case = (String, String, String, Option<Vec<String>>, f64);
        let text = include_str!("../../../fixtures/questions/metrics.json");
        let cases: Vec<Case> = serde_json::from_str(text).unwrap();
        assert!(cases.len() > 40);
        let dictionary = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/questions/dictionary.txt");
        let segmenter = overlap::Segmenter::read(std::path::Path::new(dictionary)).unwrap();
        for (metric, prediction, truth, classes, want) in cases {
            let got = match metric.as_str() {
                "qa_f1_score" => overlap::english(&prediction, &truth).unwrap(),
                "qa_f1_zh_score" => overlap::chinese(&segmenter, &prediction, &truth),
                "rouge_score" => rouge::score(&prediction, &truth),
                "rouge_zh_score" => rouge::chinese(&segmenter, &prediction, &truth),
                "classification_score" => choice::class(&prediction, &truth, &classes.unwrap()),
                "retrieval_score" => choice::paragraph(&prediction, &truth, "Paragraph ").unwrap(),
                "retrieval_zh_score" => choice::paragraph(&prediction, &truth, "段落").unwrap(),
                "count_score" => choice::count(&prediction, &truth).unwrap(),
                "code_sim_score" => code::similarity(&prediction, &truth),
                other => panic!("{other}"),
            };
            assert!(
                (got - want).abs() < 1e-12,
                "{metric} of {prediction:?} and {truth:?}: {got}, LongBench says {want}"
            );
        }
    }
}
