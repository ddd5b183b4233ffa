//! What is counted where tokens are not the measure.

use serde::{Deserialize, Serialize};

/// How much was asked for, or done, where it is not measured in tokens.
///
/// ```
/// use llmproxy_core::{UnitKind, Units};
///
/// let images = Units { kind: UnitKind::Images, count: 2 };
/// assert_eq!((images.kind.as_str(), images.count), ("images", 2));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Units {
    /// What is counted.
    pub kind: UnitKind,
    /// How many.
    pub count: u64,
}

/// What is counted in the place of tokens, or beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnitKind {
    /// Images to be made.
    Images,
    /// Characters to be spoken.
    Characters,
    /// Documents to be ranked or scored.
    Documents,
    /// Texts to be embedded.
    Inputs,
    /// Seconds of sound that were listened to, begun ones included.
    Seconds,
}

// === impl UnitKind ===

impl UnitKind {
    /// The name that records use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::Characters => "characters",
            Self::Documents => "documents",
            Self::Inputs => "inputs",
            Self::Seconds => "seconds",
        }
    }
}
