//! `fovea-train quantize`.

use super::Request;
use crate::calibrate::calibrate;
use crate::data::{Folder, progress};
use crate::export::{Quantization, float_model, quantized_model};
use crate::fold::fold;
use crate::graph::Graph;
use crate::package::{self, write_atomic};
use crate::quantize::quantize_convs;
use crate::run_dir::RunDir;
use crate::spec::ModelSpec;
use crate::weights;
use anyhow::{Context, Result, bail};
use fovea::eval::EvalReport;
use fovea::executor::onnx;
use fovea::images;
use fovea::pipeline::detector::hex;
use fovea::pipeline::evaluate::{EvaluateOptions, Evaluation, evaluate};
use fovea::preprocess::Preprocessor;
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Arguments of `fovea-train quantize`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  fovea-train quantize --run runs/first --data mydata/train --val mydata/val --out models/first

Ranges come from pictures of --data, accuracy from --val: float and int8 are both measured, and the model is not written
if int8 loses more than --max-loss AP points, unless --accept-loss is given.")]
pub(crate) struct Args {
    /// Folder of a run.
    #[arg(long)]
    run: PathBuf,
    /// Pictures to take ranges from: a data set folder, usually the training data.
    #[arg(long)]
    data: PathBuf,
    /// Labelled data to measure on.
    #[arg(long)]
    val: PathBuf,
    /// Model folder to write.
    #[arg(long)]
    out: PathBuf,
    /// Name of the model. [default: the folder's name]
    #[arg(long)]
    name: Option<String>,
    /// Pictures for calibration.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(256..))]
    pictures: u32,
    /// Seed of their choice.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// AP points that int8 may lose.
    #[arg(long, default_value_t = 1.0)]
    max_loss: f64,
    /// Write the model whatever it loses.
    #[arg(long)]
    accept_loss: bool,
    /// Write the averaged weights as well (f16), so that others can train on from them.
    #[arg(long)]
    with_weights: bool,
    /// Text for the card: data, licences, recipe. A Markdown file.
    #[arg(long)]
    card: Option<PathBuf>,
}

impl Args {
    /// Quantises.
    pub(crate) fn run(self) -> Result<()> {
        // What could be wrong with the request comes out before the long work.
        let card = match &self.card {
            Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
            None => "Data, licences and recipe: not stated (`fovea-train quantize --card FILE`).\n".to_owned(),
        };
        Folder::open(&self.val)?;
        let dir = RunDir(self.run.clone());
        let spec = ModelSpec::read(&dir.model())?;
        let graph = Graph::new(&spec);
        let weights = weights::read(&dir.weights())?.weights;
        let folded = fold(&graph, &weights).with_context(|| dir.weights().display().to_string())?;
        let heads: Vec<usize> = graph.levels.iter().flat_map(|&(cls, bbox)| [cls, bbox]).collect();
        let taps: Vec<usize> = (1..graph.values.len()).filter(|id| !heads.contains(id)).collect();

        let pictures = self.calibration_pictures(&spec)?;
        let bar = progress(2 * pictures.len(), "calibrating");
        let tapped = onnx::encode(&float_model(&graph, &spec, &folded, &taps));
        let activations = calibrate(&graph, &tapped, &taps, &pictures, &bar)?;
        bar.finish_and_clear();
        let quantization = Quantization { activations, convs: quantize_convs(&graph, &folded) };

        let name = self.name.clone().unwrap_or_else(|| package::name_of(&self.out));
        let work = Work::beside(&self.out)?;
        let (float_dir, int8_dir) = (work.0.join("float"), work.0.join("int8"));
        let float = onnx::encode(&float_model(&graph, &spec, &folded, &[]));
        let int8 = onnx::encode(&quantized_model(&graph, &spec, &folded, &quantization));
        write_model(&float_dir, &spec, &name, &float, None)?;
        write_model(&int8_dir, &spec, &name, &int8, None)?;
        let float_eval = measure(&float_dir, &self.val, "float")?.evaluator.summarize();
        let int8_measured = measure(&int8_dir, &self.val, "int8")?;
        let int8_eval = int8_measured.evaluator.summarize();
        let table = package::comparison(&float_eval, &int8_eval);
        eprintln!("{table}");
        let (Some(float_ap), Some(int8_ap)) = (float_eval.ap, int8_eval.ap) else {
            bail!(
                "{}: no picture has a completely labelled class of the model; there is nothing to measure on",
                self.val.display()
            );
        };
        let loss = 100.0 * (float_ap - int8_ap);
        if loss > self.max_loss && !self.accept_loss {
            bail!(
                "int8 loses {loss:.2} AP points against float, more than --max-loss {}; calibrate on more pictures (--pictures), train \
                 longer, or write it all the same with --accept-loss",
                self.max_loss
            );
        }
        let thresholds = display_thresholds(&spec, &int8_measured);
        // The whole folder first, then its files into their place.
        write_model(&int8_dir, &spec, &name, &int8, Some(thresholds))?;
        if self.with_weights {
            weights::write_f16(&int8_dir.join("weights.safetensors"), &weights)?;
        }
        let golden = package::golden(&int8_dir, &spec, &int8)?;
        write_atomic(&int8_dir.join("golden.json"), serde_json::to_string_pretty(&golden)?.as_bytes())?;
        let card = self.model_card(&name, &spec, &int8, (&int8_eval, &table), &card, pictures.len());
        write_atomic(&int8_dir.join("README.md"), card.as_bytes())?;
        work.move_files(&int8_dir, &self.out)?;
        eprintln!("wrote {}: {} bytes, int8 loses {loss:.2} AP points", self.out.display(), int8.len());
        Ok(())
    }

    /// Letterboxed pictures, chosen at random, the same ones for the same seed.
    fn calibration_pictures(&self, spec: &ModelSpec) -> Result<Vec<Vec<u8>>> {
        let folder = Folder::open(&self.data)?;
        let mut names: Vec<&String> = folder.coco.images.iter().map(|image| &image.file_name).collect();
        names.shuffle(&mut ChaCha8Rng::seed_from_u64(self.seed));
        names.truncate(self.pictures as usize);
        if names.len() < 256 {
            eprintln!("warning: only {} pictures to calibrate on; ranges are better with 256 and more", names.len());
        }
        if names.is_empty() {
            return Err(Request(format!("{}: no pictures to calibrate on", self.data.display())).into());
        }
        let size = (spec.width, spec.height);
        names
            .par_iter()
            .map(|name| {
                let picture = images::open(&folder.image_path(name))?;
                let mut pixels = vec![0; size.0 * size.1 * 3];
                Preprocessor::new(size).run(&picture.as_picture(), &mut pixels);
                Ok(pixels)
            })
            .collect()
    }

    fn model_card(
        &self,
        name: &str,
        spec: &ModelSpec,
        int8: &[u8],
        (eval, table): (&EvalReport, &str),
        given: &str,
        n_calibrated: usize,
    ) -> String {
        format!(
            "# {name}\n\nRetinaNet, int8 (QDQ ONNX, `model.onnx`, {} bytes, SHA-256 `{}`). Backbone {:?}, pyramid P3–P7 of {} channels, \
             towers of {} x {} channels, {} anchors a cell, input {}x{}.\n\nClasses: {}.\n\n{given}\n## Accuracy\n\nCOCO metrics in \
             percent on {} labelled pictures (`--val`), by `fovea eval --model DIR --data DIR`; ranges of activations from {n_calibrated} \
             pictures (`--data`, seed {}). Thresholds for display in `manifest.toml` are those of best F1 at IoU 0.5.\n\n{table}\n\
             Speed depends on the machine: `fovea bench --model-only DIR` measures it on yours.\n",
            int8.len(),
            hex(&Sha256::digest(int8)),
            spec.backbone,
            spec.fpn_width,
            spec.head_depth,
            spec.head_width,
            spec.anchors.n_per_cell(),
            spec.width,
            spec.height,
            spec.classes.join(", "),
            eval.images,
            self.seed,
        )
    }
}

/// A folder beside the model folder for what is not finished; goes with this value, whatever happens.
struct Work(PathBuf);

impl Work {
    fn beside(out: &Path) -> Result<Self> {
        let dir = out.with_file_name(format!(".{}.work", package::name_of(out)));
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
        Ok(Self(dir))
    }

    /// Moves every file of `from` into `to`; the manifest last, since it names the digest of the network.
    fn move_files(&self, from: &Path, to: &Path) -> Result<()> {
        std::fs::create_dir_all(to).with_context(|| format!("cannot make the folder {}", to.display()))?;
        let mut names: Vec<_> = std::fs::read_dir(from)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
        names.sort_by_key(|name| (name == "manifest.toml", name.clone()));
        for name in names {
            let path = to.join(&name);
            std::fs::rename(from.join(&name), &path).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn write_model(dir: &Path, spec: &ModelSpec, name: &str, network: &[u8], display: Option<Vec<f32>>) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    let mut manifest = spec.manifest(name, "model.onnx");
    manifest.network.sha256 = Some(hex(&Sha256::digest(network)));
    manifest.postprocess.display_threshold = display.unwrap_or_default();
    write_atomic(&dir.join("model.onnx"), network)?;
    write_atomic(&dir.join("manifest.toml"), manifest.to_toml().as_bytes())?;
    write_atomic(&dir.join("labels.txt"), package::labels(spec).as_bytes())
}

fn measure(model_dir: &Path, data: &Path, what: &'static str) -> Result<Evaluation> {
    let bar = progress(0, what);
    let options = EvaluateOptions { allow_float: true, ..EvaluateOptions::default() };
    let found = evaluate(model_dir, data, &options, &|done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    Ok(found?)
}

/// The threshold of best F1 for each class; 0.4 for a class that `val` has not.
fn display_thresholds(spec: &ModelSpec, evaluation: &Evaluation) -> Vec<f32> {
    let found = evaluation.evaluator.best_f1_thresholds();
    let names = evaluation.evaluator.categories();
    spec.classes
        .iter()
        .map(|class| {
            let id = names.iter().find(|(_, name)| name == class).map(|(id, _)| *id);
            let best = id.and_then(|id| found.iter().find(|threshold| threshold.category_id == id));
            best.map_or(0.4, |threshold| (threshold.score_threshold * 1000.0).round() as f32 / 1000.0)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::LOWEST_LOGIT;
    use crate::package::{planar, test_picture};
    use crate::spec::{Backbone, Norm, Pixels, Pyramid};
    use crate::weights::{Array, Weights};
    use fovea::executor::{Executor, LoadOptions, Network};
    use rand::RngExt;

    /// Random weights of a sensible size for every parameter of the network.
    fn random_weights(graph: &Graph, seed: u64) -> Weights {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut weights = Weights::new();
        for conv in graph.convs() {
            let fan_in = conv.c_in / conv.groups * conv.kernel * conv.kernel;
            let reach = (6.0 / fan_in as f32).sqrt();
            let mut add = |suffix: &str, shape: &[usize], low: f32, high: f32| {
                let data = (0..shape.iter().product()).map(|_| rng.random_range(low..high)).collect();
                weights.insert(format!("{}.{suffix}", conv.name), Array { shape: shape.to_vec(), data });
            };
            add("weight", &[conv.c_out, conv.c_in / conv.groups, conv.kernel, conv.kernel], -reach, reach);
            if conv.norm == Norm::Batch {
                add("norm.weight", &[conv.c_out], 0.8, 1.2);
                add("norm.bias", &[conv.c_out], -0.1, 0.1);
                add("norm.running_mean", &[conv.c_out], -0.1, 0.1);
                add("norm.running_var", &[conv.c_out], 0.8, 1.2);
            } else {
                add("bias", &[conv.c_out], -0.1, 0.1);
            }
        }
        weights
    }

    fn edge(backbone: Backbone) -> ModelSpec {
        ModelSpec::edge(backbone, 16, 1, (96, 64), vec!["a".into(), "b".into()])
    }

    /// Every option that changes the graph at least once. What differs from a backbone here in its numbers only is left to
    /// the count of parameters beside the backbones.
    fn variants() -> Vec<ModelSpec> {
        let imagenet = Pixels { mean: [123.675, 116.28, 103.53], std: [58.395, 57.12, 57.375] };
        let arranged =
            |n_scales, is_square, pyramid| ModelSpec::arranged(ModelSpec::paper_anchors(), n_scales, is_square, pyramid);
        vec![
            edge(Backbone::ShuffleNetV2),
            ModelSpec { head_depth: 0, ..edge(Backbone::ShuffleNetV2X05) },
            ModelSpec { backbone_norm: false, head_width: 24, ..edge(Backbone::ShuffleNetV2X15) },
            ModelSpec { head_depth: 2, ..edge(Backbone::ShuffleNetV2X20) },
            ModelSpec { pixels: imagenet, ..edge(Backbone::MobileNetV2) },
            edge(Backbone::EdgeRes),
            ModelSpec { anchors: arranged(1, true, Pyramid::Fpn), ..edge(Backbone::EdgeLite) },
            ModelSpec { pyramid: Pyramid::C5, anchors: arranged(4, false, Pyramid::C5), ..edge(Backbone::EdgeLite) },
            edge(Backbone::ResNet18),
            ModelSpec { pyramid: Pyramid::FpnP5, pyramid_norm: false, head_norm: Norm::None, ..edge(Backbone::ResNet50) },
            ModelSpec { stride_in_1x1: true, ..edge(Backbone::ResNeXt50) },
        ]
    }

    #[test]
    fn every_network_becomes_an_integer_network_near_its_float_form() {
        for spec in variants() {
            becomes_an_integer_network(&spec);
        }
    }

    #[test]
    #[ignore = "minutes: the backbones that differ from others in their depth only"]
    fn deep_networks_become_integer_networks() {
        for backbone in [Backbone::ResNet34, Backbone::ResNet101, Backbone::ResNet152, Backbone::ResNeXt101] {
            becomes_an_integer_network(&edge(backbone));
        }
    }

    #[test]
    fn a_group_norm_is_refused() {
        let spec = ModelSpec { head_norm: Norm::Group, ..edge(Backbone::EdgeLite) };
        let graph = Graph::new(&spec);
        let error = fold(&graph, &random_weights(&graph, 3)).unwrap_err().to_string();
        assert!(error.contains("head.cls.0") && error.contains("head_norm = \"batch\""), "{error}");
    }

    fn becomes_an_integer_network(spec: &ModelSpec) {
        let name = format!("{spec:?}");
        spec.check().unwrap();
        let graph = Graph::new(spec);
        let weights = random_weights(&graph, 3);
        let folded = fold(&graph, &weights).unwrap();
        let taps: Vec<usize> =
            (1..graph.values.len()).filter(|id| !graph.levels.iter().any(|&(c, b)| c == *id || b == *id)).collect();
        let pixels = test_picture(spec.width, spec.height);
        let tapped = onnx::encode(&float_model(&graph, spec, &folded, &taps));
        let bar = indicatif::ProgressBar::hidden();
        let activations = calibrate(&graph, &tapped, &taps, std::slice::from_ref(&pixels), &bar).unwrap();
        let quantization = Quantization { activations, convs: quantize_convs(&graph, &folded) };
        let float = onnx::encode(&float_model(&graph, spec, &folded, &[]));
        let int8 = onnx::encode(&quantized_model(&graph, spec, &folded, &quantization));
        let options = LoadOptions { allow_float: true, ..LoadOptions::default() };
        let mut float = Network::load(&float, &options).unwrap_or_else(|error| panic!("{name}: {error}"));
        let int8 = Executor::load(&int8, &spec.manifest("test", "model.onnx"), &LoadOptions::default());
        let mut int8 = int8.unwrap_or_else(|error| panic!("{name}: {error}")).into_network();
        assert_eq!(int8.census().float_convs, 0, "{name}");
        if let Some(worst) = super::super::export::compare(spec, &weights, &mut float).unwrap() {
            assert!(worst < 1e-4, "{name}: exported and libtorch differ by {worst}");
        }
        let input = planar(&pixels, spec.pixels);
        let (wanted, got) = (float.run_f32(&input).unwrap(), int8.run_f32(&input).unwrap());
        assert_eq!(wanted.len(), 2 * spec.strides().len(), "{name}");
        // Correlation over all logits of the finest level: quantisation noise is small beside the signal.
        // What lies below the lowest logit that is resolved is cut off there.
        let resolved: Vec<f32> = wanted[0].iter().map(|logit| logit.max(LOWEST_LOGIT)).collect();
        let (a, b) = (&resolved, &got[0]);
        let mean = |v: &[f32]| v.iter().sum::<f32>() / v.len() as f32;
        let (ma, mb) = (mean(a), mean(b));
        let dot = |x: &[f32], mx: f32, y: &[f32], my: f32| x.iter().zip(y).map(|(p, q)| (p - mx) * (q - my)).sum::<f32>();
        let correlation = dot(a, ma, b, mb) / (dot(a, ma, a, ma) * dot(b, mb, b, mb)).sqrt();
        assert!(correlation > 0.98, "{name}: correlation {correlation}");
    }
}
