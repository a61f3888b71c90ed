//! In: what a user may set. Out: checked numbers for the fit. Every default says why.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// λ = 1: pull and push count alike, the published setting.
pub const DEFAULT_PUSH: f64 = 1.0;
/// Half the sample's effective size: strong enough to matter, weak enough that no few rows carry the whole distribution.
pub const DEFAULT_EFFECTIVE_FRACTION: f64 = 0.5;
/// Marginal error in L1 at which a fit has converged: 0.1 % of the mass is misplaced, far below the sampling noise of any
/// sample that fits in memory.
pub const DEFAULT_THRESHOLD: f64 = 1e-3;
/// Whole-sample steps at most. Ten to sixty are usual; a problem that needs more than this isn't going to converge.
pub const DEFAULT_MAX_STEPS: usize = 300;
/// Rows of one online step, rounded up to whole tiles: enough for a usable marginal over a few thousand references.
pub const DEFAULT_MINIBATCH_ROWS: usize = 1024;
/// Passes of the online phase over the fit rows. It only has to come near: whole-sample steps finish.
pub const DEFAULT_EPOCHS: usize = 1;
/// One row in eight is kept aside to measure the residuals on rows no step has used.
pub const DEFAULT_HELD_OUT: f64 = 0.125;
/// 1 GiB holds the costs of 65,536 rows against 4,096 references.
pub const DEFAULT_COST_CACHE_BYTES: usize = 1 << 30;
/// Smallest ε: f32 costs resolve about 1e-7, so exponents of smaller ε would be rounding.
pub const MIN_EPSILON: f64 = 1e-4;
/// Largest ε: costs lie in `[0, 2]`, so anything near this already averages over all references alike.
pub const MAX_EPSILON: f64 = 100.0;
/// `epsilon = auto` is this times the mean cost where cross-validation finds nothing better: sharp enough to tell neighbours
/// apart, smooth enough to converge.
pub const AUTO_EPSILON_PER_COST: f64 = 0.03;
/// `prior = auto` is this times the mean cost where cross-validation finds nothing better: near the best over several corpora with
/// the builtin table.
pub const AUTO_PRIOR_PER_COST: f64 = 0.3;

/// A number, or the rule that derives it from the sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Auto {
    /// Chosen by cross-validation on the references, in units of the mean cost between them and the sample (see each option).
    #[default]
    Auto,
    /// This number.
    Fixed(f64),
}

/// How far the row weights may leave 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Temperature {
    /// The τ at which the effective sample size `(Σw)²/(N Σw²)` of the fit rows is this fraction, in `(0, 1)`.
    Ess(f64),
    /// This τ, in units of the cost.
    Fixed(f64),
}

impl Default for Temperature {
    fn default() -> Self {
        Self::Ess(DEFAULT_EFFECTIVE_FRACTION)
    }
}

/// What a fit may be told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransportOptions {
    /// ε, entropic smoothing of both transport problems (POT calls it `reg`), in
    /// `[`[`MIN_EPSILON`]`, `[`MAX_EPSILON`]`]`. Auto: chosen by cross-validation on the
    /// references, else [`AUTO_EPSILON_PER_COST`] × the mean cost, at least [`MIN_EPSILON`]. The
    /// mean cost is over all rows of the sample, references weighted by mass, then the plain mean of both sets.
    pub epsilon: Auto,
    /// λ ≥ 0, how much the push away from the harmful references counts. Default [`DEFAULT_PUSH`].
    pub push: f64,
    /// β ≥ 0, how much the learned prior counts. Auto: chosen by
    /// cross-validation on the references, else [`AUTO_PRIOR_PER_COST`] × the mean cost. 0 is the published objective.
    pub prior: Auto,
    /// C > 0, inverse penalty of the prior's regression. Auto: chosen by cross-validation on the references, else
    /// [`PRIOR_INVERSE_PENALTY`](super::PRIOR_INVERSE_PENALTY).
    pub inverse_penalty: Auto,
    /// τ, or the effective sample size that decides it. Default: an effective size of half the sample.
    pub temperature: Temperature,
    /// ρ ≥ 0, KL relaxation of the reference marginals. None (default): the weighted rows must match the references' masses.
    /// 0 switches transport off: both potentials are 0 and a row's pull and push are soft nearest-reference distances.
    pub slack: Option<f64>,
    /// Decides which rows are held out and the order of the online phase. Default 0.
    pub seed: u64,
    /// Marginal error in L1 at which the fit has converged, positive. Default [`DEFAULT_THRESHOLD`].
    pub threshold: f64,
    /// Whole-sample steps at most, at least 1. Default [`DEFAULT_MAX_STEPS`].
    pub max_steps: usize,
    /// Rows of one online step, at least 1. Default [`DEFAULT_MINIBATCH_ROWS`].
    pub minibatch_rows: usize,
    /// Passes of the online phase, 0 to skip it. Default [`DEFAULT_EPOCHS`].
    pub epochs: usize,
    /// Fraction of the sample that no step uses, in `[0, 0.5]`. Samples under [`HELD_OUT_MIN_SAMPLE`] rows hold out none.
    /// Default [`DEFAULT_HELD_OUT`].
    pub held_out: f64,
    /// Memory for costs kept between steps, in bytes; tiles beyond it are computed again at every step, with the same bits.
    /// Default [`DEFAULT_COST_CACHE_BYTES`].
    pub cost_cache_bytes: usize,
}

/// A sample smaller than this holds out no row: it has none to spare, and so few would measure nothing.
pub const HELD_OUT_MIN_SAMPLE: usize = 256;

impl Default for TransportOptions {
    fn default() -> Self {
        Self {
            epsilon: Auto::Auto,
            push: DEFAULT_PUSH,
            prior: Auto::Auto,
            inverse_penalty: Auto::Auto,
            temperature: Temperature::default(),
            slack: None,
            seed: 0,
            threshold: DEFAULT_THRESHOLD,
            max_steps: DEFAULT_MAX_STEPS,
            minibatch_rows: DEFAULT_MINIBATCH_ROWS,
            epochs: DEFAULT_EPOCHS,
            held_out: DEFAULT_HELD_OUT,
            cost_cache_bytes: DEFAULT_COST_CACHE_BYTES,
        }
    }
}

impl TransportOptions {
    /// Checks every option.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] names the first option out of its range, as `transport.<name>`.
    pub fn validate(&self) -> Result<()> {
        let check = |name: &str, fine: bool, reason: String| {
            if fine { Ok(()) } else { Err(Error::InvalidOption { name: format!("transport.{name}"), reason }) }
        };
        if let Auto::Fixed(value) = self.epsilon {
            let fine = (MIN_EPSILON..=MAX_EPSILON).contains(&value);
            check("epsilon", fine, format!("must be \"auto\" or in [{MIN_EPSILON}, {MAX_EPSILON}], found {value}"))?;
        }
        check("push", self.push.is_finite() && self.push >= 0.0, format!("must be finite and at least 0, found {}", self.push))?;
        if let Auto::Fixed(value) = self.prior {
            check("prior", value.is_finite() && value >= 0.0, format!("must be \"auto\" or at least 0, found {value}"))?;
        }
        if let Auto::Fixed(value) = self.inverse_penalty {
            let fine = value.is_finite() && value > 0.0;
            check("inverse_penalty", fine, format!("must be \"auto\" or above 0, found {value}"))?;
        }
        match self.temperature {
            Temperature::Ess(value) => {
                let fine = value > 0.0 && value < 1.0;
                check("temperature", fine, format!("ess must be between 0 and 1 (exclusive), found {value}"))?;
            }
            Temperature::Fixed(value) => {
                let fine = value.is_finite() && value >= 1e-6;
                check("temperature", fine, format!("must be at least 1e-6, found {value}"))?;
            }
        }
        if let Some(value) = self.slack {
            check("slack", value.is_finite() && value >= 0.0, format!("must be \"none\" or at least 0, found {value}"))?;
        }
        let threshold = self.threshold;
        check("threshold", threshold.is_finite() && threshold > 0.0, format!("must be positive, found {threshold}"))?;
        check("max_steps", self.max_steps > 0, "must be at least 1".into())?;
        check("minibatch_rows", self.minibatch_rows > 0, "must be at least 1".into())?;
        let fine = (0.0..=0.5).contains(&self.held_out);
        check("held_out", fine, format!("must be in [0, 0.5], found {}", self.held_out))
    }

    /// Sets [`TransportOptions::epsilon`].
    #[must_use]
    pub fn with_epsilon(mut self, epsilon: f64) -> Self {
        self.epsilon = Auto::Fixed(epsilon);
        self
    }

    /// Sets [`TransportOptions::push`].
    #[must_use]
    pub fn with_push(mut self, push: f64) -> Self {
        self.push = push;
        self
    }

    /// Sets [`TransportOptions::prior`].
    #[must_use]
    pub fn with_prior(mut self, prior: f64) -> Self {
        self.prior = Auto::Fixed(prior);
        self
    }

    /// Sets [`TransportOptions::inverse_penalty`].
    #[must_use]
    pub fn with_inverse_penalty(mut self, inverse_penalty: f64) -> Self {
        self.inverse_penalty = Auto::Fixed(inverse_penalty);
        self
    }

    /// Sets [`TransportOptions::temperature`].
    #[must_use]
    pub fn with_temperature(mut self, temperature: Temperature) -> Self {
        self.temperature = temperature;
        self
    }

    /// Sets [`TransportOptions::slack`].
    #[must_use]
    pub fn with_slack(mut self, slack: Option<f64>) -> Self {
        self.slack = slack;
        self
    }

    /// Sets [`TransportOptions::seed`].
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets [`TransportOptions::threshold`].
    #[must_use]
    pub fn with_threshold(mut self, threshold: f64) -> Self {
        self.threshold = threshold;
        self
    }

    /// Sets [`TransportOptions::max_steps`].
    #[must_use]
    pub fn with_max_steps(mut self, max_steps: usize) -> Self {
        self.max_steps = max_steps;
        self
    }

    /// Sets [`TransportOptions::held_out`].
    #[must_use]
    pub fn with_held_out(mut self, held_out: f64) -> Self {
        self.held_out = held_out;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        TransportOptions::default().validate().unwrap();
    }

    #[test]
    fn bad_values_name_the_option() {
        let base = TransportOptions::default;
        for (options, name) in [
            (base().with_epsilon(0.0), "epsilon"),
            (base().with_epsilon(f64::NAN), "epsilon"),
            (base().with_push(-1.0), "push"),
            (base().with_prior(f64::INFINITY), "prior"),
            (base().with_inverse_penalty(0.0), "inverse_penalty"),
            (base().with_temperature(Temperature::Ess(1.0)), "temperature"),
            (base().with_temperature(Temperature::Fixed(0.0)), "temperature"),
            (base().with_slack(Some(-0.1)), "slack"),
            (base().with_threshold(0.0), "threshold"),
            (base().with_max_steps(0), "max_steps"),
            (base().with_held_out(0.9), "held_out"),
        ] {
            assert!(options.validate().unwrap_err().to_string().contains(&format!("transport.{name}")), "{name}");
        }
    }
}
