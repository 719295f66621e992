//! Where along a prompt states are worth keeping.

use std::ops::Range;

/// Where states are kept along a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spacing {
    /// Tokens: states inside a prompt lie at multiples of it (counted from the first token of all, so that prompts that
    /// share a prefix share them). A prompt's chunk, or less.
    pub grain: usize,
    /// The most states a prompt.
    pub most: usize,
}

impl Default for Spacing {
    /// Multiples of 256 tokens, at most 24.
    fn default() -> Self {
        Self {
            grain: 256,
            most: 24,
        }
    }
}

impl Spacing {
    /// As [`checkpoints`]; none where less than the grain is to be fed: each state costs a step, and reading it.
    pub fn along(self, fed: Range<usize>, shared: usize) -> Vec<usize> {
        if fed.len() < self.grain {
            return Vec::new();
        }
        checkpoints(fed, shared, self)
    }
}

/// After which tokens of a prompt to keep the state: numbers of tokens, ascending, inside `fed`. Its start is how much of
/// the prompt a state was there for, its end the prompt's length. `shared` is how much of the prompt others have in
/// common with it ([`Peek::shared`](super::Peek::shared)).
///
/// In the order of their worth, which counts where there are more than [`Spacing::most`]: one token before the end, so
/// that the same prompt has one to feed; where the prompt left what others share with it, which is where the next one will
/// leave it too; at the powers of two of the grain from the start, and from the end, rounded down to the grain. So a
/// prompt that has any L of n tokens in common with this one finds a state after at least `L − min(L / 2, n − L)` of
/// them, less two grains.
pub fn checkpoints(fed: Range<usize>, shared: usize, spacing: Spacing) -> Vec<usize> {
    let grain = spacing.grain.max(1);
    let powers = || std::iter::successors(Some(grain), |d| d.checked_mul(2));
    let from_start = powers().take_while(|d| *d < fed.end);
    let from_end = powers()
        .map_while(|d| fed.end.checked_sub(d))
        .map(|at| at / grain * grain);
    let spread = from_end
        .zip(from_start)
        .flat_map(|(end, start)| [end, start]);
    let mut kept = Vec::new();
    for at in fed
        .end
        .checked_sub(1)
        .into_iter()
        .chain([shared])
        .chain(spread)
    {
        if kept.len() >= spacing.most {
            break;
        }
        if fed.start < at && at < fed.end && !kept.contains(&at) {
            kept.push(at);
        }
    }
    kept.sort_unstable();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rows() {
        let spacing = |grain, most| Spacing { grain, most };
        let rows = [
            (0..0, 0, spacing(4, 9), vec![]),
            (0..1, 0, spacing(4, 9), vec![]),
            (0..2, 0, spacing(4, 9), vec![1]),
            (0..20, 0, spacing(4, 9), vec![4, 8, 12, 16, 19]),
            (0..20, 7, spacing(4, 9), vec![4, 7, 8, 12, 16, 19]),
            // What there is a state for already, and nothing of it again.
            (8..20, 8, spacing(4, 9), vec![12, 16, 19]),
            (19..20, 19, spacing(4, 9), vec![]),
            // The end, where others left, and then from the end on.
            (0..20, 7, spacing(4, 1), vec![19]),
            (0..20, 7, spacing(4, 2), vec![7, 19]),
            (0..20, 7, spacing(4, 3), vec![7, 16, 19]),
            (0..20, 0, spacing(4, 0), vec![]),
            (0..5, 0, spacing(0, 9), vec![1, 2, 3, 4]),
        ];
        for (fed, shared, spacing, want) in rows {
            let case = format!("{fed:?} {shared} {spacing:?}");
            assert_eq!(checkpoints(fed, shared, spacing), want, "{case}");
        }
        let long = checkpoints(0..26_000, 0, Spacing::default());
        assert_eq!(
            long,
            [
                256, 512, 1024, 2048, 4096, 8192, 9472, 16_384, 17_664, 21_760, 23_808, 24_832,
                25_344, 25_600, 25_999
            ]
        );
    }

    proptest! {
        #[test]
        fn what_is_promised(
            length in 0usize..40_000,
            start in any::<prop::sample::Index>(),
            shared in any::<prop::sample::Index>(),
            grain in 0usize..3_000,
            most in 0usize..40,
        ) {
            let fed = start.index(length + 1)..length;
            let shared = shared.index(length + 1);
            let kept = checkpoints(fed.clone(), shared, Spacing { grain, most });
            prop_assert!(kept.len() <= most);
            prop_assert!(kept.is_sorted_by(|a, b| a < b));
            for at in &kept {
                prop_assert!(fed.start < *at && *at < fed.end);
                prop_assert!(*at == shared || *at == length - 1 || *at % grain.max(1) == 0);
            }
            if most < 40 && most > 2 {
                prop_assert!(shared <= fed.start || shared >= length || kept.contains(&shared));
            }
            if length > fed.start + 1 && most > 0 {
                prop_assert_eq!(kept.last(), Some(&(length - 1)));
            }
        }

        /// However much another prompt shares, not much of that has to be computed again.
        #[test]
        fn the_bound(length in 1usize..40_000, common in any::<prop::sample::Index>(), grain in 1usize..3_000) {
            let kept = checkpoints(0..length, 0, Spacing { grain, most: usize::MAX });
            let common = common.index(length + 1);
            let found = kept.iter().copied().filter(|at| *at <= common).max().unwrap_or(0);
            let again = common - found;
            prop_assert!(again <= (common / 2).min(length - common) + 2 * grain, "{} of {}", again, common);
        }
    }
}
