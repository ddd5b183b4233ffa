//! How much of a request is looked at, so that no prompt takes memory or time beyond its size.
//!
//! A chat template needs the conversation as a tree of values, and an empty map of three bytes takes a hundred there. So what
//! is made a tree is counted first, without making it. Whatever else is asked of a request is found [by name](members), and
//! the rest of it is passed over.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// The longest request that goes through a template, in bytes.
pub(super) const MAX_CHAT: usize = 2 * 1024 * 1024;
/// The most values in it: messages, their parts, whatever a tool is described by.
pub(super) const MAX_VALUES: usize = 65_536;

/// What is counted down with each value.
struct Values<'a>(&'a mut usize);

/// One of these names, by its place.
struct Name<'a>(&'a [&'static str]);

/// The members by these names.
struct Members<const N: usize>([&'static str; N]);

/// How many values `json` has, itself included; `None` where they are more than `at_most`, or it is no JSON.
pub(super) fn values(json: &[u8], at_most: usize) -> Option<usize> {
    let mut left = at_most;
    let mut json = serde_json::Deserializer::from_slice(json);
    Values(&mut left).deserialize(&mut json).ok()?;
    json.end().ok()?;
    Some(at_most - left)
}

/// The members of an object by these names: the last of each, and none that is null. `None` where it is no object.
pub(super) fn members<'a, const N: usize>(
    json: &'a [u8],
    names: [&'static str; N],
) -> Option<[Option<&'a RawValue>; N]> {
    let mut json = serde_json::Deserializer::from_slice(json);
    let found = Members(names).deserialize(&mut json).ok()?;
    json.end().ok()?;
    Some(found.map(|value| value.filter(|value| value.get() != "null")))
}

/// Whether Python takes it for true.
pub(super) fn is_true(value: &RawValue) -> bool {
    !matches!(value.get(), "false" | "0" | "0.0" | "\"\"" | "[]" | "{}")
}

// === impl Values ===

impl<'de> DeserializeSeed<'de> for Values<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        *self.0 = self.0.checked_sub(1).ok_or_else(|| D::Error::custom("there are too many values"))?;
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Values<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Values(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key::<IgnoredAny>()?.is_some() {
            map.next_value_seed(Values(self.0))?;
        }
        Ok(())
    }
}

// === impl Name ===

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Option<usize>, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Option<usize>, E> {
        Ok(self.0.iter().position(|known| *known == name))
    }
}

// === impl Members ===

impl<'de, const N: usize> DeserializeSeed<'de> for Members<N> {
    type Value = [Option<&'de RawValue>; N];

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for Members<N> {
    type Value = [Option<&'de RawValue>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = [None; N];
        while let Some(place) = map.next_key_seed(Name(&self.0))? {
            match place.and_then(|place| found.get_mut(place)) {
                Some(found) => *found = Some(map.next_value()?),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_up_to_a_bound() {
        let check = |json: &str, expected| assert_eq!(values(json.as_bytes(), 6), expected, "{json}");
        check("7", Some(1));
        check(r#"{"a":[1,"b",null],"c":{}}"#, Some(6));
        check(r#"{"a":[1,"b",null],"c":[true]}"#, None);
        check("[1.5,-1,true,\"\\u00e9\"]", Some(5));
        check("[1", None);
        check("[1] 2", None);
        check(&"[".repeat(100_000), None);
    }

    #[test]
    fn the_last_member_of_a_name_counts_and_null_is_none() {
        let found =
            |json: &'static str| members(json.as_bytes(), ["a", "b"]).map(|all| all.map(|one| one.map(RawValue::get)));
        assert_eq!(found(r#"{"a":1,"x":[{}],"\u0061":[2, 3],"b":null}"#), Some([Some("[2, 3]"), None]));
        assert_eq!(found("{}"), Some([None, None]));
        for none in ["", "[]", "7", "{", r#"{"a":}"#, r#"{"a":1} 2"#] {
            assert_eq!(found(none), None, "{none}");
        }
    }
}
