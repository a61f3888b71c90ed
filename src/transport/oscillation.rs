//! In: the plain steps of the harmful potential, one after the other. Out: whether it goes round in circles.
//!
//! A potential that converges, however slowly, takes ever smaller steps. One that oscillates comes back: among its last steps
//! are two in opposite directions of which the later isn't much smaller. A period of up to twice [`REMEMBERED`] steps shows.

use std::collections::VecDeque;

/// Steps remembered: those between two checks of the solver.
pub(super) const REMEMBERED: usize = 20;

/// Cosine between two steps below which they are opposite.
const OPPOSITE: f64 = -0.5;

/// Size of the later step relative to the earlier one from which the two count as an oscillation.
const NOT_SHRINKING: f64 = 0.5;

/// The last steps of a potential.
#[derive(Debug, Default)]
pub(super) struct StepWatch {
    steps: VecDeque<Vec<f64>>,
}

impl StepWatch {
    /// Remembers the step from a potential to its image. Coordinates count by their masses.
    pub(super) fn see(&mut self, potential: &[f64], image: &[f64], masses: &[f64]) {
        if self.steps.len() == REMEMBERED {
            self.steps.pop_front();
        }
        self.steps.push_back(image.iter().zip(potential).zip(masses).map(|((a, b), q)| (a - b) * q.sqrt()).collect());
    }

    /// Forgets every step: their rate has changed.
    pub(super) fn restart(&mut self) {
        self.steps.clear();
    }

    /// Whether two remembered steps are opposite and the later one isn't much smaller.
    pub(super) fn turns_back(&self) -> bool {
        let sizes: Vec<f64> = self.steps.iter().map(|s| s.iter().map(|v| v * v).sum::<f64>().sqrt()).collect();
        self.steps.iter().enumerate().any(|(i, earlier)| {
            self.steps.iter().enumerate().skip(i + 1).any(|(j, later)| {
                let along: f64 = earlier.iter().zip(later).map(|(a, b)| a * b).sum();
                sizes[i] > 0.0 && sizes[j] >= NOT_SHRINKING * sizes[i] && along <= OPPOSITE * sizes[i] * sizes[j]
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows `z ← rate · e^{iθ} z`, a plane rotation that shrinks by `rate` a step.
    fn spiral(rate: f64, angle: f64, steps: usize) -> StepWatch {
        let (sin, cos) = angle.sin_cos();
        let mut watch = StepWatch::default();
        let mut at = [1.0, 0.3];
        for _ in 0..steps {
            let next = [rate * (cos * at[0] - sin * at[1]), rate * (sin * at[0] + cos * at[1])];
            watch.see(&at, &next, &[0.5, 0.5]);
            at = next;
        }
        watch
    }

    #[test]
    fn circles_of_any_period_are_seen() {
        for period in [2.0, 3.0, 7.0, 20.0, 30.0] {
            assert!(spiral(1.0, std::f64::consts::TAU / period, 60).turns_back(), "{period}");
            assert!(spiral(1.02, std::f64::consts::TAU / period, 60).turns_back(), "{period}");
        }
    }

    #[test]
    fn convergence_is_no_oscillation() {
        // However slow, straight or spiralling in within half a turn.
        for rate in [0.3, 0.9, 0.999, 1.0] {
            assert!(!spiral(rate, 0.0, 60).turns_back(), "{rate}");
        }
        assert!(!spiral(0.4, std::f64::consts::PI, 60).turns_back());
        assert!(!spiral(0.7, std::f64::consts::TAU / 9.0, 60).turns_back());
        let mut watch = spiral(1.0, 2.0, 60);
        watch.restart();
        assert!(!watch.turns_back());
    }
}
