//! Binding the tensors of a file that has only some of a model's, under the names of BlinkDL's checkpoints.

use super::{
    BoundWeights,
    bind::{bind_row, bind_special, is_pair},
    dialect::Dialect,
    original,
    table::{Layout, Row},
};
use crate::files::Checkpoint;
use rwkv_sched::{Error, Model, Version, Weight};
use std::collections::BTreeMap;

/// The matrix whose original name is `stem` and `.weight`, if it is one that low-rank changes are trained for.
pub(crate) fn matrix_called(stem: &str) -> Option<Weight> {
    match stem {
        "emb" => return Some(Weight::Embedding),
        "head" => return Some(Weight::Head),
        _ => {}
    }
    let (layer, rest) = stem.strip_prefix("blocks.")?.split_once('.')?;
    let layer = layer.parse().ok()?;
    Some(Weight::Block(layer, original::layer_matrix(rest)?))
}

/// Whether `name` is that of layer 0's value residual, which version 7 does not have and some files hold a dummy of.
pub(crate) fn is_dummy(name: &str, version: Version) -> bool {
    let dummies = ["blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"];
    matches!(version, Version::V7 | Version::V7a) && dummies.contains(&name)
}

/// Binds those tensors of `checkpoint` that are tensors of `model`: `names` has what the file calls a tensor, by its
/// original name or a converter's. Also the weights that were bound, and the names in `names`.
///
/// Of a low-rank pair's matrix, which original checkpoints have the other way round than all others, the shape tells
/// how it lies; a square one is taken as in those checkpoints.
pub(crate) fn bind_present(
    checkpoint: &Checkpoint,
    model: &Model,
    names: &BTreeMap<String, String>,
) -> Result<(BoundWeights, Vec<(Weight, String)>), Error> {
    let config = model.config();
    let mut weights = BoundWeights::new(checkpoint);
    let mut bound = Vec::new();
    for row in original::rows(config) {
        let found = [Dialect::Original, Dialect::Converted]
            .into_iter()
            .flat_map(|dialect| {
                let candidates = dialect.names(&row.name);
                candidates.into_iter().map(move |name| (dialect, name))
            })
            .find_map(|(dialect, original)| {
                let name = names.get(&original)?;
                Some((dialect, original, name))
            });
        let Some((dialect, original, name)) = found else {
            continue;
        };
        if is_dummy(&original, config.version) {
            continue;
        }
        if !bind_special(&mut weights, name, &row, dialect, config)? {
            let layout = lies(checkpoint, name, &row, model)?;
            bind_row(&mut weights, name, &row.holds, layout, config)?;
        }
        bound.extend(row.holds.iter().map(|weight| (*weight, original.clone())));
    }
    Ok((weights, bound))
}

/// How the tensor `name` holds `row`.
fn lies(checkpoint: &Checkpoint, name: &str, row: &Row, model: &Model) -> Result<Layout, Error> {
    let Some(first) = row.holds.first().filter(|w| is_pair(**w)) else {
        return Ok(row.layout);
    };
    let shape = model.weights().describe(*first)?.1;
    let (rows, cols) = (shape.rows.0, shape.cols.0);
    let stacked = row.holds.len() * rows;
    let turned = match (row.layout, checkpoint.get(name).map(|t| t.shape)) {
        (Layout::Columns, Some([a, b])) => [*a, *b] == [stacked, cols] && stacked != cols,
        (Layout::ColumnStack, Some([_, a, b])) => [*a, *b] == [rows, cols] && rows != cols,
        _ => false,
    };
    Ok(if turned {
        row.layout.turned()
    } else {
        row.layout
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rwkv_sched::BlockWeight as B;

    #[test]
    fn names() {
        #[track_caller]
        fn check(stem: &str, want: Option<Weight>) {
            assert_eq!(matrix_called(stem), want, "{stem}");
        }
        check("emb", Some(Weight::Embedding));
        check("head", Some(Weight::Head));
        check("blocks.3.att.key", Some(Weight::Block(3, B::AttKey)));
        check(
            "blocks.0.ffn.receptance",
            Some(Weight::Block(0, B::FfnReceptance)),
        );
        check("blocks.0.att.w1", None);
        check("blocks.x.att.key", None);
        check("blocks.99999999999999999999.att.key", None);
        check("blocks.0", None);
        check("ln_out", None);
        assert!(is_dummy("blocks.0.att.v1", Version::V7));
        assert!(!is_dummy("blocks.1.att.v1", Version::V7));
        assert!(!is_dummy("blocks.0.att.v1", Version::V6));
    }
}
