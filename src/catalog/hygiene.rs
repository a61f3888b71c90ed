//! What is wrong, or worth knowing, about the references a model was fitted with. Plain data, kept in the model's card, so that a
//! weight can be traced to the references' faults as long as the model lives.

use serde::{Deserialize, Serialize};

/// Which set a reference is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Trusted rows: the corpus is pulled towards them.
    Safe,
    /// Harmful rows: the corpus is pushed away from them.
    Harm,
}

impl Side {
    /// `safe` or `harm`.
    pub fn name(self) -> &'static str {
        match self {
            Side::Safe => "safe",
            Side::Harm => "harm",
        }
    }

    /// `safe` or `harmful`, as a word in a sentence.
    pub fn adjective(self) -> &'static str {
        match self {
            Side::Safe => "safe",
            Side::Harm => "harmful",
        }
    }
}

/// What was found. The items of each kind say which references, and what their `other` and `value` are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// The set has few rows. No items.
    TooFew,
    /// References with the content of an earlier one of their set (`other`). Each copy counts as mass.
    ExactCopies,
    /// The same after folding case and white space.
    FoldedCopies,
    /// References whose vector is nearly that of an earlier one (`other`), at a cost of `value`.
    NearCopies,
    /// Harmful references whose vector is nearly that of a safe one (`other`), at a cost of `value`: the solver is told to pull and to
    /// push the same place.
    NearAcross,
    /// References of which the embedder knows no token: a zero vector, at cost 1 from everything.
    NoKnownToken,
    /// References of whose mass the sample would serve only the share `value` if nothing made it.
    Uncovered,
    /// References that are rows of the sample, `value` times, first at `other` (`shard:row`).
    InCorpus,
}

impl FindingKind {
    /// As in JSON and SQL.
    pub fn name(self) -> &'static str {
        match self {
            Self::TooFew => "too_few",
            Self::ExactCopies => "exact_copies",
            Self::FoldedCopies => "folded_copies",
            Self::NearCopies => "near_copies",
            Self::NearAcross => "near_across",
            Self::NoKnownToken => "no_known_token",
            Self::Uncovered => "uncovered",
            Self::InCorpus => "in_corpus",
        }
    }
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Worth knowing.
    Note,
    /// Worth changing.
    Warning,
}

impl Level {
    /// `note` or `warning`.
    pub fn name(self) -> &'static str {
        match self {
            Level::Note => "note",
            Level::Warning => "warning",
        }
    }
}

/// One finding about one reference set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// What was found.
    pub finding: FindingKind,
    /// The set.
    pub side: Side,
    /// How much it matters.
    pub level: Level,
    /// References concerned.
    pub count: usize,
    /// Their share of the set's mass, in `[0, 1]`.
    pub mass: f64,
    /// The finding in a sentence, with a few ids, and what to do about it.
    pub message: String,
    /// The references concerned.
    pub items: Vec<FindingItem>,
}

/// One reference of a finding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FindingItem {
    /// Its id.
    pub id: String,
    /// The reference or row it goes with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<String>,
    /// A number, by the kind of the finding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
}

/// Everything found about both reference sets; empty where there is nothing to say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hygiene {
    /// Warnings first.
    pub findings: Vec<Finding>,
}

impl Hygiene {
    /// The same with at most `items` items a finding; `count` and `mass` still speak of all of them.
    #[must_use]
    pub fn shortened(&self, items: usize) -> Self {
        let mut short = self.clone();
        short.findings.iter_mut().for_each(|finding| finding.items.truncate(items));
        short
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_json() {
        for kind in [
            FindingKind::TooFew,
            FindingKind::ExactCopies,
            FindingKind::FoldedCopies,
            FindingKind::NearCopies,
            FindingKind::NearAcross,
            FindingKind::NoKnownToken,
            FindingKind::Uncovered,
            FindingKind::InCorpus,
        ] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
        for side in [Side::Safe, Side::Harm] {
            assert_eq!(serde_json::to_value(side).unwrap(), side.name());
        }
        for level in [Level::Note, Level::Warning] {
            assert_eq!(serde_json::to_value(level).unwrap(), level.name());
        }
    }
}
