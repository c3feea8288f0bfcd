//! ROUGE-L as the package `rouge` counts it, which LongBench uses.
//!
//! It differs from the publication: sentences end at every full stop, words count once however often they stand there,
//! and the words of all sentences' longest common subsequences are one set. Where the package gives up on very long
//! sentences (its recursion is as deep as both have words, Python allows 1,000), this one does not.

use super::overlap::Segmenter;
use super::words;
use std::collections::HashSet;

/// F of ROUGE-L; 0 if one of the texts has no sentence.
pub fn score(prediction: &str, truth: &str) -> f64 {
    let (prediction, truth) = (sentences(prediction), sentences(truth));
    if prediction.is_empty() || truth.is_empty() {
        return 0.0;
    }
    let distinct =
        |sentences: &[Vec<String>]| sentences.iter().flatten().map(String::as_str).collect::<HashSet<_>>().len() as f64;
    let mut common: HashSet<&str> = HashSet::new();
    for wanted in &truth {
        for written in &prediction {
            common.extend(subsequence(wanted, written));
        }
    }
    let (recall, precision) = (common.len() as f64 / distinct(&truth), common.len() as f64 / distinct(&prediction));
    2.0 * (precision * recall / (precision + recall + 1e-8))
}

/// The same for Chinese: the words that segmentation finds, with spaces between them.
pub fn chinese(segmenter: &Segmenter, prediction: &str, truth: &str) -> f64 {
    score(&segmenter.words(prediction).join(" "), &segmenter.words(truth).join(" "))
}

/// Pieces between full stops; a piece of white space alone has one word, the empty one.
fn sentences(text: &str) -> Vec<Vec<String>> {
    let pieces = text.split('.').filter(|piece| !piece.is_empty());
    let split = |piece: &str| {
        let all: Vec<String> = words(piece).map(str::to_owned).collect();
        if all.is_empty() { vec![String::new()] } else { all }
    };
    pieces.map(split).collect()
}

/// Words of the longest common subsequence. Of several, the one that the package finds: from the ends backwards, a step in
/// `b` unless only a step in `a` keeps the length.
fn subsequence<'a>(a: &'a [String], b: &[String]) -> Vec<&'a str> {
    let width = b.len() + 1;
    let mut length = vec![0_u32; (a.len() + 1) * width];
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            length[i * width + j] = if a[i - 1] == b[j - 1] {
                length[(i - 1) * width + j - 1] + 1
            } else {
                length[(i - 1) * width + j].max(length[i * width + j - 1])
            };
        }
    }
    let (mut i, mut j, mut found) = (a.len(), b.len(), Vec::new());
    while i > 0 && j > 0 {
        if a[i - 1] == b[j - 1] {
            found.push(a[i - 1].as_str());
            (i, j) = (i - 1, j - 1);
        } else if length[(i - 1) * width + j] > length[i * width + j - 1] {
            i -= 1;
        } else {
            j -= 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // Distinct words: the cat sat on mat / the cat lay on mat. Common: the cat on mat. P = R = 4/5.
        assert!((score("the cat sat on the mat", "the cat lay on the mat") - 0.8).abs() < 1e-7);
        // The example of the publication: w1 w2 of the one sentence, w1 w3 w5 of the other: 4 of 5, and of 8 written.
        let got = score("w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", "w1 w2 w3 w4 w5");
        assert!((got - 2.0 * (0.5 * 0.8) / 1.3).abs() < 1e-7);
        assert_eq!(score("", "x"), 0.0);
        assert_eq!(score("...", "x"), 0.0);
        assert_eq!(score("x", "y"), 0.0);
    }
}
