//! The layers of an integer network: as a table and as a picture for Graphviz.

use fovea::executor::Network;
use fovea::kernels::Shape;
use serde::Serialize;
use std::fmt::Write as _;

/// One layer, as `--json` writes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Layer {
    /// Name of its node in the file.
    name: String,
    op: &'static str,
    kernel: String,
    /// `[1, C, H, W]`, as ONNX states it.
    output: [usize; 4],
    macs: usize,
    /// Layers whose outputs it reads; null is the network's input.
    inputs: Vec<Option<usize>>,
    /// The network's outputs that it makes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    outputs: Vec<String>,
}

/// The layers of `network`, in execution order; none in float.
pub(crate) fn layers(network: &Network) -> Vec<Layer> {
    let made_by = |idx: usize| {
        let outputs = network.outputs().iter().filter(move |output| output.layer == Some(idx));
        outputs.map(|output| output.name.clone()).collect()
    };
    let layer = |(idx, layer): (usize, &fovea::executor::LayerInfo)| {
        let Shape { h, w, c } = layer.output;
        Layer {
            name: layer.name.clone(),
            op: layer.op,
            kernel: layer.kernel.clone(),
            output: [1, c, h, w],
            macs: layer.macs,
            inputs: layer.inputs.clone(),
            outputs: made_by(idx),
        }
    };
    network.layers().iter().enumerate().map(layer).collect()
}

/// A line for each layer.
pub(crate) fn table(layers: &[Layer]) -> String {
    let mut rows = vec![["layer", "operator", "kernel", "CxHxW", "million MACs", "reads", "node"].map(ToOwned::to_owned)];
    for (idx, layer) in layers.iter().enumerate() {
        let reads: Vec<String> =
            layer.inputs.iter().map(|input| input.map_or_else(|| "input".into(), |at| at.to_string())).collect();
        let makes: String = layer.outputs.iter().map(|output| format!(" => {output}")).collect();
        rows.push([
            idx.to_string(),
            layer.op.into(),
            layer.kernel.clone(),
            size(layer),
            if layer.macs > 0 { mega(layer.macs) } else { String::new() },
            reads.join(" "),
            format!("{}{makes}", layer.name),
        ]);
    }
    let widths: [usize; 7] = std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for [layer, op, kernel, size, macs, reads, node] in &rows {
        let [l, o, k, s, m, r, _] = widths;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{layer:>l$}  {op:o$}  {kernel:k$}  {size:>s$}  {macs:>m$}  {reads:r$}  {node}");
    }
    text
}

/// The layers as a directed graph in Graphviz' language.
pub(crate) fn dot(network: &Network, name: &str, layers: &[Layer]) -> String {
    let Shape { h, w, c } = network.input_shape();
    let mut text = format!("digraph {} {{\n", quoted(name));
    text.push_str("  node [shape=box, style=\"filled,rounded\", fontname=\"sans-serif\", fontsize=10];\n");
    text.push_str("  edge [color=\"#606060\", arrowsize=0.6];\n");
    // Writing to a string cannot fail.
    let label = quoted(&format!("{}\n{c}x{h}x{w}", network.input_name()));
    let _ = writeln!(text, "  input [label={label}, shape=ellipse, fillcolor=white];");
    for (idx, layer) in layers.iter().enumerate() {
        let macs = if layer.macs > 0 { format!(", {} million MACs", mega(layer.macs)) } else { String::new() };
        let label = format!("{idx}  {}\n{}, {}\n{}{macs}", layer.name, layer.op, layer.kernel, size(layer));
        let _ = writeln!(text, "  l{idx} [label={}, fillcolor=\"{}\"];", quoted(&label), colour(layer.op));
        for input in &layer.inputs {
            let from = input.map_or_else(|| "input".into(), |at| format!("l{at}"));
            let _ = writeln!(text, "  {from} -> l{idx};");
        }
    }
    for (idx, output) in network.outputs().iter().enumerate() {
        let from = output.layer.map_or_else(|| "input".into(), |at| format!("l{at}"));
        let _ = writeln!(text, "  o{idx} [label={}, shape=ellipse, fillcolor=white];", quoted(&output.name));
        let _ = writeln!(text, "  {from} -> o{idx};");
    }
    text.push_str("}\n");
    text
}

fn size(layer: &Layer) -> String {
    let [_, c, h, w] = layer.output;
    format!("{c}x{h}x{w}")
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn mega(macs: usize) -> String {
    format!("{:.2}", macs as f64 / 1e6)
}

/// Convolutions, sums, functions and moves are told apart.
fn colour(op: &str) -> &'static str {
    match op {
        "QuantConv" | "QuantConvAdd" => "#cfe2f3",
        "QuantAdd" => "#d9ead3",
        "QuantTable" => "#fff2cc",
        _ => "#eeeeee",
    }
}

/// A string of Graphviz' language.
fn quoted(text: &str) -> String {
    let escaped: String = text
        .chars()
        .flat_map(|char| match char {
            '\\' => vec!['\\', '\\'],
            '"' => vec!['\\', '"'],
            '\n' => vec!['\\', 'n'],
            char if char.is_control() => vec!['?'],
            char => vec![char],
        })
        .collect();
    format!("\"{escaped}\"")
}
