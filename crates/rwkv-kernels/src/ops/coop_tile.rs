//! The tiles that workgroups make of a product with cooperative matrices, and how a product is cut into them.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// A tile that a workgroup makes, as in `wgsl/coop/tiles/`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tile {
    pub(super) name: &'static str,
    /// Rows and columns of a matrix.
    pub(super) side: u32,
    pub(super) tokens: usize,
    pub(super) rows: usize,
    /// Columns of a step.
    pub(super) depth: usize,
    /// Whether it is there for F16, and for packed formats.
    pub(super) halves: bool,
    pub(super) packed: bool,
    /// Whether so few subgroups make it that its loop knows the number of its turns.
    pub(super) few: bool,
}

pub(super) const LARGE: Tile = Tile {
    name: "128x128x64-8",
    side: 16,
    tokens: 128,
    rows: 128,
    depth: 64,
    halves: true,
    packed: true,
    few: false,
};
pub(super) const LARGE_OF_FOUR: Tile = Tile {
    name: "128x128x64-4",
    packed: false,
    few: true,
    ..LARGE
};
pub(super) const MEDIUM: Tile = Tile {
    name: "64x64x64-4",
    tokens: 64,
    rows: 64,
    ..LARGE
};
pub(super) const SMALL: Tile = Tile {
    name: "32x128x64-4",
    tokens: 32,
    packed: false,
    ..LARGE
};
pub(super) const SMALL_DEEP: Tile = Tile {
    name: "32x128x128-4",
    depth: 128,
    ..SMALL
};
pub(super) const SMALL_PACKED: Tile = Tile {
    name: "32x64x64-4",
    tokens: 32,
    rows: 64,
    halves: false,
    ..LARGE
};
pub(super) const TINY: Tile = Tile {
    name: "16x64x64-4",
    tokens: 16,
    rows: 64,
    ..SMALL
};
pub(super) const TINY_DEEP: Tile = Tile {
    name: "16x128x128-4",
    rows: 128,
    depth: 128,
    ..TINY
};
pub(super) const EIGHTS: Tile = Tile {
    name: "64x64x32-8x8",
    side: 8,
    depth: 32,
    ..MEDIUM
};

/// Steps that workgroups take in orders of their own: in more, they would not find in a cache what others have read.
const MOST_IN_A_WINDOW: usize = 8;

static TILES: [Tile; 9] = [
    LARGE,
    LARGE_OF_FOUR,
    MEDIUM,
    SMALL,
    SMALL_DEEP,
    SMALL_PACKED,
    TINY,
    TINY_DEEP,
    EIGHTS,
];

impl Tile {
    /// Tiles of a product.
    pub(super) fn count(&self, tokens: usize, rows: usize) -> usize {
        tokens.div_ceil(self.tokens) * rows.div_ceil(self.rows)
    }

    /// What its kernel knows of slices of `slice` columns of `cols`: their steps if all have as many, and of those how many
    /// workgroups take in orders of their own.
    pub(super) fn turns(&self, cols: usize, slice: usize) -> Vec<(&'static str, f64)> {
        if !self.few || !cols.is_multiple_of(slice) {
            return Vec::new();
        }
        let turns = slice.div_ceil(self.depth);
        let window = 1usize << turns.trailing_zeros().min(MOST_IN_A_WINDOW.ilog2());
        vec![("TURNS", turns as f64), ("WINDOW", window as f64)]
    }
}

/// One of the tiles that the kernels make, by the name of its file in `wgsl/coop/tiles`: tokens, rows, columns of a step,
/// subgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
pub struct CoopTile(usize);

impl CoopTile {
    pub(super) fn spec(self) -> &'static Tile {
        TILES.get(self.0).unwrap_or(&TILES[0])
    }

    /// All of them, also those that an adapter cannot run.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..TILES.len()).map(Self)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.spec().name
    }

    /// Tokens and rows of a workgroup.
    pub fn size(self) -> (usize, usize) {
        (self.spec().tokens, self.spec().rows)
    }
}

impl From<CoopTile> for &'static str {
    fn from(tile: CoopTile) -> Self {
        tile.name()
    }
}

impl TryFrom<String> for CoopTile {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        let found = Self::all().find(|tile| tile.name() == name);
        found.ok_or_else(|| {
            Error::shape(
                "a tile of cooperative matrices",
                format!("there is no {name}"),
            )
        })
    }
}

/// How workgroups share a product with cooperative matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CoopShape {
    /// What a workgroup makes.
    pub tile: CoopTile,
    /// Parts that the columns are cut into, each for other workgroups; a further dispatch adds up their sums.
    pub slices: usize,
}

impl CoopShape {
    /// What is worth timing for `tokens`: tiles that are not mostly empty, nor so low that W is read often.
    pub(crate) fn candidates(tokens: usize) -> impl Iterator<Item = Self> {
        let suits = move |tile: &CoopTile| {
            let high = tile.spec().tokens;
            high < 2 * tokens.max(16) && high >= tokens.min(64) && high * 2 >= tokens.min(256)
        };
        CoopTile::all()
            .filter(suits)
            .flat_map(|tile| [1, 2, 4, 8, 16].map(|slices| Self { tile, slices }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::{ops::coop_product::kernel_name, shaders};

    /// The tiles here and in the kernels are the same.
    #[test]
    fn tiles() {
        for tile in &TILES {
            let all = [
                ("f16", tile.halves),
                ("columns", tile.halves),
                ("q4_k", tile.packed),
                ("int8", tile.packed),
            ];
            for (source, _) in all.into_iter().filter(|(_, there)| *there) {
                for end in ["finish", "sums"] {
                    let name = kernel_name(source, tile, end, "one");
                    let source = shaders::find(&name).unwrap().source;
                    for (name, value) in [
                        ("SIDE", tile.side as usize),
                        ("TOKENS", tile.tokens),
                        ("ROWS", tile.rows),
                        ("DEPTH", tile.depth),
                    ] {
                        let line = format!("const {name}: u32 = {value};");
                        assert!(source.contains(&line), "{}: {line}", tile.name);
                    }
                }
            }
        }
    }
}
