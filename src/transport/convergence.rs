//! In: what was measured at a solution. Out: whether that is the optimum asked for, and if not, why and what to change.
//!
//! [`Criterion::judge`] is the one place that decides it. The solver asks it at every step whether to stop, with its own numbers;
//! [`FitReport::converged`](super::FitReport::converged) is its answer for the numbers of the certificate.

use super::options::{Temperature, TransportOptions};
use super::report::Residuals;

/// How near the effective sample size must come to its target.
const ESS_TOLERANCE: f64 = 1e-3;

/// How far the numbers of the certificate may be above the solver's at the same solution: weights are f32 there.
pub(super) const CERTIFICATE_ROUNDING: f64 = 1e-6;

/// What decides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    /// Marginal errors of both sides.
    pub(super) residuals: Residuals,
    /// Effective sample size.
    pub(super) ess: f64,
    /// Whether the effective sample size asked for can be had at all.
    pub(super) reachable: bool,
    /// Whether everything else that was measured is finite.
    pub(super) finite: bool,
}

impl Measured {
    fn is_finite(&self) -> bool {
        // Each on its own: the larger of NaN and a number is that number.
        self.finite && self.residuals.safe.is_finite() && self.residuals.harm.is_finite() && self.ess.is_finite()
    }
}

/// The verdict on a solution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The optimum asked for.
    Converged,
    /// The marginals are right, but no temperature gives the effective sample size asked for: more steps cannot help.
    Unreachable,
    /// Not yet.
    Open,
}

/// How a fit that has not converged ended, for the message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending {
    pub(super) steps: usize,
    pub(super) epsilon: f64,
    pub(super) tau: f64,
    /// Whether the push side was seen to oscillate or run away.
    pub(super) oscillated: bool,
    /// σ of the push side, and ν of both.
    pub(super) stability: f64,
    pub(super) joint_rate: f64,
}

/// What a fit must reach.
#[derive(Clone, Copy, Debug)]
pub(super) struct Criterion<'a> {
    pub(super) options: &'a TransportOptions,
}

impl Criterion<'_> {
    /// The marginal error a fit must bring down: the push side doesn't count where nothing is pushed.
    pub(super) fn error(&self, residuals: &Residuals) -> f64 {
        if self.options.push == 0.0 { residuals.safe } else { residuals.safe.max(residuals.harm) }
    }

    /// Distance of the effective sample size from its target, 0 where there is none or no temperature can reach it.
    pub(super) fn ess_error(&self, measured: &Measured) -> f64 {
        match self.options.temperature {
            Temperature::Ess(target) if measured.reachable => (measured.ess - target).abs(),
            _ => 0.0,
        }
    }

    /// Decides. Converged means, all of it:
    ///
    /// 1. every number is finite;
    /// 2. the marginal error of the safe side is below the threshold, and that of the harmful side where push > 0 (elsewhere it
    ///    moves no weight);
    /// 3. the effective sample size is within 1e-3 of the one asked for, where one was asked for.
    ///
    /// `rounding` is added to the threshold and the tolerance. The second-order condition isn't part of it: a solution whose
    /// push side is only just held is a solution, and the certificate says so.
    pub(super) fn judge(&self, measured: &Measured, rounding: f64) -> Verdict {
        let (error, ess_error) = (self.error(&measured.residuals), self.ess_error(measured));
        if !measured.is_finite() || error >= self.options.threshold + rounding || ess_error > ESS_TOLERANCE + rounding {
            Verdict::Open
        } else if measured.reachable {
            Verdict::Converged
        } else {
            Verdict::Unreachable
        }
    }

    /// What stands between a solution and convergence, and what to change.
    pub(super) fn why_not(&self, measured: &Measured, ending: &Ending) -> String {
        let TransportOptions { threshold, max_steps, push, .. } = *self.options;
        let Ending { steps, epsilon, tau, oscillated, stability, joint_rate } = *ending;
        let Residuals { safe, harm } = measured.residuals;
        if !measured.is_finite() {
            return format!("a measured number is not finite, with epsilon {epsilon:.2e} and temperature {tau:.2e}: raise both");
        }
        if let (Temperature::Ess(target), false) = (self.options.temperature, measured.reachable) {
            return format!(
                "no temperature gives an effective sample size of {target} (reached {:.4}): too many rows score alike; check \
                 the sample for duplicate or empty rows, or set a fixed `temperature`",
                measured.ess
            );
        }
        let end = if steps == max_steps {
            format!("after all {max_steps} steps allowed by `max_steps`")
        } else {
            format!("and does not get smaller after {steps} steps")
        };
        if oscillated && harm >= threshold {
            return format!(
                "the push side does not settle: its potential oscillates or runs away while its marginal error stays at {harm:.1e} \
                 (threshold {threshold:.0e}), also with smaller steps; its stability is {stability:.2} and the joint rate \
                 {joint_rate:.3}, below 1 it would be held in place. With push {push}, temperature {tau:.4} and epsilon \
                 {epsilon:.4}: lower `push`, raise `temperature` (or its `ess`) or raise `epsilon`"
            );
        }
        if push > 0.0 && harm >= threshold && harm >= safe {
            return format!(
                "the push side's marginal error is {harm:.1e} (threshold {threshold:.0e}) {end}, with push {push}, temperature \
                 {tau:.4} and epsilon {epsilon:.4}: raise `max_steps`, lower `push`, raise `temperature` (or its `ess`) or raise \
                 `epsilon`"
            );
        }
        if safe >= threshold {
            return format!(
                "the pull side's marginal error is {safe:.1e} (threshold {threshold:.0e}) {end}, with epsilon {epsilon:.4} and \
                 temperature {tau:.4}: raise `epsilon`, `temperature` or `max_steps`, or set `slack` if no row is near some of the \
                 safe references"
            );
        }
        format!("the effective sample size is {:.4} and still moving {end}: raise `max_steps`", measured.ess)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_looks_at_every_condition() {
        let options = TransportOptions::default().with_threshold(1e-2).with_temperature(Temperature::Ess(0.5));
        let pulled = options.clone().with_push(0.0);
        let good = Measured { residuals: Residuals { safe: 5e-3, harm: 9e-3 }, ess: 0.5005, reachable: true, finite: true };
        let judge = |options: &TransportOptions, measured: &Measured| Criterion { options }.judge(measured, 0.0);
        assert_eq!(judge(&options, &good), Verdict::Converged);
        let with = |change: fn(&mut Measured)| {
            let mut measured = good;
            change(&mut measured);
            measured
        };
        let harmful = with(|m| m.residuals.harm = 0.01);
        assert_eq!((judge(&options, &harmful), judge(&pulled, &harmful)), (Verdict::Open, Verdict::Converged));
        for bad in [
            with(|m| m.residuals.safe = 0.01),
            with(|m| m.residuals.safe = f64::NAN),
            with(|m| m.residuals.harm = f64::INFINITY),
            with(|m| m.ess = 0.502),
            with(|m| m.ess = f64::NAN),
            with(|m| m.finite = false),
        ] {
            assert_eq!((judge(&options, &bad), judge(&pulled, &bad)), (Verdict::Open, Verdict::Open), "{bad:?}");
        }
        let unreachable = with(|m| (m.reachable, m.ess) = (false, 1.0));
        assert_eq!(judge(&options, &unreachable), Verdict::Unreachable);
        let fixed = options.clone().with_temperature(Temperature::Fixed(0.1));
        assert_eq!(judge(&fixed, &with(|m| m.ess = 0.01)), Verdict::Converged);
        // The certificate's own rounding is no reason to say no.
        let just = with(|m| m.residuals.safe = 0.01 + 0.5 * CERTIFICATE_ROUNDING);
        assert_eq!(Criterion { options: &options }.judge(&just, CERTIFICATE_ROUNDING), Verdict::Converged);
    }
}
