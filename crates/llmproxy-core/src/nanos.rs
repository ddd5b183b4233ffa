//! Durations as records keep them: whole nanoseconds, which lose nothing.
//!
//! [`crate::duration`] is for what people write.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer};

/// For serde's `with`. More than fits into 64 bits, 584 years, is written as that.
pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}

/// For serde's `with`.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_nanos)
}

/// The same for `Option<Duration>`; needs `#[serde(default)]`.
pub(crate) mod option {
    use super::{Deserialize, Deserializer, Duration, Serializer};

    /// For serde's `with`.
    pub(crate) fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// For serde's `with`.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_nanos))
    }
}
