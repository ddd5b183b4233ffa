//! Random numbers of some distributions.

use fastrand::Rng;

/// Exponential, with this mean.
pub(crate) fn exponential(rng: &mut Rng, mean: f64) -> f64 {
    // 1 - x is never 0.
    -(1.0 - rng.f64()).ln() * mean
}

/// Log-normal, with this median, in whole numbers within these limits.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within limits that fit")]
pub(crate) fn lognormal(rng: &mut Rng, median: f64, sigma: f64, least: usize, most: usize) -> usize {
    // A normal one by Box and Muller.
    let normal = (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos();
    (median * (sigma * normal).exp()).clamp(least as f64, most as f64) as usize
}

/// The times of a Poisson process: nobody knows of the others.
pub(crate) fn poisson(rng: &mut Rng, rate: f64, length: f64) -> Vec<f64> {
    let mut times = Vec::new();
    let mut at = exponential(rng, 1.0 / rate);
    while at < length {
        times.push(at);
        at += exponential(rng, 1.0 / rate);
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: usize = 50_000;

    #[test]
    fn means_and_medians_are_what_was_asked_for() {
        let mut rng = Rng::with_seed(3);
        let mean = (0..DRAWS).map(|_| exponential(&mut rng, 4.0)).sum::<f64>() / DRAWS as f64;
        assert!((mean - 4.0).abs() < 0.1, "{mean}");
        let mut values: Vec<usize> = (0..DRAWS).map(|_| lognormal(&mut rng, 300.0, 1.0, 1, 1_000_000)).collect();
        values.sort_unstable();
        let (median, upper) = (values[DRAWS / 2], values[DRAWS * 84 / 100]);
        assert!((290..310).contains(&median), "{median}");
        // One sigma above it is e times as much.
        assert!((770..860).contains(&upper), "{upper}");
    }

    #[test]
    fn limits_are_kept() {
        let mut rng = Rng::with_seed(3);
        for _ in 0..DRAWS {
            assert!((50..=60).contains(&lognormal(&mut rng, 55.0, 3.0, 50, 60)));
        }
    }

    #[test]
    fn a_poisson_process_has_its_rate_and_its_spread() {
        let mut rng = Rng::with_seed(3);
        let times = poisson(&mut rng, 5.0, 10_000.0);
        let mut counts = vec![0.0; 10_000];
        for time in &times {
            counts[*time as usize] += 1.0;
        }
        let mean = counts.iter().sum::<f64>() / 10_000.0;
        let variance = counts.iter().map(|count| (count - mean) * (count - mean)).sum::<f64>() / 10_000.0;
        // Of such a process both are the rate.
        assert!((mean - 5.0).abs() < 0.1 && (variance - 5.0).abs() < 0.3, "{mean}, {variance}");
    }
}
