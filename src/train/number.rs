//! Numbers in files whose format has no word for those that are not finite, as JSON: these are the texts `NaN`, `inf` and
//! `-inf`. For `#[serde(with = "…")]`.

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

pub(crate) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    match value.is_finite() {
        true => serializer.serialize_f64(*value),
        false => serializer.serialize_str(&value.to_string()),
    }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Number::deserialize(deserializer).map(|Number(value)| value)
}

/// The same for a list of numbers.
pub(crate) mod list {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(values: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(|value| Number(*value)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
        let values = Vec::<Number>::deserialize(deserializer)?;
        Ok(values.into_iter().map(|Number(value)| value).collect())
    }
}

struct Number(f64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl Visitor<'_> for Either {
            type Value = f64;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or one of the texts NaN, inf and -inf")
            }

            fn visit_f64<E>(self, value: f64) -> Result<f64, E> {
                Ok(value)
            }

            fn visit_i64<E>(self, value: i64) -> Result<f64, E> {
                Ok(value as f64)
            }

            fn visit_u64<E>(self, value: u64) -> Result<f64, E> {
                Ok(value as f64)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<f64, E> {
                match text {
                    "NaN" => Ok(f64::NAN),
                    "inf" => Ok(f64::INFINITY),
                    "-inf" => Ok(f64::NEG_INFINITY),
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }
        }

        deserializer.deserialize_any(Either).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Both {
        #[serde(with = "super")]
        one: f64,
        #[serde(with = "super::list")]
        many: Vec<f64>,
    }

    #[test]
    fn what_is_not_finite_reads_back() {
        let both = Both { one: f64::NAN, many: vec![0.1, f64::INFINITY, -2.0, f64::NEG_INFINITY] };
        let json = serde_json::to_string(&both).unwrap();
        assert_eq!(json, r#"{"one":"NaN","many":[0.1,"inf",-2.0,"-inf"]}"#);
        let toml = toml::to_string(&both).unwrap();
        for again in [serde_json::from_str::<Both>(&json).unwrap(), toml::from_str(&toml).unwrap()] {
            assert!(again.one.is_nan());
            assert_eq!(again.many, both.many);
        }
        assert_eq!(serde_json::from_str::<Both>(r#"{"one": 3, "many": []}"#).unwrap().one, 3.0);
        assert!(toml::from_str::<Both>("one = nan\nmany = [inf, 1]").unwrap().one.is_nan());
        assert!(serde_json::from_str::<Both>(r#"{"one": "much", "many": []}"#).is_err());
        assert!(serde_json::from_str::<Both>(r#"{"one": null, "many": []}"#).is_err());
    }
}
