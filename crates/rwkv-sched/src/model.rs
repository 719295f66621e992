//! A graph with weights.

use crate::{
    BlockWeight, Graph, ModelConfig, Result, State, StateLayout, ValueId, Version, Weight, Weights,
    layers,
};
use std::{collections::HashSet, ops::Range, sync::Arc};

/// A model: its equations and its tensors, or some layers of one. Cloning shares the tensors.
#[derive(Clone)]
pub struct Model {
    config: ModelConfig,
    /// The whole model's equations, and those of its layers.
    whole: Arc<Graph>,
    graph: Arc<Graph>,
    layers: Range<usize>,
    weights: Arc<dyn Weights>,
    /// What the graph takes as inputs of tables that stay on the host.
    host_tables: Vec<(ValueId, Weight)>,
}

impl Model {
    /// Builds the graph of `config`'s version and checks that `weights` has every tensor it needs, in its shape.
    ///
    /// # Errors
    /// [`crate::Error::Config`] or [`crate::Error::Weight`], which names the tensor.
    pub fn new(config: ModelConfig, weights: Arc<dyn Weights>) -> Result<Self> {
        config.validate()?;
        let graph = Arc::new(layers::build(&config, weights.as_ref())?);
        Ok(Self {
            layers: 0..config.layers,
            config,
            whole: graph.clone(),
            graph,
            weights,
            host_tables: Vec::new(),
        })
    }

    /// Some of its layers, of which the first brings the embedding and the last the head. The dimensions stay those of the
    /// whole model, as do the names of tensors.
    pub(crate) fn part(&self, layers: Range<usize>) -> Self {
        Self {
            graph: Arc::new(self.whole.part(layers.clone())),
            layers,
            host_tables: Vec::new(),
            ..self.clone()
        }
    }

    /// All of the model that this is a part of.
    pub(crate) fn whole(&self) -> Self {
        Self {
            graph: self.whole.clone(),
            layers: 0..self.config.layers,
            host_tables: Vec::new(),
            ..self.clone()
        }
    }

    /// The same with `tables` on the host: its graph takes what is looked up there as inputs.
    pub(crate) fn with_host_tables(&self, tables: &HashSet<Weight>) -> Self {
        let left = self.graph.lookups();
        let left = left.filter(|(_, table)| tables.contains(table));
        let host_tables = self.host_tables.iter().copied().chain(left).collect();
        Self {
            graph: Arc::new(self.graph.without_tables(tables)),
            host_tables,
            ..self.clone()
        }
    }

    /// The tables that its graph does not have, and the inputs that it takes instead.
    pub(crate) fn host_tables(&self) -> &[(ValueId, Weight)] {
        &self.host_tables
    }

    /// Whether it is no part.
    pub(crate) fn is_whole(&self) -> bool {
        self.layers.len() == self.config.layers
    }

    /// The layers that its graph has: all of them, but for a part.
    pub(crate) fn layers(&self) -> Range<usize> {
        self.layers.clone()
    }

    /// Its dimensions.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Its equations.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Its tensors.
    pub fn weights(&self) -> &dyn Weights {
        self.weights.as_ref()
    }

    /// Its tensors, to be kept.
    pub(crate) fn shared_weights(&self) -> Arc<dyn Weights> {
        self.weights.clone()
    }

    /// The same equations over other tensors of the same shapes.
    pub(crate) fn with_weights(&self, weights: Arc<dyn Weights>) -> Self {
        Self {
            weights,
            ..self.clone()
        }
    }

    /// How large a sequence's state is.
    pub fn state_layout(&self) -> StateLayout {
        StateLayout {
            layers: self.layers.len(),
            ..StateLayout::of(&self.config)
        }
    }

    /// The state before the first token: what a checkpoint's tuned `time_state` says, else zeros; shift vectors are
    /// zeros. Version 4 has no tuned states.
    ///
    /// # Errors
    /// [`crate::Error::Weight`] for a tuned state of another shape.
    pub fn initial_state(&self) -> Result<State> {
        let layout = self.state_layout();
        let mut state = State::zeros(layout);
        if self.config.version == Version::V4 {
            return Ok(state);
        }
        for (layer, wkv) in self.layers().zip(&mut state.wkv) {
            let weight = Weight::Block(layer, BlockWeight::InitialState);
            if self.weights.has(weight) {
                *wkv = self.weights.vector(weight, layout.wkv)?;
            }
        }
        Ok(state)
    }

    /// The matrices of the graph; its other tensors are vectors.
    pub(crate) fn matrices(&self) -> HashSet<Weight> {
        let nodes = self.graph.nodes().iter();
        nodes.filter_map(|n| n.op.matrix()).collect()
    }

    /// Every tensor of the graph, once.
    pub fn tensors(&self) -> Vec<Weight> {
        let mut seen = HashSet::new();
        self.graph
            .nodes()
            .iter()
            .flat_map(|n| n.op.weights())
            .filter(|w| seen.insert(*w))
            .collect()
    }
}
