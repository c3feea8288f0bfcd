//! Answers that choose: a class, a paragraph, a count.

use super::pattern;
use anyhow::{Context, Result};

/// One over the number of classes named, if the right one is among them.
///
/// A class inside the right one's name does not count ("Food" where "Fast food" is right); LongBench drops those while it
/// walks the same list, which passes over the class after each dropped one, and so does this.
pub fn class(prediction: &str, truth: &str, classes: &[String]) -> f64 {
    let mut named: Vec<&String> = classes.iter().filter(|class| prediction.contains(class.as_str())).collect();
    let mut at = 0;
    while let Some(class) = named.get(at).copied() {
        if truth.contains(class.as_str()) && class != truth {
            let first = named.iter().position(|other| *other == class).unwrap_or(at);
            named.remove(first);
        }
        at += 1;
    }
    if named.iter().any(|class| *class == truth) { 1.0 / named.len() as f64 } else { 0.0 }
}

/// Share of the numbers written that are the paragraph's, which stands after `label` in the truth.
///
/// # Errors
/// If no number follows `label` there.
pub fn paragraph(prediction: &str, truth: &str, label: &str) -> Result<f64> {
    let found = pattern(&format!(r"{label}(\d+)"))?.captures(truth);
    let wanted = found.with_context(|| format!("the answer `{truth}` names no `{label}`"))?;
    count(prediction, &wanted[1])
}

/// Share of the numbers written that are the right one; 0 without a number.
///
/// # Errors
/// Never, as the pattern of numbers is sound.
pub fn count(prediction: &str, truth: &str) -> Result<f64> {
    let digits = pattern(r"\d+")?;
    let numbers: Vec<&str> = digits.find_iter(prediction).map(|number| number.as_str()).collect();
    let right = numbers.iter().filter(|number| **number == truth).count();
    Ok(right as f64 / numbers.len().max(1) as f64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let classes = ["Food", "Fast food", "Date"].map(String::from);
        assert_eq!(class("It is a Date", "Date", &classes), 1.0);
        assert_eq!(class("Date or Food", "Date", &classes), 0.5);
        assert_eq!(class("Fast food", "Fast food", &classes), 1.0);
        assert_eq!(class("no idea", "Date", &classes), 0.0);
        // Of a, ab, abc, abcd: `a` goes and `ab` is passed over, `abc` goes. Two are left.
        let nested = ["a", "ab", "abc", "abcd"].map(String::from);
        assert_eq!(class("abcd", "abcd", &nested), 0.5);
        assert_eq!(paragraph("12, no, 13", "Paragraph 12", "Paragraph ").unwrap(), 0.5);
        assert_eq!(paragraph("112", "Paragraph 12", "Paragraph ").unwrap(), 0.0);
        assert_eq!(count("there are 5 of 7", "5").unwrap(), 0.5);
        assert_eq!(count("none", "5").unwrap(), 0.0);
        assert!(paragraph("1", "the first", "Paragraph ").is_err());
    }
}
