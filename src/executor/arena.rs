//! One buffer for all activations of a network, planned when it is loaded.
//!
//! Every value gets a place for the steps during which it is alive; places of values that are never alive together may
//! overlap. Halos belong to a value's place and are filled again in every run.

use super::graph::{Activation, IntGraph, ValueId};
use crate::kernels::{Halo, Layout, Place};
use std::ops::Range;

/// Places start at multiples of a cache line.
const ALIGNMENT: usize = 64;

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
    /// A plan for steps that run region by region; `regions` are consecutive steps.
    pub(super) fn new(graph: &IntGraph, regions: &[Range<usize>]) -> Self {
        let layouts = layouts(graph);
        let lives = lives(graph, regions);
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
        let live_min = (0..=regions.len()).map(alive).max().unwrap_or(0);
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
        if let Some(spec) = step.operator.conv() {
            let input = step.inputs[0];
            halos[input] = halos[input].union(spec.window.halo(graph.values[input].shape));
        }
    }
    let layout = |(id, (&Activation { shape, .. }, halo)): (usize, (&Activation, Halo))| {
        if id == 0 { Layout::picture(shape, halo) } else { Layout::padded(shape, halo) }
    };
    graph.values.iter().zip(halos).enumerate().map(layout).collect()
}

/// The regions during which each value is alive: from the one that makes it to the last that reads it. The input is
/// written before the first; outputs live to the end. An output must not lie on an input, so both are alive in their region.
fn lives(graph: &IntGraph, regions: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut lives = vec![0..0; graph.values.len()];
    lives[0] = 0..1;
    for (idx, region) in regions.iter().enumerate() {
        for step in &graph.steps[region.clone()] {
            lives[step.output] = idx..idx + 1;
            for &input in &step.inputs {
                lives[input].end = idx + 1;
            }
        }
    }
    for (_, value) in &graph.outputs {
        lives[*value].end = regions.len() + 1;
    }
    lives
}

/// Most steps of one region.
const MAX_STEPS: usize = 12;

/// Cuts the steps into regions: each step alone for one thread, else neighbours that do not read each other, so that
/// small maps (the coarse levels of the pyramid) keep several threads busy together.
pub(super) fn regions(graph: &IntGraph, threads: usize) -> Vec<Range<usize>> {
    let mut regions: Vec<Range<usize>> = Vec::new();
    for (idx, step) in graph.steps.iter().enumerate() {
        let joins = |region: &&mut Range<usize>| {
            let reads = |made: &super::graph::Step| step.inputs.contains(&made.output);
            threads > 1 && region.len() < MAX_STEPS && !graph.steps[(*region).clone()].iter().any(reads)
        };
        match regions.last_mut().filter(joins) {
            Some(region) => region.end = idx + 1,
            None => regions.push(idx..idx + 1),
        }
    }
    regions
}
