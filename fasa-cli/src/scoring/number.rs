//! The final answer of a solution, and whether two answers are the same.

use super::pattern;
use anyhow::Result;

/// The final answer to a problem whose answer is a number: behind `####`, in the last box, behind the last "answer is", or
/// else the last number.
///
/// # Errors
/// Never, as the pattern of numbers is sound.
pub fn last_number(text: &str) -> Result<Option<String>> {
    let number = pattern(r"-?\$?\d[\d,]*(?:\.\d+)?")?;
    let first = |part: &str| number.find(part).map(|found| found.as_str().replace(['$', ','], ""));
    let marked = text.rsplit_once("####").and_then(|(_, rest)| first(rest));
    let marked = marked.or_else(|| boxed(text).and_then(first));
    let marked = marked.or_else(|| text.to_ascii_lowercase().rfind("answer is").and_then(|at| first(&text[at..])));
    Ok(marked.or_else(|| number.find_iter(text).last().map(|found| found.as_str().replace(['$', ','], ""))))
}

/// The final answer to a problem whose answer is an expression: in the last box, or behind the last "answer is" up to the
/// end of its sentence.
pub fn expression(text: &str) -> Option<String> {
    if let Some(answer) = boxed(text) {
        return Some(answer.trim().to_owned());
    }
    let at = text.to_ascii_lowercase().rfind("answer is")? + "answer is".len();
    let rest = text[at..].trim_start_matches([' ', ':']).lines().next()?;
    let end = rest.find(". ").unwrap_or(rest.len());
    let answer = rest[..end].trim_end_matches('.').trim().trim_matches('$');
    (!answer.is_empty()).then(|| answer.to_owned())
}

/// What stands in the last `\boxed{…}` or `\fbox{…}`, by counting braces; of `\boxed 7` the first word.
pub fn boxed(text: &str) -> Option<&str> {
    let (at, name) = ["\\boxed", "\\fbox"].into_iter().filter_map(|name| Some((text.rfind(name)?, name))).max()?;
    let rest = &text[at + name.len()..];
    let Some(inner) = rest.strip_prefix('{') else {
        return rest.trim_start().split(['$', ' ', '\n']).next().filter(|word| !word.is_empty());
    };
    let mut depth = 1;
    for (i, c) in inner.char_indices() {
        depth += match c {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        if depth == 0 {
            return Some(&inner[..i]);
        }
    }
    None
}

/// Whether two answers are the same: spelled alike once what does not matter is gone, or numbers of the same value.
///
/// The spelling is that of Hendrycks' MATH (`is_equiv`): no white space, no `\left` and `\right`, no units, degrees,
/// dollars or percents, all fractions and roots in braces. Values are compared exactly, as fractions of whole numbers.
/// Nothing is computed: `2\sqrt{2}` and `\sqrt{8}` differ here, where a computer algebra system would find them equal.
pub fn same(a: &str, b: &str) -> bool {
    let (a, b) = (spelled(a), spelled(b));
    if a == b {
        return true;
    }
    match (value(&a), value(&b)) {
        (Some((p, q)), Some((r, s))) => p.checked_mul(s).is_some_and(|left| Some(left) == r.checked_mul(q)),
        _ => false,
    }
}

/// The answer without what does not matter.
fn spelled(text: &str) -> String {
    let mut text = text.trim().trim_matches('$').replace(['\n'], "").replace("\\!", "").replace("\\\\", "\\");
    for (what, with) in [("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", "")] {
        text = text.replace(what, with);
    }
    for mark in ["^{\\circ}", "^\\circ", "\\$", "\\%", "%"] {
        text = text.replace(mark, "");
    }
    // In the data set a text that begins with a space is always a unit.
    if let Some((number, _)) = text.split_once("\\text{ ") {
        text.truncate(number.len());
    }
    text = text.replace(" .", " 0.").replace("{.", "{0.");
    if text.starts_with('.') {
        text.insert(0, '0');
    }
    if let Some((name, rest)) = text.split_once('=')
        && name.trim().chars().count() <= 2
        && !rest.contains('=')
    {
        text = rest.to_owned();
    }
    let text = fractions(&roots(&text).replace(' ', ""));
    match text.split_once('/') {
        Some((a, b)) if whole(a) && whole(b) => format!("\\frac{{{a}}}{{{b}}}"),
        _ if text == "0.5" => "\\frac{1}{2}".into(),
        _ => text,
    }
}

fn whole(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// `\sqrt3` becomes `\sqrt{3}`.
fn roots(text: &str) -> String {
    let mut parts = text.split("\\sqrt");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("\\sqrt");
        let mut rest = part.chars();
        match rest.next() {
            Some(c) if c != '{' && c != '[' => out.extend(['{', c, '}']),
            Some(c) => out.push(c),
            None => {}
        }
        out.push_str(rest.as_str());
    }
    out
}

/// `\frac12` and `\frac1{2}` become `\frac{1}{2}`.
fn fractions(text: &str) -> String {
    let mut parts = text.split("\\frac");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("\\frac");
        let mut rest = part.chars();
        let (above, below) = (rest.next(), rest.next());
        match (above, below) {
            (Some(a), Some(b)) if a != '{' => {
                out.extend(['{', a, '}']);
                if b == '{' {
                    out.push(b)
                } else {
                    out.extend(['{', b, '}'])
                }
                out.push_str(rest.as_str());
            }
            _ => out.push_str(part),
        }
    }
    out
}

/// A number as numerator and denominator: `-1,234.5`, `\frac{1}{2}` with or without a sign.
fn value(text: &str) -> Option<(i128, i128)> {
    let (sign, text) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    if let Some(rest) = text.strip_prefix("\\frac{") {
        let (above, below) = rest.strip_suffix('}')?.split_once("}{")?;
        let ((p, q), (r, s)) = (decimal(above)?, decimal(below)?);
        let (above, below) = (sign * p.checked_mul(s)?, q.checked_mul(r)?);
        return (below != 0).then_some(if below < 0 { (-above, -below) } else { (above, below) });
    }
    let (p, q) = decimal(text)?;
    Some((sign * p, q))
}

fn decimal(text: &str) -> Option<(i128, i128)> {
    let (sign, text) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let (before, after) = text.split_once('.').unwrap_or((text, ""));
    let mut groups = before.split(',');
    let first = groups.next()?;
    let mut digits = first.to_owned();
    for group in groups {
        // Thousands; `1,2` is a pair.
        if group.len() != 3 || first.is_empty() || first.len() > 3 {
            return None;
        }
        digits.push_str(group);
    }
    digits.push_str(after);
    if digits.len() > 30 || digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((sign * digits.parse::<i128>().ok()?, 10_i128.checked_pow(after.len() as u32)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn final_numbers() {
        for (text, want) in [
            ("She sells 9 eggs.\n#### 18", Some("18")),
            ("so 3 + 4 = 7. The answer is $1,234.50. Then 9", Some("1234.50")),
            ("\\boxed{204} minutes, 5", Some("204")),
            ("It is 12, or rather -13", Some("-13")),
            ("The answer is eight, 8 that is.", Some("8")),
            ("none", None),
        ] {
            assert_eq!(last_number(text).unwrap().as_deref(), want, "{text}");
        }
    }

    #[test]
    fn final_expressions() {
        for (text, want) in [
            (
                "first \\boxed{1}, then $\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}$.",
                Some("\\left( 3, \\frac{\\pi}{2} \\right)"),
            ),
            ("so \\fbox{p - q}", Some("p - q")),
            ("\\boxed 7 and more", Some("7")),
            ("Thus the answer is $\\frac{1}{2}$. Done.", Some("\\frac{1}{2}")),
            ("The answer is: 3.5.", Some("3.5")),
            ("\\boxed{never closed", None),
            ("nothing", None),
        ] {
            assert_eq!(expression(text).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn answers_that_are_the_same() {
        for (a, b) in [
            ("\\frac12", "\\dfrac{1}{2}"),
            ("0.5", "1/2"),
            (".5", "0.50"),
            ("1,234", "1234"),
            ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"),
            ("x = 5", "5"),
            ("90^\\circ", "90"),
            ("\\$18.00", "18"),
            ("50\\%", "50"),
            ("3\\text{ cm}", "3"),
            ("2\\sqrt3", "2\\sqrt{3}"),
            ("-\\frac{2}{4}", "-0.5"),
            ("\\frac{-2}{4}", "-\\frac12"),
            ("\\frac1{72}", "\\frac{1}{72}"),
            ("007", "7"),
        ] {
            assert!(same(a, b) && same(b, a), "{a} and {b}");
        }
        for (a, b) in [
            ("1", "2"),
            ("1,2", "12"),
            ("\\frac{1}{2}", "\\frac{1}{3}"),
            ("\\frac{1}{0}", "\\frac{2}{0}"),
            ("p - q", "q - p"),
            ("", "0"),
            ("1234567890123456789012345678901234567890", "1"),
            ("\\sqrt{8}", "2\\sqrt{2}"),
            ("\\frac", "\\frac{1}{2}"),
        ] {
            assert!(!same(a, b) && !same(b, a), "{a} and {b}");
        }
    }
}
