//! Typed access to the fields of a JSON object, with errors that name the field.

use std::path::Path;

use serde_json::{Map, Value};

use super::family::Presence;
use crate::error::{Error, Result};

/// A JSON object of a file. A field that is null counts as absent, as in `transformers`.
pub(super) struct Fields<'a> {
    path: &'a Path,
    /// Dotted name of the object, with the trailing dot; empty at the top.
    prefix: String,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(path: &'a Path, object: &'a Map<String, Value>) -> Self {
        Self { path, prefix: String::new(), object }
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Whether the field is there and null: some configurations turn something off so, that is on if it is absent.
    pub(super) fn is_null(&self, name: &str) -> bool {
        self.object.get(name).is_some_and(Value::is_null)
    }

    pub(super) fn presence(&self, presence: Presence) -> Result<bool> {
        match presence {
            Presence::Never => Ok(false),
            Presence::Always => Ok(true),
            Presence::Field(name) => Ok(self.flag(name)?.unwrap_or(false)),
        }
    }

    /// Names of the fields that are not null.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.object.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name.as_str())
    }

    pub(super) fn dotted(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(super) fn error(&self, name: &str, problem: impl Into<String>, mend: impl Into<String>) -> Error {
        Error::config(self.path, self.dotted(name), problem, mend)
    }

    pub(super) fn unsupported(&self, what: impl Into<String>, mend: impl Into<String>) -> Error {
        Error::unsupported(self.path, what, mend)
    }

    fn wrong_type(&self, name: &str, value: &Value, wanted: &str) -> Error {
        self.error(name, format!("is {}", describe(value)), format!("it must be {wanted}"))
    }

    /// A whole number from 1 to `max`.
    pub(super) fn optional_size(&self, name: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.as_u64().and_then(|size| usize::try_from(size).ok()) {
            Some(size) if (1..=max).contains(&size) => Ok(Some(size)),
            _ => Err(self.wrong_type(name, value, &format!("a whole number from 1 to {max}"))),
        }
    }

    /// A whole number from 0 to `max`.
    pub(super) fn whole(&self, name: &str, max: usize) -> Result<Option<usize>> {
        match self.get(name).map(|value| (value, value.as_u64())) {
            None => Ok(None),
            Some((_, Some(number))) if number <= max as u64 => Ok(Some(number as usize)),
            Some((value, _)) => Err(self.wrong_type(name, value, &format!("a whole number from 0 to {max}"))),
        }
    }

    /// As [`Fields::optional_size`], of a field that must be there.
    pub(super) fn size(&self, name: &str, max: usize) -> Result<usize> {
        self.optional_size(name, max)?
            .ok_or_else(|| self.error(name, "is missing", "use the complete config.json that belongs to the weights"))
    }

    /// A number above zero and finite, in single precision too.
    pub(super) fn positive(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if number as f32 > 0.0 && (number as f32).is_finite() => Ok(Some(number)),
            _ => Err(self.wrong_type(name, value, "a finite number above zero in single precision")),
        }
    }

    /// `count` numbers above zero.
    pub(super) fn positives(&self, name: &str, count: usize) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = |x: &Value| x.as_f64().filter(|x| *x as f32 > 0.0 && (*x as f32).is_finite());
        let numbers: Option<Vec<f64>> = value.as_array().and_then(|list| list.iter().map(number).collect());
        match numbers {
            Some(numbers) if numbers.len() == count => Ok(Some(numbers)),
            _ => Err(self.wrong_type(name, value, &format!("a list of {count} numbers above zero"))),
        }
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(value) => Err(self.wrong_type(name, value, "true or false")),
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => Err(self.wrong_type(name, value, "a string")),
        }
    }

    /// A list of strings; absent is empty.
    pub(super) fn texts(&self, name: &str) -> Result<Vec<&'a str>> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list
                .iter()
                .map(|value| value.as_str().ok_or_else(|| self.wrong_type(name, value, "a list of strings")))
                .collect(),
            Some(value) => Err(self.wrong_type(name, value, "a list of strings")),
        }
    }

    pub(super) fn nested(&self, name: &str) -> Result<Option<Fields<'a>>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(object)) => {
                Ok(Some(Fields { path: self.path, prefix: format!("{}{name}.", self.prefix), object }))
            }
            Some(value) => Err(self.wrong_type(name, value, "an object")),
        }
    }

    /// A list of 0 and 1, or of false and true.
    pub(super) fn flags(&self, name: &str) -> Result<Option<Vec<bool>>> {
        let wrong = |value| self.wrong_type(name, value, "a list of 0 and 1");
        match self.get(name) {
            None => Ok(None),
            Some(value @ Value::Array(list)) => {
                let flag = |x: &Value| x.as_bool().or(x.as_u64().filter(|n| *n <= 1).map(|n| n == 1));
                list.iter().map(|x| flag(x).ok_or_else(|| wrong(value))).collect::<Result<_>>().map(Some)
            }
            Some(value) => Err(wrong(value)),
        }
    }

    /// An id outside the vocabulary is let through: configurations name ids of vocabularies that were cut since, and the
    /// decoder refuses them where they are used.
    fn check_token_id(&self, name: &str, value: &Value) -> Result<u32> {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| self.wrong_type(name, value, "a token id"))
    }

    pub(super) fn token_id(&self, name: &str) -> Result<Option<u32>> {
        self.get(name).map(|value| self.check_token_id(name, value)).transpose()
    }

    /// One id or a list of ids, as a sorted list without repeats.
    pub(super) fn token_ids(&self, name: &str) -> Result<Vec<u32>> {
        let mut ids = match self.get(name) {
            None => Vec::new(),
            Some(Value::Array(list)) => {
                list.iter().map(|value| self.check_token_id(name, value)).collect::<Result<_>>()?
            }
            Some(value) => vec![self.check_token_id(name, value)?],
        };
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }
}

/// The value itself where it is short, else what kind of value it is.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.chars().count() <= 40 => format!("the string {text:?}"),
        Value::String(_) => "a string".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}
