//! F1 over words: what an answer and the truth have in common.

use super::{pattern, words};
use anyhow::{Context, Result};
use jieba_rs::Jieba;
use std::collections::HashMap;
use std::path::Path;

/// Punctuation of Chinese texts, as LongBench lists it.
const CHINESE: &str = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏.";

/// Finds the words of Chinese texts, by jieba's algorithm and its dictionary.
pub struct Segmenter(Jieba);

impl Segmenter {
    /// With a dictionary of `word frequency tag` lines. LongBench's scores need the one of the package `jieba`, `dict.txt`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let failed = || format!("cannot read jieba's dictionary `{}`; it is `dict.txt` of the package", path.display());
        let file = std::fs::File::open(path).with_context(failed)?;
        let jieba = Jieba::with_dict(&mut std::io::BufReader::new(file));
        Ok(Self(jieba.with_context(failed)?))
    }

    /// The words, with all that stands between them.
    pub fn words<'t>(&self, text: &'t str) -> Vec<&'t str> {
        self.0.cut(text, true).iter().map(|token| token.word).collect()
    }
}

/// F1 of an English answer: case, ASCII punctuation and articles do not count.
///
/// # Errors
/// Never, as the pattern of articles is sound.
pub fn english(prediction: &str, truth: &str) -> Result<f64> {
    let (prediction, truth) = (plain(prediction)?, plain(truth)?);
    Ok(f1(&words(&prediction).collect::<Vec<_>>(), &words(&truth).collect::<Vec<_>>()))
}

fn plain(text: &str) -> Result<String> {
    let bare: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    Ok(pattern(r"\b(a|an|the)\b")?.replace_all(&bare, " ").into_owned())
}

/// F1 of a Chinese answer, over the words that segmentation finds; case, punctuation and white space do not count.
pub fn chinese(segmenter: &Segmenter, prediction: &str, truth: &str) -> f64 {
    let plain = |text: &str| -> Vec<String> {
        let bare = |word: &str| -> String {
            let lower = word.to_lowercase();
            let kept: String = lower.chars().filter(|c| !c.is_ascii_punctuation() && !CHINESE.contains(*c)).collect();
            words(&kept).collect()
        };
        segmenter.words(text).into_iter().map(bare).filter(|word| !word.is_empty()).collect()
    };
    f1(&plain(prediction), &plain(truth))
}

/// `2 P R / (P + R)` over words, each counted as often as both have it; 0 without a word in common.
fn f1<T: AsRef<str>>(prediction: &[T], truth: &[T]) -> f64 {
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in truth {
        *left.entry(word.as_ref()).or_default() += 1;
    }
    let mut same = 0;
    for word in prediction {
        if let Some(count) = left.get_mut(word.as_ref()).filter(|count| **count > 0) {
            *count -= 1;
            same += 1;
        }
    }
    if same == 0 {
        return 0.0;
    }
    let (precision, recall) = (f64::from(same) / prediction.len() as f64, f64::from(same) / truth.len() as f64);
    2.0 * precision * recall / (precision + recall)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // {cat, sat, on, mat} and {cat, on, mat}: precision 3/4, recall 1, F1 6/7.
        let got = english("The cat sat on the mat.", "A cat, on the mat!").unwrap();
        assert!((got - 6.0 / 7.0).abs() < 1e-12);
        // "yes" counts once: two of three words on both sides.
        assert!((english("yes yes no", "yes no no").unwrap() - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(english("", "x").unwrap(), 0.0);
        assert_eq!(english("the", "an").unwrap(), 0.0); // no word is left
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/questions/dictionary.txt");
        let segmenter = Segmenter::read(Path::new(path)).unwrap();
        assert_eq!(segmenter.words("北京今天天气好"), ["北京", "今天", "天气", "好"]);
        // Alike but for punctuation; and 北京 of 北京 | 天气 and 北京.
        assert_eq!(chinese(&segmenter, "上海交通大学。", "上海交通大学"), 1.0);
        assert!((chinese(&segmenter, "北京天气", "北京") - 2.0 / 3.0).abs() < 1e-12);
        assert!(Segmenter::read(Path::new("no-such-dictionary")).is_err());
    }
}
