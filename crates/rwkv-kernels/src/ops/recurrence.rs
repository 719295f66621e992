//! How the recurrences with a matrix `[value, key]` a head share out its rows.

use super::heads::compiled_head;
use crate::{Error, Kernels, Result, shaders};
use rwkv_gpu::Shader;

/// How the work on a span of one head is cut: `recurrence/tile.wgsl` has what the numbers mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecurrenceTile {
    /// Rows of the state that a team of lanes has together: 1, 2 or 4.
    pub rows: usize,
    /// Lanes of a team, which are of one subgroup: 8 or 16; 1 where a thread has its row alone.
    pub team: usize,
    /// Threads of a workgroup: 64 or 128. Heads that have no rows for so many are served by fewer.
    pub threads: usize,
    /// Channels of tokens that are brought to workgroup memory at once: 512, 1024 or 2048.
    pub stage: usize,
    /// Tokens that take the state from one value to the next: 4, or 1 for sums whose order does not depend on where a span
    /// begins.
    pub block: usize,
}

/// Whose recurrence it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recurrence {
    /// That of RWKV-5 and RWKV-6.
    Wkv6,
    /// That of RWKV-7.
    Wkv7,
}

impl Recurrence {
    fn kernel(self) -> &'static str {
        match self {
            Self::Wkv6 => "wkv6",
            Self::Wkv7 => "wkv7",
        }
    }
}

/// Workgroups that a large GPU runs at once, a core each: with fewer rows a workgroup each span is done sooner, as long as
/// there are no more of them than that, and with fewer tokens staged a core has room for several (H200,
/// docs/performance.md).
const CORES: usize = 132;

impl RecurrenceTile {
    /// What every adapter can run.
    const PLAIN: Self = Self {
        rows: 1,
        team: 1,
        threads: 64,
        stage: 512,
        block: 1,
    };

    const fn of_teams((rows, team, stage): (usize, usize, usize)) -> Self {
        Self {
            rows,
            team,
            threads: 128,
            stage,
            block: 4,
        }
    }

    /// Every tile.
    pub fn candidates() -> Vec<Self> {
        let fours = [
            (1, 8, 1024),
            (2, 8, 1024),
            (4, 8, 1024),
            (4, 8, 512),
            (2, 16, 1024),
            (4, 16, 1024),
            (1, 8, 2048),
            (2, 8, 2048),
            (4, 8, 2048),
            (2, 16, 2048),
            (4, 16, 2048),
        ];
        let mut all = vec![Self::PLAIN, Self::ONE_ORDER];
        all.extend(fours.map(Self::of_teams));
        all
    }

    /// The tile for `states` heads of all spans together.
    pub fn usual(of: Recurrence, kernels: &Kernels, states: usize, head_size: usize) -> Self {
        // Of those by which a workgroup has as many rows, the ones after the first are for adapters that cannot run it.
        let shapes = [
            (2, 16, 2048),
            (2, 16, 1024),
            (1, 8, 1024),
            (4, 16, 2048),
            (4, 16, 1024),
            (2, 8, 1024),
            (4, 8, 2048),
        ];
        let at_once = |tile: &Self| {
            let each = tile.workgroups_a_head(head_size);
            each.is_ok_and(|each| each.saturating_mul(states) <= CORES)
        };
        let few = shapes.map(Self::of_teams).into_iter().filter(at_once);
        let many = [(4, 8, 1024), (4, 8, 512)].map(Self::of_teams);
        few.chain(many)
            .find(|tile| tile.fits(of, kernels, head_size))
            .unwrap_or_else(|| Self::in_one_order(of, kernels, head_size))
    }

    const ONE_ORDER: Self = Self {
        rows: 2,
        team: 8,
        threads: 128,
        stage: 512,
        block: 1,
    };

    /// One tile whatever the batch, whose sums do not depend on where spans begin.
    pub fn in_one_order(of: Recurrence, kernels: &Kernels, head_size: usize) -> Self {
        let tile = Self::ONE_ORDER;
        if tile.fits(of, kernels, head_size) {
            tile
        } else {
            Self::PLAIN
        }
    }

    /// Whether there is such a kernel that `kernels` can run.
    pub fn fits(self, of: Recurrence, kernels: &Kernels, head_size: usize) -> bool {
        self.shader(of, kernels, head_size).is_ok()
    }

    /// The threads of a workgroup.
    fn own_threads(self, head_size: usize) -> Result<usize> {
        let head = compiled_head("recurrence", head_size)?;
        Ok((head.saturating_mul(self.team.max(1)) / self.rows.max(1)).min(self.threads))
    }

    /// Workgroups for one head of a span.
    pub(super) fn workgroups_a_head(self, head_size: usize) -> Result<usize> {
        let rows = (self.own_threads(head_size)? / self.team.max(1)).saturating_mul(self.rows);
        Ok(compiled_head("recurrence", head_size)? / rows.max(1))
    }

    /// The kernel for this tile.
    ///
    /// # Errors
    /// [`Error::Shape`] for heads of more than 128, and where there is none that the adapter can run.
    pub(super) fn shader(
        self,
        of: Recurrence,
        kernels: &Kernels,
        head_size: usize,
    ) -> Result<&'static Shader> {
        let kernel = of.kernel();
        let head = compiled_head(kernel, head_size)?;
        let threads = self.own_threads(head_size)?;
        let Self {
            rows, team, stage, ..
        } = self;
        let lanes = if team > 1 { "subgroup" } else { "plain" };
        let (most, block) = (self.threads, self.block);
        let name = format!("{kernel}/{head}/{rows}/{team}/{most}/{stage}/{block}/{lanes}");
        let capabilities = kernels.gpu().capabilities();
        // A team is of one subgroup, of at least the eight lanes that add up dots, and no subgroup is partly empty.
        let together = capabilities.subgroups.is_some_and(|s| {
            s.min as usize >= team.max(8) && threads.is_multiple_of(s.max.max(1) as usize)
        });
        shaders::find(&name)
            .ok()
            // Several tokens at once are brought four channels at a time.
            .filter(|_| block == 1 || head_size.is_multiple_of(4))
            .filter(|shader| {
                shader.workgroup_bytes <= capabilities.limits.workgroup_bytes
                    && (together || team == 1)
            })
            .ok_or_else(|| {
                let problem = format!("there is no {self:?} for heads of {head_size}");
                Error::shape(kernel, problem)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::coop_emulation::kernels;

    /// Heads that are no multiple of four still have teams where the adapter has them, and every head has a tile.
    #[test]
    fn usual() {
        let kernels = kernels(16);
        for of in [Recurrence::Wkv6, Recurrence::Wkv7] {
            for head_size in 1..=128 {
                for states in [1, 33, 1000, usize::MAX] {
                    let tile = RecurrenceTile::usual(of, &kernels, states, head_size);
                    let fits = tile.fits(of, &kernels, head_size);
                    assert!(fits, "{tile:?} of {head_size}");
                    if !head_size.is_multiple_of(4) {
                        let one_order = RecurrenceTile::in_one_order(of, &kernels, head_size);
                        assert_eq!(tile, one_order, "{head_size}");
                    }
                }
            }
        }
    }

    #[test]
    fn no_such_tile() {
        for rows in [1, usize::MAX] {
            let none = RecurrenceTile {
                team: usize::MAX,
                rows,
                ..RecurrenceTile::PLAIN
            };
            assert!(!none.fits(Recurrence::Wkv7, &kernels(16), 64));
        }
    }
}
