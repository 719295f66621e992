//! `wgsl/manifest.toml`: the kernels and the axes of their variants.

use serde::Deserialize;
use std::collections::BTreeMap;

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub(crate) kernel: Vec<Kernel>,
}

/// A kernel: one WGSL file and what it varies in.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    /// Each axis is its name and its values.
    #[serde(default)]
    pub(crate) axes: Vec<Vec<String>>,
    pub(crate) backends: Vec<String>,
}

/// One variant: its full name and the preprocessor's definitions.
pub(crate) struct Variant {
    pub(crate) name: String,
    pub(crate) definitions: BTreeMap<String, String>,
}

impl Kernel {
    /// Every combination of the axes' values.
    pub(crate) fn variants(&self) -> Vec<Variant> {
        let mut all = vec![Variant {
            name: self.name.clone(),
            definitions: BTreeMap::new(),
        }];
        for axis in &self.axes {
            let Some((name, values)) = axis.split_first() else {
                continue;
            };
            all = all
                .iter()
                .flat_map(|variant| {
                    values.iter().map(move |value| {
                        let mut definitions = variant.definitions.clone();
                        definitions.insert(name.clone(), value.clone());
                        definitions
                            .insert(format!("{name}_{}", value.to_uppercase()), "1".to_owned());
                        Variant {
                            name: format!("{}/{value}", variant.name),
                            definitions,
                        }
                    })
                })
                .collect();
        }
        all
    }
}
