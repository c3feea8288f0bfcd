//! How an export is spelled where serde's own way would not do.

use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Unexpected, Visitor};

/// Reads a list element by element. Unlike serde's `Vec` it reserves nothing by the length that the input claims, so that
/// memory grows only with elements that are there.
pub(super) fn list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(input: D) -> Result<Vec<T>, D::Error> {
    struct List<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut input: A) -> Result<Vec<T>, A::Error> {
            let mut elements = Vec::new();
            while let Some(element) = input.next_element()? {
                elements.push(element);
            }
            Ok(elements)
        }
    }

    input.deserialize_seq(List(PhantomData))
}

/// A hash as 16 lower-case hexadecimal digits. A reader that knows only `f64` would round it as a number.
pub(super) mod hash {
    use super::*;
    use serde::Serializer;

    const DIGITS: usize = 16;

    pub(in super::super) fn serialize<S: Serializer>(hash: &u64, output: S) -> Result<S::Ok, S::Error> {
        output.collect_str(&format_args!("{hash:0DIGITS$x}"))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
        struct Digits;

        impl Visitor<'_> for Digits {
            type Value = u64;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{DIGITS} lower-case hexadecimal digits")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
                // One spelling only; the parser alone would take a sign and capitals too.
                let digits = text.len() == DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                let hash = if digits { u64::from_str_radix(text, 16).ok() } else { None };
                hash.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }

        input.deserialize_str(Digits)
    }
}
