//! `fovea inspect`: what a model consists of.

use super::Failure;
use super::layers::{self, Layer};
use super::model_file::ModelFile;
use super::output::{ResultFile, keep_apart, model_files, write_report};
use fovea::executor::{Network, OpCount, OutputInfo};
use fovea::quant::QuantParams;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Arguments of `fovea inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fovea inspect models/default
  fovea inspect network.onnx --json -
  fovea inspect models/default --layers
  fovea inspect models/default --dot - | dot -Tsvg > network.svg

A model folder is checked against its manifest; a bare .onnx is shown as it is. A network that is not quantised, or that has \
an operator without integer form, is shown as it would run with --allow-float: `float_convs` counts its convolutions.")]
pub(crate) struct Args {
    /// Model folder, or a bare .onnx file.
    model: PathBuf,
    /// Write the result as JSON (`-` = stdout).
    #[arg(long, value_name = "FILE", value_parser = super::output::output_path())]
    json: Option<PathBuf>,
    /// List the layers of the integer network, as they run: operator, kernel, size, multiplications, what each reads.
    #[arg(long)]
    layers: bool,
    /// Write the integer network as a picture for Graphviz (`-` = stdout, and nothing else there).
    #[arg(long, value_name = "FILE", value_parser = super::output::output_path())]
    dot: Option<PathBuf>,
}

/// The result, as `--json` writes it.
#[derive(Debug, Serialize)]
struct Report {
    name: String,
    sha256: String,
    input: Tensor,
    outputs: Vec<Tensor>,
    ops: Vec<OpCount>,
    float_convs: usize,
    activation_bytes: usize,
    file_bytes: usize,
    isa: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why_float: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<Vec<Layer>>,
}

/// An input or output.
#[derive(Debug, Serialize)]
struct Tensor {
    name: String,
    /// `[1, C, H, W]`, as ONNX states it.
    shape: [usize; 4],
    dtype: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    scale: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zero_point: Option<u8>,
}

impl Tensor {
    fn new(name: &str, shape: fovea::kernels::Shape, params: Option<QuantParams>) -> Self {
        Self {
            name: name.into(),
            shape: [1, shape.c, shape.h, shape.w],
            dtype: if params.is_some() { "u8" } else { "f32" },
            scale: params.map(|params| params.scale),
            zero_point: params.map(|params| params.zero_point),
        }
    }

    fn line(&self) -> String {
        let [_, c, h, w] = self.shape;
        let mut line = format!("{} {} {c}x{h}x{w}", self.name, self.dtype);
        if let (Some(scale), Some(zero_point)) = (self.scale, self.zero_point) {
            // Writing to a string cannot fail.
            let _ = write!(line, ", {scale} x (q - {zero_point})");
        }
        line
    }
}

impl Args {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let read = model_files(&self.model);
        let written = [&self.json, &self.dot].into_iter().flatten().map(PathBuf::as_path);
        keep_apart(read.iter().map(PathBuf::as_path), written).map_err(Failure::request)?;
        let json = self.json.as_deref().map(ResultFile::open).transpose()?;
        let dot = self.dot.as_deref().map(ResultFile::open).transpose()?;
        let is_stdout = |file: &Option<ResultFile>| file.as_ref().is_some_and(ResultFile::is_stdout);
        if is_stdout(&json) && is_stdout(&dot) {
            return Err(Failure::request(anyhow::anyhow!("--json - and --dot - would mix on stdout; give one of them a file")));
        }
        let file = ModelFile::read(&self.model)?;
        let loaded = file.load_for_inspection(1)?;
        let file_name = file.name();
        let (network, census) = (loaded.network(), loaded.network().census());
        let layers = layers::layers(network);
        if let (Some(why), true) = (loaded.why_float(), self.layers || dot.is_some()) {
            return Err(Failure::request(anyhow::anyhow!("there are no layers in integers to show: {why}")));
        }
        let is_dot_alone = is_stdout(&dot);
        let dot_written = dot.map_or(Ok(()), |file| file.write(&layers::dot(network, &file_name, &layers)));
        let report = Report {
            name: file_name,
            sha256: file.sha256(),
            input: input_of(network),
            outputs: network
                .outputs()
                .iter()
                .map(|OutputInfo { name, shape, params, .. }| Tensor::new(name, *shape, *params))
                .collect(),
            ops: census.ops,
            float_convs: census.float_convs,
            activation_bytes: census.activation_bytes,
            file_bytes: file.bytes().len(),
            isa: super::effective_isa().name(),
            why_float: loaded.why_float().map(ToOwned::to_owned),
            layers: self.layers.then_some(layers),
        };
        dot_written?;
        if is_dot_alone && json.is_none() {
            return Ok(());
        }
        let text = if is_dot_alone { String::new() } else { table(&report) };
        write_report(json, &report, &text)
    }
}

fn input_of(network: &Network) -> Tensor {
    Tensor::new(network.input_name(), network.input_shape(), network.input_params())
}

/// The result for people.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn table(report: &Report) -> String {
    let mut text = String::new();
    let mega = |n: usize| n as f64 / 1e6;
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{} ({:.2} MB, SHA-256 {})", report.name, mega(report.file_bytes), report.sha256);
    let _ = writeln!(text, "input   {}", report.input.line());
    for output in &report.outputs {
        let _ = writeln!(text, "output  {}", output.line());
    }
    let width = report.ops.iter().map(|count| count.op.len()).max().unwrap_or(0).max("operator".len());
    let _ = writeln!(text, "{:width$} {:>5} {:>6} {:>12}", "operator", "type", "count", "million MACs");
    for OpCount { op, dtype, count, macs } in &report.ops {
        let _ = writeln!(text, "{op:width$} {dtype:>5} {count:>6} {:>12.2}", mega(*macs));
    }
    let total: usize = report.ops.iter().map(|count| count.macs).sum();
    let _ = writeln!(
        text,
        "{:width$} {:>5} {:>6} {:>12.2}",
        "all",
        "",
        report.ops.iter().map(|c| c.count).sum::<usize>(),
        mega(total)
    );
    let _ = writeln!(text, "convolutions in float: {}", report.float_convs);
    let _ = writeln!(text, "activations: {:.2} MB; kernels: {}", mega(report.activation_bytes), report.isa);
    if let Some(why) = &report.why_float {
        let _ = writeln!(text, "runs in float: {why}");
    }
    if let Some(layers) = &report.layers {
        let _ = write!(text, "\n{}", layers::table(layers));
    }
    text
}
