//! Which kernels a step becomes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use super::*;
use crate::{
    BlockWeight as B, InMemoryWeights, Lora, ModelConfig, Result, Version, Weights,
    fuse::{fuse, fuse_decode},
    layers,
};
use rwkv_kernels::{Format, Matrix, ops::Function};
use rwkv_mem::Shape;
use std::collections::HashSet;

const WIDTH: usize = 16;

/// Tensors of the right shapes, without their values.
struct Shapes(InMemoryWeights);

impl Weights for Shapes {
    fn matrix(&self, weight: Weight) -> Result<Matrix<'_>> {
        self.0.matrix(weight)
    }

    fn name(&self, weight: Weight) -> String {
        self.0.name(weight)
    }

    fn describe(&self, weight: Weight) -> Result<(Format, Shape)> {
        let (rows, cols) = match weight {
            Weight::Embedding | Weight::Head => (32, WIDTH),
            Weight::Block(_, block) => match block {
                B::FfnEmbedding => (32, 16),
                B::LoraUp(Lora::DeepEmbed) => (4 * WIDTH, 4),
                B::LoraBias(Lora::DeepEmbed) => (1, 4 * WIDTH),
                B::LoraDown(_) => (4, WIDTH),
                B::LoraUp(_) => (WIDTH, 4),
                B::FfnKey => (4 * WIDTH, WIDTH),
                B::FfnValue => (WIDTH, 4 * WIDTH),
                B::FfnEmbeddingUp
                | B::AttReceptance
                | B::AttKey
                | B::AttValue
                | B::AttGate
                | B::AttOutput
                | B::FfnReceptance => (WIDTH, WIDTH),
                _ => (1, WIDTH),
            },
            _ => (1, WIDTH),
        };
        Ok((Format::F16, Shape::new(rows, cols)))
    }
}

pub(crate) fn graph(version: Version, layers: usize) -> Graph {
    let config = ModelConfig {
        version,
        layers,
        width: WIDTH,
        head_size: if version == Version::V4 { 1 } else { 8 },
        ffn: 4 * WIDTH,
        vocab: 32,
        norm_epsilon: 1e-5,
        group_norm_epsilon: 64e-5,
    };
    layers::build(&config, &Shapes(InMemoryWeights::default())).unwrap()
}

/// What kernels a step runs, in order.
fn names(steps: &[Step], graph: &Graph) -> Vec<String> {
    let first_word = |text: String| text.split(['(', ' ']).next().unwrap_or_default().to_owned();
    let name = |step: &Step| match step {
        Step::Node(index) => first_word(format!("{:?}", graph.nodes()[*index].op)),
        Step::Linear(step) if step.stores.is_some() => "Linear, stores".to_owned(),
        Step::Linear(_) => "Linear".to_owned(),
        Step::Group(group) => format!(
            "{} of {}",
            first_word(format!("{:?}", group.kernel)),
            group.parts.len()
        ),
    };
    steps.iter().map(name).collect()
}

/// The kernels of the second of three layers, which has what every layer but the first has.
#[test]
fn kernels_of_a_layer() {
    let channel_mix = [
        "NormShift of 2",
        "Project of 2",
        "Linear",
        "MultiplyAdd of 2",
    ];
    let check = |version: Version, time_mix: &[&str], channel_mix: &[&str]| {
        let kernels = |layers| {
            let graph = graph(version, layers);
            names(&fuse_decode(&graph), &graph)
        };
        let (two, three) = (kernels(2), kernels(3));
        let layer: Vec<_> = [time_mix, channel_mix].concat();
        let end = ["Select", "Norm", "Linear"];
        let start = two.len() - layer.len() - end.len();
        assert_eq!(two[0], "EmbedNorm of 2", "{version}");
        assert_eq!(two[start..], [&layer[..], &end].concat(), "{version}");
        assert_eq!(three[..two.len() - end.len()], two[..two.len() - end.len()]);
        assert_eq!(three[two.len() - end.len()..], [&layer[..], &end].concat());
    };
    let shift = "NormShift of 2";
    check(
        Version::V4,
        &[shift, "Project of 3", "Recurrence4 of 2", "Linear"],
        &channel_mix,
    );
    check(
        Version::V5_0,
        &[shift, "Project of 3", "Recurrence6 of 2", "Linear"],
        &channel_mix,
    );
    for version in [Version::V5_1, Version::V5_2] {
        check(
            version,
            &[shift, "Project of 4", "Recurrence6 of 3", "Linear"],
            &channel_mix,
        );
    }
    check(
        Version::V6,
        &[
            "NormShift of 3",
            "Project of 5",
            "Mix6 of 10",
            "Project of 5",
            "Recurrence6 of 4",
            "Linear",
        ],
        &channel_mix,
    );
    let seven = [shift, "Project of 7", "Recurrence7 of 10", "Linear"];
    check(Version::V7, &seven, &[shift, "Linear", "Linear"]);
}

/// Cutting a graph between layers changes none of its kernels.
#[test]
fn kernels_of_parts() {
    for version in Version::ALL {
        let whole = graph(version, 4);
        let want = names(&fuse_decode(&whole), &whole);
        for cuts in [vec![1], vec![3], vec![1, 2, 3]] {
            let ends = cuts.iter().copied().chain([4]);
            let starts = [0].into_iter().chain(cuts.iter().copied());
            let kernels = |range| {
                let part = whole.part(range);
                names(&fuse_decode(&part), &part)
            };
            let all = starts
                .zip(ends)
                .flat_map(|(start, end)| kernels(start..end));
            let all: Vec<_> = all.filter(|name| name != "Input").collect();
            assert_eq!(all, want, "{version}, {cuts:?}");
        }
    }
}

/// Dispatches of a layer with one page of state: how much a layer more takes.
#[test]
fn dispatches_of_a_layer() {
    for (version, grouped, apart) in [
        (Version::V4, 8, 17),
        (Version::V5_0, 8, 17),
        (Version::V5_1, 8, 19),
        (Version::V5_2, 8, 19),
        (Version::V6, 10, 37),
        (Version::V7, 7, 26),
        (Version::V7a, 12, 32),
    ] {
        let count = |steps: fn(&Graph) -> Vec<Step>| {
            let of = |layers| -> usize {
                let graph = graph(version, layers);
                let dispatches = |step: &Step| match step {
                    // They store the state in a dispatch of its own.
                    Step::Node(index) => match graph.nodes()[*index].op {
                        Op::TokenShift { .. } | Op::Previous { .. } => 2,
                        _ => 1,
                    },
                    _ => 1,
                };
                steps(&graph).iter().map(dispatches).sum()
            };
            of(3) - of(2)
        };
        assert_eq!(
            (count(fuse_decode), count(fuse)),
            (grouped, apart),
            "{version}"
        );
    }
}

/// Every value that is read was made before, in groups and apart, and nothing is lost.
#[test]
fn order_is_respected() {
    for version in Version::ALL {
        let graph = graph(version, 3);
        let steps = fuse_decode(&graph);
        let mut made = HashSet::new();
        for step in &steps {
            assert!(
                step.inputs(&graph).iter().all(|x| made.contains(x)),
                "{version}: {step:?}"
            );
            made.extend(step.outputs(&graph));
        }
        assert!(graph.results().iter().all(|result| made.contains(result)));
        let mut apart: Vec<usize> = Vec::new();
        let mut linears = 0;
        let mut count = |step: &Step| match step {
            Step::Node(index) => apart.push(*index),
            _ => linears += 1,
        };
        for step in &steps {
            match step {
                Step::Group(group) => group.parts.iter().for_each(&mut count),
                other => count(other),
            }
        }
        let all = fuse(&graph);
        let nodes = all.iter().filter(|s| matches!(s, Step::Node(_))).count();
        assert_eq!(
            (apart.len(), linears),
            (nodes, all.len() - nodes),
            "{version}"
        );
    }
}

/// A recurrence of version 7 that is taken apart: the second halves of its pairs are a group, which the first layer has without
/// the mix of values, and nothing else is in it.
#[test]
fn pairs_of_a_recurrence() {
    let graph = graph(Version::V7, 2);
    let recurrences: Vec<_> = fuse_decode(&graph)
        .into_iter()
        .filter_map(|step| match step {
            Step::Group(group) if matches!(group.kernel, Kernel::Recurrence7(_)) => Some(group),
            _ => None,
        })
        .collect();
    assert_eq!(recurrences.len(), 2);
    for (layer, group) in recurrences.iter().enumerate() {
        let (ups, rest) = group.pair_ups(&graph).unwrap();
        let Kernel::PairUps(what) = &ups.kernel else {
            panic!("{ups:?}");
        };
        let functions: Vec<_> = what.ends.iter().map(|end| end.function).collect();
        let usual = [Function::Decay7, Function::Sigmoid, Function::Identity];
        assert_eq!(functions[..3], usual);
        let biased: Vec<_> = what.ends.iter().map(|end| end.bias.is_some()).collect();
        let with_value = [true, true, false, true];
        assert_eq!(biased, with_value[..what.ends.len()]);
        assert_eq!(
            (what.ends.len(), what.mixed.is_some()),
            [(3, false), (4, true)][layer]
        );
        let other = |step: &&Step| !ups.parts.contains(step);
        assert_eq!(
            group
                .parts
                .iter()
                .filter(other)
                .cloned()
                .collect::<Vec<_>>(),
            rest
        );
        // What the rest reads of these steps is made.
        let made: Vec<_> = ups
            .parts
            .iter()
            .flat_map(|step| step.outputs(&graph))
            .collect();
        let read = rest.iter().flat_map(|step| step.inputs(&graph));
        assert!(
            read.filter(|id| made.contains(id))
                .all(|id| ups.outputs.contains(&id))
        );
        assert!(group.gated_heads(&graph).is_some());
    }
}
