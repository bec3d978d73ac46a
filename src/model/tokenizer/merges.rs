//! Merges that cannot be: the tokenizer library joins the two halves of a merge in a buffer as long as the longest token
//! and stops the process when they do not fit. Such a file is refused here, before the library sees it.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    model: Option<Model>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    vocab: LongestToken,
    #[serde(default)]
    merges: Option<Vec<Halves>>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
}

/// What is wrong with the merges of a `tokenizer.json`; `None` when the library can read them.
pub(super) fn flaw(text: &[u8]) -> Option<String> {
    let model = match serde_json::from_slice::<File>(text) {
        Ok(file) => file.model?,
        Err(error) => return Some(error.to_string()),
    };
    let prefix = model.continuing_subword_prefix.map_or(0, |prefix| prefix.len());
    let longest = model.vocab.0;
    let fits = |halves: &Halves| halves.1 >= prefix && halves.0 + halves.1 - prefix <= longest;
    let at = model.merges?.iter().position(|halves| !fits(halves))?;
    Some(format!("merge {at} makes a token that is not in the vocabulary"))
}

/// Bytes of the longest key of a vocabulary that is an object; a list (of another kind of model) is passed over.
#[derive(Default)]
struct LongestToken(usize);

impl<'de> Deserialize<'de> for LongestToken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Longest;
        impl<'de> Visitor<'de> for Longest {
            type Value = LongestToken;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LongestToken, A::Error> {
                let mut longest = 0;
                while let Some((Length(token), IgnoredAny)) = map.next_entry()? {
                    longest = longest.max(token);
                }
                Ok(LongestToken(longest))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<LongestToken, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(LongestToken(0))
            }
            fn visit_unit<E>(self) -> Result<LongestToken, E> {
                Ok(LongestToken(0))
            }
        }
        deserializer.deserialize_any(Longest)
    }
}

/// Bytes of the two halves of a merge, written as a list of two texts or as one with a space between them.
struct Halves(usize, usize);

impl<'de> Deserialize<'de> for Halves {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Two;
        impl<'de> Visitor<'de> for Two {
            type Value = Halves;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge of two tokens")
            }
            fn visit_str<E: serde::de::Error>(self, merge: &str) -> Result<Halves, E> {
                let halves = merge.split_once(' ').ok_or_else(|| E::custom("a merge without a space"))?;
                Ok(Halves(halves.0.len(), halves.1.len()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Halves, A::Error> {
                let mut half =
                    || list.next_element::<Length>()?.ok_or_else(|| serde::de::Error::custom("half a merge"));
                let halves = Halves(half()?.0, half()?.0);
                match list.next_element::<IgnoredAny>()? {
                    None => Ok(halves),
                    Some(_) => Err(serde::de::Error::custom("a merge of more than two tokens")),
                }
            }
        }
        deserializer.deserialize_any(Two)
    }
}

/// Bytes of a text.
struct Length(usize);

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Length;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_str<E>(self, text: &str) -> Result<Length, E> {
                Ok(Length(text.len()))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(model: &str) -> Option<String> {
        flaw(format!(r#"{{"version":"1.0","model":{model}}}"#).as_bytes())
    }

    #[test]
    fn merges_longer_than_every_token_are_named() {
        let vocab = r#""vocab":{"a":0,"b":1,"ab":2}"#;
        assert_eq!(of(&format!(r#"{{{vocab},"merges":[["a","b"],"a b"]}}"#)), None);
        assert_eq!(of(&format!(r#"{{{vocab},"merges":null}}"#)), None);
        assert_eq!(of(r#"{"type":"Unigram","vocab":[["a",0.5]]}"#), None);
        let long = of(&format!(r#"{{{vocab},"merges":[["a","b"],["ab","ab"]]}}"#));
        assert_eq!(long.unwrap(), "merge 1 makes a token that is not in the vocabulary");
        let prefix = of(&format!(r###"{{{vocab},"continuing_subword_prefix":"##","merges":["a b"]}}"###));
        assert_eq!(prefix.unwrap(), "merge 0 makes a token that is not in the vocabulary");
        assert!(of(&format!(r#"{{{vocab},"merges":[["a"]]}}"#)).unwrap().contains("half a merge"));
    }
}
