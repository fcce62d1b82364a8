//! `fovea-train card`: the figures of a model's card, measured again.

use super::quantize::{Work, measure, write_model};
use crate::export::float_model;
use crate::files::write_atomic;
use crate::fold::fold;
use crate::gate::{Comparison, Limits};
use crate::graph::Graph;
use crate::package::name_of;
use crate::request::Request;
use crate::spec::ModelSpec;
use crate::weights;
use anyhow::{Context, Result};
use fovea::eval::{CocoEvaluator, EvalReport};
use fovea::executor::onnx;
use fovea::images::Degradation;
use fovea::pipeline::detector::read_network;
use fovea::retinanet::Manifest;
use std::path::{Path, PathBuf};

/// Arguments of `fovea-train card`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  fovea-train card --data mydata/val --robustness models/street

Markdown on stdout. Float is measured where the folder has weights.safetensors and model.toml (quantize --with-weights).")]
pub(crate) struct Args {
    /// Model folders.
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Labelled data to measure on.
    #[arg(long)]
    data: PathBuf,
    /// Measure int8 on pictures made worse as well, each way of `fovea eval --degrade`.
    #[arg(long)]
    robustness: bool,
}

impl Args {
    /// Measures.
    pub(crate) fn run(self) -> Result<()> {
        if let Some(missing) = self.models.iter().find(|dir| !dir.join("manifest.toml").exists()) {
            return Err(Request(format!("{}: no manifest.toml; a model is a folder", missing.display())).into());
        }
        for dir in &self.models {
            println!("# {}\n", name_of(dir));
            let int8 = measure(dir, &self.data, None, "int8")?;
            if let Some((float, is_quantized)) = self.float(dir)? {
                // As the gate of `quantize`.
                let limits = Limits { mean: 0.5, class: 1.0, is_strict: false };
                println!("{}", Comparison::new(&float, &int8.evaluator, limits).without(&int8.unknown_to_data).table());
                if is_quantized {
                    println!("Float is the network that was trained with quantisation, without its rounding.\n");
                }
            } else {
                say!("{}: no weights.safetensors with a model.toml: float is not measured", dir.display());
            }
            let report = int8.evaluator.summarize();
            println!(
                "| pictures | AP | AP50 | AP75 | small | medium | large |{}\n|---|---|---|---|---|---|---|{}",
                names(&report),
                "---|".repeat(report.per_class.len())
            );
            println!("{}", line("as they are", &report));
            for (name, kind) in Degradation::ALL.into_iter().filter(|_| self.robustness) {
                println!("{}", line(name, &measure(dir, &self.data, Some(kind), name)?.evaluator.summarize()));
            }
            println!();
        }
        Ok(())
    }

    /// Measures the float network that the folder has weights for, by the rules of its manifest; whether it was trained with
    /// quantisation.
    fn float(&self, dir: &Path) -> Result<Option<(CocoEvaluator, bool)>> {
        let (weights, model) = (dir.join("weights.safetensors"), dir.join("model.toml"));
        if !(weights.exists() && model.exists()) {
            return Ok(None);
        }
        let spec = ModelSpec::read(&model)?;
        let graph = Graph::new(&spec);
        let folded = fold(&graph, &weights::read(&weights)?.weights).with_context(|| weights.display().to_string())?;
        let work = Work::at(std::env::temp_dir().join(format!("fovea-card-{}", std::process::id())))?;
        write_model(&work.0, &spec, "float", &onnx::encode(&float_model(&graph, &spec, &folded, &[])), None)?;
        let (own, ..) = read_network(dir)?;
        let manifest = Manifest { postprocess: own.postprocess, ..read_network(&work.0)?.0 };
        write_atomic(&work.0.join("manifest.toml"), manifest.to_toml().as_bytes())?;
        Ok(Some((measure(&work.0, &self.data, None, "float")?.evaluator, spec.quantized)))
    }
}

fn names(report: &EvalReport) -> String {
    report.per_class.iter().map(|(name, _)| format!(" {name} AP50 |")).collect()
}

fn line(what: &str, report: &EvalReport) -> String {
    let percent = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{:.1}", 100.0 * v));
    let of_all = [report.ap, report.ap50, report.ap75, report.ap_small, report.ap_medium, report.ap_large];
    let of_classes = report.per_class.iter().map(|(_, class)| class.ap50);
    let cells: String = of_all.into_iter().chain(of_classes).map(|value| format!(" {} |", percent(value))).collect();
    format!("| {what} |{cells}")
}
