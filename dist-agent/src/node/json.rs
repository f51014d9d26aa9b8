//! Any JSON value, as a type that can be replicated: a tree, and no text.

use rafted_value::rkyv;
use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Serialize, Serializer};

/// Any JSON value. Values are equal when JSON's are: the order of an object's members does not matter, and 1
/// equals 1.0.
#[derive(Debug, Clone, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(crate = rkyv)]
// A recursive type must name the bounds that its fields would give it.
#[rkyv(serialize_bounds(__S: rkyv::ser::Writer + rkyv::ser::Allocator, __S::Error: rkyv::rancor::Source))]
#[rkyv(deserialize_bounds(__D::Error: rkyv::rancor::Source))]
#[rkyv(bytecheck(bounds(__C: rkyv::validation::ArchiveContext, __C::Error: rkyv::rancor::Source)))]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A whole number from 0.
    Unsigned(u64),
    /// A whole number below 0.
    Negative(i64),
    /// Any other number.
    Float(f64),
    /// A string.
    String(String),
    /// An array.
    Array(#[rkyv(omit_bounds)] Vec<Json>),
    /// An object: its members in the order of their names, each name once.
    Object(#[rkyv(omit_bounds)] Vec<(String, Json)>),
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(one), Self::Bool(two)) => one == two,
            (Self::Unsigned(one), Self::Unsigned(two)) => one == two,
            (Self::Negative(one), Self::Negative(two)) => one == two,
            (Self::Float(one), Self::Float(two)) => one == two,
            (Self::Float(float), whole) | (whole, Self::Float(float)) => whole.is_whole(*float),
            (Self::String(one), Self::String(two)) => one == two,
            (Self::Array(one), Self::Array(two)) => one == two,
            (Self::Object(one), Self::Object(two)) => one == two,
            _ => false,
        }
    }
}

impl Json {
    /// Whether this is a whole number and exactly `float`.
    fn is_whole(&self, float: f64) -> bool {
        // Casts of floats saturate, and the way back shows what was lost. The largest numbers round up to a
        // power of two that they are not.
        match self {
            Self::Unsigned(whole) => float < TWO_TO_64 && float as u64 == *whole && (float as u64) as f64 == float,
            Self::Negative(whole) => float as i64 == *whole && (float as i64) as f64 == float,
            _ => false,
        }
    }
}

const TWO_TO_64: f64 = 18_446_744_073_709_551_616.0;

impl From<serde_json::Value> for Json {
    fn from(value: serde_json::Value) -> Self {
        match value {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(value) => Self::Bool(value),
            serde_json::Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(whole), _) => Self::Unsigned(whole),
                (None, Some(whole)) => Self::Negative(whole),
                // serde_json reads any other number as a float.
                (None, None) => number.as_f64().map_or(Self::Null, Self::Float),
            },
            serde_json::Value::String(value) => Self::String(value),
            serde_json::Value::Array(values) => Self::Array(values.into_iter().map(Self::from).collect()),
            serde_json::Value::Object(members) => {
                let mut members: Vec<(String, Self)> =
                    members.into_iter().map(|(name, value)| (name, value.into())).collect();
                members.sort_by(|(one, _), (two, _)| one.cmp(two));
                Self::Object(members)
            }
        }
    }
}

impl From<Json> for serde_json::Value {
    fn from(json: Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => value.into(),
            Json::Unsigned(value) => value.into(),
            Json::Negative(value) => value.into(),
            Json::Float(value) => value.into(),
            Json::String(value) => value.into(),
            Json::Array(values) => Self::Array(values.into_iter().map(Self::from).collect()),
            Json::Object(members) => {
                Self::Object(members.into_iter().map(|(name, value)| (name, value.into())).collect())
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer).map_err(D::Error::custom)?;
        Ok(value.into())
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::Value::from(self.clone()).serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn text_and_archive_read_back() {
        let texts = [
            "null",
            "true",
            "0",
            "18446744073709551615",
            "-9223372036854775808",
            "0.5",
            "1e300",
            r#""a\u0000\"é""#,
            "[]",
            "{}",
            r#"[1,[2,[3,{"a":[null]}]]]"#,
            r#"{"a":1,"b":{"c":[true,false]}}"#,
        ];
        for text in texts {
            let value = json(text);
            assert_eq!(json(&serde_json::to_string(&value).unwrap()), value, "{text}");
            let bytes = rafted_value::encode(&value).unwrap();
            assert_eq!(rafted_value::decode::<Json>(&bytes).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn values_are_compared_and_not_texts() {
        let equal = [
            ("1", "1.0"),
            ("-3", "-3.0"),
            ("0", "-0.0"),
            (r#"{"a":1,"b":[2]}"#, r#" { "b" : [2.0], "a" : 1 } "#),
            (r#""A""#, r#""\u0041""#),
        ];
        for (one, two) in equal {
            assert_eq!(json(one), json(two));
            assert_eq!(json(two), json(one));
        }
        let different = [
            ("1", "1.5"),
            ("1", r#""1""#),
            ("0", "false"),
            ("null", "0"),
            ("[1,2]", "[2,1]"),
            (r#"{"a":1}"#, r#"{"a":1,"b":null}"#),
            ("18446744073709551615", "18446744073709551616"),
            ("9007199254740993", "9007199254740992.0"),
        ];
        for (one, two) in different {
            assert_ne!(json(one), json(two));
            assert_ne!(json(two), json(one));
        }
    }

    #[test]
    fn too_deep_a_value_is_an_error_and_not_a_crash() {
        let text = "[".repeat(100_000);
        assert!(serde_json::from_str::<Json>(&text).is_err());
    }
}
