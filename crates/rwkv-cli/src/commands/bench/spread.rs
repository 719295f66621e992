//! What several rounds of one measurement say together.

use serde::Serialize;

/// The middle and both ends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    /// Half of the rounds lie above; the mean of the middle two where their number is even.
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    /// None of no values; values that are no numbers are left out.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().filter(|v| !v.is_nan()).collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (sorted.len().checked_sub(1)? / 2, sorted.len() / 2);
        Some(Self {
            median: f64::midpoint(*sorted.get(low)?, *sorted.get(high)?),
            min: *sorted.first()?,
            max: *sorted.last()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_rounds() {
        #[track_caller]
        fn check(values: &[f64], want: Option<[f64; 3]>) {
            let got = Spread::of(values.iter().copied()).map(|s| [s.median, s.min, s.max]);
            assert_eq!(got, want, "{values:?}");
        }
        check(&[], None);
        check(&[f64::NAN], None);
        check(&[3.0], Some([3.0, 3.0, 3.0]));
        check(&[4.0, 1.0], Some([2.5, 1.0, 4.0]));
        check(&[9.0, 1.0, 2.0], Some([2.0, 1.0, 9.0]));
        check(&[4.0, 1.0, 3.0, 2.0], Some([2.5, 1.0, 4.0]));
        check(&[2.0, f64::NAN, 1.0, 3.0], Some([2.0, 1.0, 3.0]));
        check(&[-0.0, 0.0, f64::INFINITY], Some([0.0, 0.0, f64::INFINITY]));
        // The same, whatever the order.
        let values = [5.0, 3.5, 8.0, 1.0, 1.0, 7.0, 2.0];
        for turn in 0..values.len() {
            let mut turned = values;
            turned.rotate_left(turn);
            check(&turned, Some([3.5, 1.0, 8.0]));
        }
    }
}
