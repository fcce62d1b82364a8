//! Joins steps that are cheaper as one, without changing a bit of any output.

use super::graph::{IntGraph, Step, ValueId};
use crate::kernels::{AddTerm, OpSpec};

/// Applies every rewrite of the table in `docs/executor.md`.
pub(super) fn fuse(graph: &mut IntGraph) {
    add_of_upsampled(graph);
    conv_add(graph);
    interleave(graph);
    remove_unread(graph);
}

/// The step that makes `value`, unless it is the input.
fn producer(graph: &IntGraph, value: ValueId) -> Option<&Step> {
    graph.steps.iter().find(|step| step.output == value)
}

/// `Upsample2 → Add` reads the small map in place of the large one.
fn add_of_upsampled(graph: &mut IntGraph) {
    for idx in 0..graph.steps.len() {
        let OpSpec::Add { terms, .. } = &graph.steps[idx].operator else { continue };
        let sources = [0, 1].map(|side| {
            let value = graph.steps[idx].inputs[side];
            let made_by = producer(graph, value).filter(|step| step.operator == OpSpec::Upsample2);
            made_by.map_or((value, false), |step| (step.inputs[0], true))
        });
        let terms = [0, 1].map(|side| AddTerm { is_doubled: sources[side].1, ..terms[side] });
        let step = &mut graph.steps[idx];
        step.inputs = sources.map(|(value, _)| value).to_vec();
        if let OpSpec::Add { terms: old, .. } = &mut step.operator {
            *old = terms;
        }
    }
}

/// `Conv → Add` where nobody else reads the convolution: the sum is made while its rows are in the cache. Of two
/// convolutions that meet in a sum, the larger takes it along.
fn conv_add(graph: &mut IntGraph) {
    let mut n_readers = vec![0_usize; graph.values.len()];
    let read = graph.steps.iter().flat_map(|step| &step.inputs).chain(graph.outputs.iter().map(|(_, value)| value));
    for &value in read {
        n_readers[value] += 1;
    }
    for idx in 0..graph.steps.len() {
        let OpSpec::Add { terms, zero_point, lo, hi } = graph.steps[idx].operator else { continue };
        let conv = |side: usize| {
            let value = graph.steps[idx].inputs[side];
            let is_alone = n_readers[value] == 1 && !terms[side].is_doubled;
            let made_by = producer(graph, value).filter(|_| is_alone)?;
            if let OpSpec::Conv(conv) = &made_by.operator { Some((conv.clone(), made_by)) } else { None }
        };
        let size = |side: usize| conv(side).map_or(0, |(conv, _)| conv.weights.len());
        let side = usize::from(size(1) > size(0));
        let Some((conv, made_by)) = conv(side) else { continue };
        let name = format!("{}+{}", made_by.name, graph.steps[idx].name);
        let inputs = vec![made_by.inputs[0], graph.steps[idx].inputs[1 - side]];
        let terms = [terms[side], terms[1 - side]];
        let operator = OpSpec::ConvAdd { conv, terms, zero_point, lo, hi };
        graph.steps[idx] = Step { name, operator, inputs, output: graph.steps[idx].output };
    }
}

/// `Concat of two → Shuffle in two groups [→ Slice]` becomes one interleaving for each reader.
fn interleave(graph: &mut IntGraph) {
    for idx in 0..graph.steps.len() {
        let (step, output) = (&graph.steps[idx], graph.steps[idx].output);
        let (shuffled, first) = match step.operator {
            OpSpec::Shuffle { groups: 2 } => (step, 0),
            OpSpec::Slice { first } if first % 2 == 0 => match producer(graph, step.inputs[0]) {
                Some(shuffle) if shuffle.operator == (OpSpec::Shuffle { groups: 2 }) => (shuffle, first),
                Some(Step { operator: OpSpec::Interleave { first: 0, tables }, inputs, .. }) => {
                    let (operator, inputs) = (OpSpec::Interleave { first, tables: tables.clone() }, inputs.clone());
                    (graph.steps[idx].operator, graph.steps[idx].inputs) = (operator, inputs);
                    continue;
                }
                _ => continue,
            },
            _ => continue,
        };
        let Some(Step { operator: OpSpec::Concat(tables), inputs, .. }) = producer(graph, shuffled.inputs[0]) else { continue };
        let (&[a, b], [table_a, table_b]) = (&inputs[..], &tables[..]) else { continue };
        let is_even = graph.values[a].shape == graph.values[b].shape && graph.values[output].shape.c > 0;
        if !is_even {
            continue;
        }
        let operator = OpSpec::Interleave { first, tables: [table_a.clone(), table_b.clone()] };
        (graph.steps[idx].operator, graph.steps[idx].inputs) = (operator, vec![a, b]);
    }
}

/// Drops steps whose value nobody reads.
fn remove_unread(graph: &mut IntGraph) {
    let mut is_read = vec![false; graph.values.len()];
    for (_, value) in &graph.outputs {
        is_read[*value] = true;
    }
    for step in graph.steps.iter().rev() {
        if is_read[step.output] {
            for &input in &step.inputs {
                is_read[input] = true;
            }
        }
    }
    graph.steps.retain(|step| is_read[step.output]);
}
