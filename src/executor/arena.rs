//! One buffer for all activations of a network, planned when it is loaded.
//!
//! Every value gets a place for the steps during which it is alive; places of values that are never alive together may
//! overlap. Halos belong to a value's place and are filled again in every run.

use super::graph::{Activation, IntGraph, ValueId};
use crate::kernels::{Halo, Layout, OpSpec};
use std::ops::Range;

/// Places start at multiples of a cache line.
const ALIGNMENT: usize = 64;

/// A value's place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    /// Its bytes in the arena.
    pub bytes: Range<usize>,
    /// Where they hold what.
    pub layout: Layout,
    /// What the halo holds.
    pub zero_point: u8,
}

/// Where every value lies.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ArenaPlan {
    /// Of every value of the graph; empty for values that no step makes.
    pub places: Vec<Place>,
    /// Bytes of the arena.
    pub len: usize,
    /// Bytes that are alive together at least: no plan can do with less.
    pub live_min: usize,
}

impl ArenaPlan {
    pub(super) fn new(graph: &IntGraph) -> Self {
        let layouts = layouts(graph);
        let lives = lives(graph);
        let size = |id: ValueId| if lives[id].is_empty() { 0 } else { layouts[id].len().next_multiple_of(ALIGNMENT) };
        // Largest first, each at the lowest place that is free while it lives.
        let mut order: Vec<ValueId> = (0..layouts.len()).filter(|&id| size(id) > 0).collect();
        order.sort_by_key(|&id| (std::cmp::Reverse(size(id)), id));
        let mut starts = vec![0; layouts.len()];
        let mut placed: Vec<ValueId> = Vec::new();
        for id in order {
            let mut taken: Vec<Range<usize>> = placed
                .iter()
                .filter(|&&other| lives[other].start < lives[id].end && lives[id].start < lives[other].end)
                .map(|&other| starts[other]..starts[other] + size(other))
                .collect();
            taken.sort_by_key(|range| range.start);
            let mut start = 0;
            for range in taken {
                if range.start >= start + size(id) {
                    break;
                }
                start = start.max(range.end);
            }
            starts[id] = start;
            placed.push(id);
        }
        let len = placed.iter().map(|&id| starts[id] + size(id)).max().unwrap_or(0);
        let alive = |at: usize| placed.iter().filter(|&&id| lives[id].contains(&at)).map(|&id| size(id)).sum();
        let live_min = (0..=graph.steps.len()).map(alive).max().unwrap_or(0);
        let place = |(id, layout): (usize, &Layout)| Place {
            bytes: starts[id]..starts[id] + if size(id) == 0 { 0 } else { layout.len() },
            layout: *layout,
            zero_point: graph.values[id].params.zero_point,
        };
        Self { places: layouts.iter().enumerate().map(place).collect(), len, live_min }
    }
}

/// A layout for every value: the halo is what its convolutions reach.
fn layouts(graph: &IntGraph) -> Vec<Layout> {
    let mut halos = vec![Halo::default(); graph.values.len()];
    for step in &graph.steps {
        if let OpSpec::Conv(spec) = &step.operator {
            let input = step.inputs[0];
            halos[input] = halos[input].union(spec.window.halo(graph.values[input].shape));
        }
    }
    let layout = |(id, (&Activation { shape, .. }, halo)): (usize, (&Activation, Halo))| {
        if id == 0 { Layout::picture(shape, halo) } else { Layout::padded(shape, halo) }
    };
    graph.values.iter().zip(halos).enumerate().map(layout).collect()
}

/// The steps during which each value is alive: from the one that makes it to the last that reads it. The input is
/// written before step 0; outputs live to the end. A step's output must not lie on its inputs, so both are alive in it.
fn lives(graph: &IntGraph) -> Vec<Range<usize>> {
    let mut lives = vec![0..0; graph.values.len()];
    lives[0] = 0..1;
    for (idx, step) in graph.steps.iter().enumerate() {
        lives[step.output] = idx..idx + 1;
        for &input in &step.inputs {
            lives[input].end = idx + 1;
        }
    }
    for (_, value) in &graph.outputs {
        lives[*value].end = graph.steps.len() + 1;
    }
    lives
}
