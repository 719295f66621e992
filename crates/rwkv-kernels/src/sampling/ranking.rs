//! Tokens from the most to the least probable, and the filters, each of which keeps a beginning of that ranking.

use super::exp::exp_of_negative;

/// A token and its place in the ranking; smaller is more probable, and in a tie the lower id comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// The bits of the gap: those of f32 numbers that are not negative are ordered like the numbers.
    gap_bits: u32,
    pub(super) token: u32,
}

impl Place {
    /// How far the logit is below the largest; not negative.
    pub(super) fn gap(self) -> f32 {
        f32::from_bits(self.gap_bits)
    }
}

/// What gaps are multiplied by at this temperature (above 0). A product is rounded alike everywhere, a GPU's quotient
/// is not.
pub(super) fn inverse(temperature: f32) -> f32 {
    // Normal, so that 0 times it is 0 and that no GPU takes it for 0.
    (1.0 / temperature).clamp(f32::MIN_POSITIVE, f32::MAX)
}

/// A token's unnormalised probability at an inverse temperature; 1 for the most probable token.
#[inline]
pub(super) fn weight(gap: f32, inverse: f32) -> f32 {
    exp_of_negative(-(gap * inverse))
}

/// The tokens whose gap is at most `widest`, by ascending id. `gaps` has one for each token, not negative, not NaN.
pub(super) fn within(gaps: &[f32], widest: f32) -> Vec<Place> {
    let places = (0..).zip(gaps).filter(|(_, gap)| **gap <= widest);
    places
        .map(|(token, gap)| Place {
            gap_bits: gap.to_bits(),
            token,
        })
        .collect()
}

/// Keeps the `k` most probable; 0 keeps all.
pub(super) fn top_k(places: &mut Vec<Place>, k: u32) {
    let Some(last) = (k as usize).checked_sub(1) else {
        return;
    };
    if last < places.len() {
        let mut ranked = places.clone();
        let (_, &mut cut, _) = ranked.select_nth_unstable(last);
        places.retain(|place| *place <= cut);
    }
}

/// The widest gap at which a weight is at least `min_p`, as the largest weight is 1; `+inf` for 0.
pub(super) fn min_p_gap(min_p: f32, temperature: f32) -> f32 {
    // `abs` because −ln(1) would be −0.
    let gap = f64::from(min_p).ln().abs() * f64::from(temperature);
    #[allow(
        clippy::cast_possible_truncation,
        reason = "a gap beyond f32 becomes +inf, which keeps all"
    )]
    let gap = gap as f32;
    gap
}

/// The gap of the first token at which the running sum of the weights, down the ranking, reaches the share `top_p` of
/// their total at an inverse temperature; `+inf` for 1.
///
/// A radix selection from the highest bits of the gap down, with sums of weights in the place of counts. A flat
/// distribution takes the same few passes, where a sort of 65,536 tokens takes milliseconds.
pub(super) fn nucleus_gap(gaps: &[f32], top_p: f32, inverse: f32) -> f32 {
    const DIGITS: usize = 2048;
    let digit = |gap_bits: u32, shift: u32| (gap_bits >> shift) as usize % DIGITS;

    if top_p >= 1.0 {
        return f32::INFINITY;
    }
    let weights: Vec<f32> = gaps.iter().map(|gap| weight(*gap, inverse)).collect();
    let total = sum(&weights);
    let target = f64::from(top_p) * total;
    // All tokens below this weight together have less than half of the share that may be left out, so the nucleus
    // ends before them. That leaves some thousand tokens of a trained model's 65,536.
    let negligible = (1.0 - f64::from(top_p)) * total / (2.0 * gaps.len() as f64);
    let relevant = gaps
        .iter()
        .zip(&weights)
        .filter(|(_, weight)| f64::from(**weight) >= negligible);
    let mut members: Vec<(u32, f32)> = relevant
        .map(|(gap, weight)| (gap.to_bits(), *weight))
        .collect();

    let mut gap_bits = 0;
    let mut before = 0.0;
    // 31 bits: the sign is clear. The last digit overlaps the middle one, whose bits are equal by then.
    for shift in [20, 9, 0] {
        let mut sums = [0.0_f64; DIGITS];
        for &(bits, weight) in &members {
            sums[digit(bits, shift)] += f64::from(weight);
        }
        // Rounding may leave the sum short of the target in the end: then it is the last digit that has any weight.
        let mut chosen = (0, before);
        let mut running = before;
        for (digit, sum) in sums.iter().enumerate().filter(|(_, sum)| **sum > 0.0) {
            chosen = (digit, running);
            running += sum;
            if running >= target {
                break;
            }
        }
        before = chosen.1;
        members.retain(|&(bits, _)| digit(bits, shift) == chosen.0);
        gap_bits = members.first().map_or(gap_bits, |&(bits, _)| bits);
    }
    f32::from_bits(gap_bits)
}

/// The sum in f64, in eight lanes because one chain of additions does not vectorise.
fn sum(weights: &[f32]) -> f64 {
    let (eights, rest) = weights.as_chunks::<8>();
    let mut lanes = [0.0_f64; 8];
    for eight in eights {
        for (lane, weight) in lanes.iter_mut().zip(eight) {
            *lane += f64::from(*weight);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|weight| f64::from(*weight)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tokens that are within a gap.
    fn kept(gaps: &[f32], widest: f32) -> Vec<u32> {
        within(gaps, widest)
            .iter()
            .map(|place| place.token)
            .collect()
    }

    /// The gaps of tokens with these weights.
    fn gaps_of<const N: usize>(weights: [f32; N]) -> [f32; N] {
        weights.map(|weight| weight.ln().abs())
    }

    #[test]
    fn top_k_breaks_ties_towards_the_lower_id() {
        let gaps = [1.0, 2.0, 0.0, 1.0, 1.0, f32::INFINITY];
        for (k, expected) in [
            (0, &[0, 1, 2, 3, 4, 5][..]),
            (1, &[2]),
            (2, &[0, 2]),
            (3, &[0, 2, 3]),
            (4, &[0, 2, 3, 4]),
            (6, &[0, 1, 2, 3, 4, 5]),
            (u32::MAX, &[0, 1, 2, 3, 4, 5]),
        ] {
            let mut places = within(&gaps, f32::INFINITY);
            top_k(&mut places, k);
            assert_eq!(
                places.iter().map(|place| place.token).collect::<Vec<_>>(),
                expected,
                "k {k}"
            );
        }
    }

    #[test]
    fn top_p_keeps_ties() {
        // Weights 1, ½, ½, ¼, ¼ and 0: shares 0.4, 0.2, 0.2, 0.1, 0.1.
        let gaps = gaps_of([0.25, 0.5, 1.0, 0.25, 0.5, 0.0]);
        for (share, expected) in [
            (0.0, &[2][..]),
            (0.399, &[2]),
            (0.401, &[1, 2, 4]),
            (0.799, &[1, 2, 4]),
            (0.801, &[0, 1, 2, 3, 4]),
            (0.999_999_9, &[0, 1, 2, 3, 4]),
            (1.0, &[0, 1, 2, 3, 4, 5]),
        ] {
            assert_eq!(
                kept(&gaps, nucleus_gap(&gaps, share, 1.0)),
                expected,
                "top_p {share}"
            );
        }
        // Reaching the share exactly is enough.
        let gaps = [std::f32::consts::LN_2, 0.0, std::f32::consts::LN_2];
        assert_eq!(weight(gaps[0], 1.0).to_bits(), 0.5_f32.to_bits());
        assert_eq!(kept(&gaps, nucleus_gap(&gaps, 0.5, 1.0)), [1]);
    }

    #[test]
    fn min_p_is_relative_to_the_most_probable() {
        let gaps = gaps_of([0.25, 0.51, 1.0, 0.26, 0.0]);
        for (share, temperature, expected) in [
            (0.0, 1.0, &[0, 1, 2, 3, 4][..]),
            (1e-30, 1.0, &[0, 1, 2, 3]),
            (0.255, 1.0, &[1, 2, 3]),
            (0.5, 1.0, &[1, 2]),
            (0.5, 2.0, &[0, 1, 2, 3]),
            (0.5, 0.5, &[2]),
            (1.0, 1.0, &[2]),
        ] {
            assert_eq!(
                kept(&gaps, min_p_gap(share, temperature)),
                expected,
                "min_p {share}"
            );
        }
    }

    /// Gaps that differ in their lowest bit only are still told apart.
    #[test]
    fn every_bit_of_a_gap_is_looked_at() {
        for bits in [
            1_u32,
            2,
            0x1FF,
            0x200,
            0x3F80_0000,
            0x3FFF_FFFF,
            0x40AB_CDEF,
        ] {
            let gap = f32::from_bits(bits);
            let gaps = [gap.next_up(), gap, 0.0];
            let share = (1.0 + 0.5 * (-gap).exp()) / (1.0 + 2.0 * (-gap).exp());
            assert_eq!(
                kept(&gaps, nucleus_gap(&gaps, share, 1.0)),
                [1, 2],
                "bits {bits:x}"
            );
        }
    }
}
