//! `fovea-train quantize`.

use crate::calibrate::{Method, calibration_pictures, observe_all};
use crate::data::{Folder, progress};
use crate::equalize::{correct_biases, equalize};
use crate::export::{Quantization, float_model, quantized_model};
use crate::files::write_atomic;
use crate::fold::{Folded, fold};
use crate::gate::{Comparison, Limits};
use crate::graph::Graph;
use crate::noise::{LayerNoise, Probe, choose_methods, sensitivity};
use crate::package;
use crate::quantize::{quantize_convs, stored};
use crate::request::Request;
use crate::run_dir::RunDir;
use crate::spec::{ModelSpec, Pyramid};
use crate::weights;
use anyhow::{Context, Result, bail};
use fovea::executor::onnx;
use fovea::images::Degradation;
use fovea::pipeline::detector::hex;
use fovea::pipeline::evaluate::{EvaluateOptions, Evaluation, evaluate_dataset};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Arguments of `fovea-train quantize`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  fovea-train quantize --run runs/first --data mydata/train --val mydata/val --out models/first

Ranges come from pictures of --data, accuracy from --val: float and int8 are both measured, and the model is not written \
if int8 loses more than --max-loss AP points, or a class more than --max-class-loss, unless --accept-loss is given.")]
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
    /// How ranges are made of what the pictures show; auto: for each activation what makes the least noise at the heads.
    #[arg(long, value_enum, default_value = "mse")]
    calibration: Calibration,
    /// Even out the ranges of channels between convolutions that follow each other; the float network stays the same.
    #[arg(long)]
    equalize: bool,
    /// Take the mean error of rounded weights off the biases.
    #[arg(long)]
    correct_biases: bool,
    /// Print what each layer costs when it alone is quantised: noise at the heads on --probe-pictures, the noisiest first.
    #[arg(long)]
    sensitivity: bool,
    /// Pictures on which noise is measured, for auto and for --sensitivity.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    probe_pictures: u32,
    /// AP points that int8 may lose.
    #[arg(long, default_value_t = 0.5)]
    max_loss: f64,
    /// AP points that a class may lose, or twice the standard error of its loss, whichever is more.
    #[arg(long, default_value_t = 1.0)]
    max_class_loss: f64,
    /// Allow nothing for chance: a class may lose --max-class-loss, however few boxes it has.
    #[arg(long)]
    strict_classes: bool,
    /// Write the model whatever it loses.
    #[arg(long)]
    accept_loss: bool,
    /// Write the averaged weights as well (f16) and the network's description, to train on from and for `card`.
    #[arg(long)]
    with_weights: bool,
    /// Text for the card: data, licences, recipe. A Markdown file.
    #[arg(long)]
    card: Option<PathBuf>,
}

/// Values of `--calibration`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Calibration {
    Auto,
    Minmax,
    Percentile,
    Mse,
    Entropy,
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
        self.keep_weights(&dir)?;
        let card = card + &teachers_of(&dir);
        let spec = ModelSpec::read(&dir.model())?;
        let graph = Graph::new(&spec);
        let weights = weights::read(&dir.weights())?.weights;
        let folded = fold(&graph, &weights).with_context(|| dir.weights().display().to_string())?;
        if spec.quantized && self.sensitivity {
            return Err(Request("--sensitivity: a run of `fit --qat` has its ranges already".into()).into());
        }
        let (quantization, how) = if spec.quantized {
            say!(
                "ranges are those of the training with quantisation: --calibration, --equalize, --correct-biases do nothing here"
            );
            (stored(&graph, &folded, &weights)?, "trained with quantisation (`fit --qat`)".to_owned())
        } else {
            let pictures = calibration_pictures(&Folder::open(&self.data)?, &spec, self.pictures as usize, self.seed)?;
            let (n, flags, seed) = (pictures.len(), self.how(), self.seed);
            let how = format!("ranges of activations from {n} pictures (`--data`, {flags}, seed {seed})");
            (self.quantization(&graph, &spec, &folded, &pictures)?, how)
        };

        let name = self.name.clone().unwrap_or_else(|| package::name_of(&self.out));
        let work = Work::beside(&self.out)?;
        let (float_dir, int8_dir) = (work.0.join("float"), work.0.join("int8"));
        let (float_spec, float) = float_network(&dir, &spec, &folded)?;
        let int8 = onnx::encode(&quantized_model(&graph, &spec, &quantization));
        write_model(&float_dir, &float_spec, &name, &float, None)?;
        write_model(&int8_dir, &spec, &name, &int8, None)?;
        let float_measured = measure(&float_dir, &self.val, None, "float")?;
        let int8_measured = measure(&int8_dir, &self.val, None, "int8")?;
        let limits = Limits { mean: self.max_loss, class: self.max_class_loss, is_strict: self.strict_classes };
        let comparison =
            Comparison::new(&float_measured.evaluator, &int8_measured.evaluator, limits).without(&int8_measured.unknown_to_data);
        let table = comparison.table();
        println!("{table}");
        let Some(loss) = comparison.loss() else {
            bail!(
                "{}: no picture has a completely labelled class of the model; there is nothing to measure on",
                self.val.display()
            );
        };
        match comparison.refusal() {
            Some(lost) if self.accept_loss => say!("accepted: int8 loses more AP points than it may: {lost}"),
            Some(lost) if spec.quantized => bail!(
                "int8 loses more AP points against float than it may: {lost}. {}Train longer with quantisation (fit --qat, --iterations, \
                 --lr), or quantise the float run itself; --accept-loss writes the model all the same",
                comparison.doubt()
            ),
            Some(lost) => bail!(
                "int8 loses more AP points against float than it may: {lost}. {}Try other ranges (--calibration, --pictures), --equalize, \
                 --correct-biases, or train with quantisation (fit --qat); --sensitivity shows which layers cost most; --accept-loss \
                 writes the model all the same",
                comparison.doubt()
            ),
            None => {}
        }
        let thresholds = display_thresholds(&spec, &int8_measured);
        // The whole folder first, then its files into their place.
        write_model(&int8_dir, &spec, &name, &int8, Some(thresholds))?;
        if self.with_weights {
            let path = int8_dir.join("weights.safetensors");
            if spec.quantized {
                // Scales need all their bits.
                weights::write(&path, &weights, HashMap::new())?;
            } else {
                weights::write_f16(&path, &weights)?;
            }
            spec.write(&int8_dir.join("model.toml"))?;
        }
        let golden = package::golden(&int8_dir, &spec, &int8)?;
        write_atomic(&int8_dir.join("golden.json"), serde_json::to_string_pretty(&golden)?.as_bytes())?;
        let card = self.model_card(&name, &spec, &int8, (int8_measured.evaluator.summarize().images, &table), &card, &how);
        write_atomic(&int8_dir.join("README.md"), card.as_bytes())?;
        work.move_files(&int8_dir, &self.out)?;
        say!("wrote {}: {} bytes, int8 loses {loss:.2} AP points", self.out.display(), int8.len());
        Ok(())
    }

    /// Refuses to write the model where float weights lie that would be lost: into the run itself, or into another one.
    fn keep_weights(&self, run: &RunDir) -> Result<()> {
        let out = RunDir(self.out.clone());
        let is_run = out.0.canonicalize().ok().is_some_and(|place| run.0.canonicalize().is_ok_and(|run| run == place));
        let is_model = out.0.join("manifest.toml").exists();
        if is_run || !is_model && (out.weights().exists() || out.config().exists() || out.checkpoint().exists()) {
            let dir = out.0.display();
            return Err(
                Request(format!("--out {dir} holds the weights of a run, which would be lost; choose another folder")).into()
            );
        }
        Ok(())
    }

    /// Ranges, weights and biases of the integer network.
    fn quantization(&self, graph: &Graph, spec: &ModelSpec, folded: &Folded, pictures: &[Vec<u8>]) -> Result<Quantization> {
        let mut folded = folded.clone();
        let mut observed = observe_all(graph, spec, &folded, pictures)?;
        if self.equalize {
            let n = equalize(graph, &mut folded, &observed);
            say!("equalised {n} pairs of convolutions");
            observed = observe_all(graph, spec, &folded, pictures)?;
        }
        let few = &pictures[..pictures.len().min(self.probe_pictures as usize)];
        let float = folded.clone();
        let probe = Probe::new(graph, spec, &float, few)?;
        let activations = match self.method() {
            Some(method) => observed.activations(|_| method)?,
            None => {
                let bar = progress(0, "choosing ranges");
                let chosen = choose_methods(&probe, &observed, &bar)?;
                bar.finish_and_clear();
                let count = |method| chosen.iter().filter(|choice| choice.1 == method).count();
                let counts = Method::ALL.map(|method| format!("{} {method:?}", count(method)));
                say!("ranges: {}", counts.join(", ").to_lowercase());
                let chosen: HashMap<_, _> = chosen.into_iter().collect();
                observed.activations(|root| chosen.get(&root).copied().unwrap_or(Method::Mse))?
            }
        };
        if self.sensitivity {
            let bar = progress(0, "one layer at a time");
            let layers = sensitivity(&probe, &activations, &bar)?;
            bar.finish_and_clear();
            println!("{}", sensitivity_table(&layers));
        }
        let convs = quantize_convs(graph, &folded);
        if self.correct_biases {
            correct_biases(graph, &mut folded, &observed);
        }
        let biases = folded.into_iter().map(|(name, conv)| (name, conv.bias)).collect();
        let quantization = Quantization { activations, convs, biases };
        let noise = probe.of_network(&onnx::encode(&quantized_model(graph, spec, &quantization)))?;
        say!("noise of the whole at the heads: {} dB", decibels(noise));
        Ok(quantization)
    }

    const fn method(&self) -> Option<Method> {
        match self.calibration {
            Calibration::Auto => None,
            Calibration::Minmax => Some(Method::Minmax),
            Calibration::Percentile => Some(Method::Percentile),
            Calibration::Mse => Some(Method::Mse),
            Calibration::Entropy => Some(Method::Entropy),
        }
    }

    /// How ranges were found, as flags.
    fn how(&self) -> String {
        let method = self.method().map_or("auto".to_owned(), |method| format!("{method:?}").to_lowercase());
        let given = [(self.equalize, " --equalize"), (self.correct_biases, " --correct-biases")];
        let flags: String = given.into_iter().filter(|(is_given, _)| *is_given).map(|(_, flag)| flag).collect();
        format!("`--calibration {method}{flags}`")
    }

    fn model_card(
        &self,
        name: &str,
        spec: &ModelSpec,
        int8: &[u8],
        (n_measured, table): (usize, &str),
        given: &str,
        how: &str,
    ) -> String {
        let blocks = spec.blocks.map(|[c3, c4, c5]| format!(" of {c3}, {c4} and {c5} blocks")).unwrap_or_default();
        let backbone = spec.backbone.label() + &blocks;
        let pyramid = if spec.pyramid == Pyramid::C5 { "C5 alone" } else { "pyramid P3–P7" };
        format!(
            "# {name}\n\nRetinaNet, int8 (QDQ ONNX, `model.onnx`, {} bytes, SHA-256 `{}`). Backbone {}, {pyramid} of {} channels, \
             towers of {} x {} channels, {} anchors a cell, input {}x{}.\n\nClasses: {}.\n\n{given}\n## Accuracy\n\nCOCO metrics in \
             percent on {} labelled pictures (`--val`), by `fovea eval --model DIR --data DIR`, the loss with its standard \
             error; {how}. Thresholds for display in `manifest.toml` are those of best F1 at IoU 0.5.\n\n{table}\n\
             Speed depends on the machine: `fovea bench --model-only DIR` measures it on yours.\n",
            int8.len(),
            hex(&Sha256::digest(int8)),
            backbone,
            spec.fpn_width,
            spec.head_depth,
            spec.head_width,
            spec.anchors.n_per_cell(),
            spec.width,
            spec.height,
            spec.classes.join(", "),
            n_measured,
        )
    }
}

/// For the card: the models that `pseudo-label` made labels with, those of a scored file or those of the data set itself.
fn teachers_of(dir: &RunDir) -> String {
    let settings: toml::Table = std::fs::read_to_string(dir.config()).ok().and_then(|text| text.parse().ok()).unwrap_or_default();
    let path = |key: &str| settings.get(key).and_then(toml::Value::as_str).map(PathBuf::from);
    let (data, scored) = (path("data"), path("pseudo"));
    for missing in data.iter().chain(&scored).filter(|path| !path.exists()) {
        say!("{} is not there; the card does not name models that made its labels", missing.display());
    }
    let data = data.map(|dir| dir.join("annotations.json"));
    let completed = "Classes that the pictures' own labels leave out were completed by scored boxes of";
    [(data, "The pictures were labelled by"), (scored, completed)]
        .into_iter()
        .filter_map(|(path, what)| Some((teachers_in(&path?)?, what)))
        .map(|(names, what)| format!("\n{what} {names} (`pseudo-label`).\n"))
        .collect()
}

/// The models that a file of labels names as its makers.
fn teachers_in(path: &Path) -> Option<String> {
    let labels: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()?;
    let name = |teacher: &serde_json::Value| {
        Some(format!("{} (SHA-256 `{:.12}`)", teacher["name"].as_str()?, teacher["sha256"].as_str()?))
    };
    let names: Vec<String> = labels["info"]["teachers"].as_array()?.iter().filter_map(name).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// The network that int8 is held against: the run's own, or the float run that training with quantisation started from.
fn float_network(dir: &RunDir, spec: &ModelSpec, folded: &Folded) -> Result<(ModelSpec, Vec<u8>)> {
    let encode = |spec: &ModelSpec, folded: &Folded| onnx::encode(&float_model(&Graph::new(spec), spec, folded, &[]));
    let settings: toml::Table = std::fs::read_to_string(dir.config()).ok().and_then(|text| text.parse().ok()).unwrap_or_default();
    if !spec.quantized {
        return Ok((spec.clone(), encode(spec, folded)));
    }
    let Some(start) = settings.get("qat").and_then(toml::Value::as_str) else {
        return Err(Request(format!(
            "{}: it was trained with quantisation, but {} does not name the float run (`qat`) that int8 is held against; take the \
             run's own folder",
            dir.0.display(),
            dir.config().display()
        ))
        .into());
    };
    let start = RunDir(start.into());
    let float_spec = ModelSpec { width: spec.width, height: spec.height, ..ModelSpec::read(&start.model())? };
    let folded = fold(&Graph::new(&float_spec), &weights::read(&start.weights())?.weights)?;
    say!("float is {}", start.0.display());
    let network = encode(&float_spec, &folded);
    Ok((float_spec, network))
}

fn decibels(noise: f64) -> String {
    if noise > 0.0 { format!("{:.1}", 10.0 * noise.log10()) } else { "-".to_owned() }
}

/// Markdown; noise in dB of the signal.
fn sensitivity_table(layers: &[LayerNoise]) -> String {
    let mut table = String::from("| layer quantised alone | noise (dB) | of its weights | of its outputs |\n|---|---|---|---|\n");
    for layer in layers {
        let [both, weights, outputs] = [layer.weights + layer.activations, layer.weights, layer.activations].map(decibels);
        // Writing to a string cannot fail.
        let _ = writeln!(table, "| {} | {both} | {weights} | {outputs} |", layer.layer);
    }
    table
}

/// A folder for what is not finished; goes with this value, whatever happens.
pub(super) struct Work(pub(super) PathBuf);

impl Work {
    /// A folder beside the model folder.
    fn beside(out: &Path) -> Result<Self> {
        Self::at(out.with_file_name(format!(".{}.work", package::name_of(out))))
    }

    /// Makes the folder.
    pub(super) fn at(dir: PathBuf) -> Result<Self> {
        // What a run that was killed left there is not of this one.
        std::fs::remove_dir_all(&dir).ok();
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
        Ok(Self(dir))
    }

    /// Moves every file of `from` into `to`; the manifest last, since it names the digest of the network.
    fn move_files(&self, from: &Path, to: &Path) -> Result<()> {
        std::fs::create_dir_all(to).with_context(|| format!("cannot make the folder {}", to.display()))?;
        let mut names: Vec<_> = std::fs::read_dir(from)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
        names.sort_by_key(|name| (name == "manifest.toml", name.clone()));
        let stale = ["weights.safetensors", "model.toml"].into_iter().filter(|name| !names.iter().any(|new| new == name));
        let stale: Vec<&str> = stale.collect();
        for name in names {
            let path = to.join(&name);
            place(&from.join(&name), &path).with_context(|| format!("cannot write {}", path.display()))?;
        }
        // Those of the model that was there before.
        for name in stale {
            std::fs::remove_file(to.join(name)).ok();
        }
        Ok(())
    }
}

/// Moves a file, or copies it where the folders are on different disks: a mounted one, or a link to one.
fn place(from: &Path, to: &Path) -> std::io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => std::fs::copy(from, to).map(drop),
        moved => moved,
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Writes network, manifest and labels.
pub(super) fn write_model(dir: &Path, spec: &ModelSpec, name: &str, network: &[u8], display: Option<Vec<f32>>) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    let mut manifest = spec.manifest(name, "model.onnx");
    manifest.network.sha256 = Some(hex(&Sha256::digest(network)));
    manifest.postprocess.display_threshold = display.unwrap_or_default();
    write_atomic(&dir.join("model.onnx"), network)?;
    write_atomic(&dir.join("manifest.toml"), manifest.to_toml().as_bytes())?;
    write_atomic(&dir.join("labels.txt"), package::labels(spec).as_bytes())
}

/// Measures a model folder on a data set.
pub(super) fn measure(model_dir: &Path, data: &Path, degrade: Option<Degradation>, what: &str) -> Result<Evaluation> {
    let bar = progress(0, what);
    let options = EvaluateOptions { allow_float: true, degrade, ..EvaluateOptions::default() };
    let data = Folder::open(data)?;
    let paths = (&*data.dir, data.images_dir());
    let found = evaluate_dataset(model_dir, data.coco.clone(), paths, &options, &|done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    Ok(found?)
}

/// The threshold of best F1 for each class; 0.4 for a class that `val` has not.
fn display_thresholds(spec: &ModelSpec, evaluation: &Evaluation) -> Vec<f32> {
    let found = evaluation.evaluator.best_f1_thresholds(fovea::retinanet::PostprocessSpec::default().score_threshold.into());
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
    use crate::calibrate::{LOWEST_LOGIT, Observed};
    use crate::package::{planar, test_picture};
    use crate::spec::{Backbone, Norm, Pixels};
    use crate::weights::{Array, Weights};
    use fovea::executor::{Executor, LoadOptions, Network};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

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
                // Small where a residual branch ends, as trained networks have it: sums of many blocks stay of a size.
                let ends_a_branch =
                    conv.name.starts_with("layer") && (conv.name.ends_with("conv2") || conv.name.ends_with("conv3"));
                let size = if ends_a_branch { 0.4 } else { 1.0 };
                add("norm.weight", &[conv.c_out], 0.8 * size, 1.2 * size);
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
            ModelSpec { head_depth: 0, blocks: Some([1, 2, 1]), ..edge(Backbone::ShuffleNetV2X05) },
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

    /// Ranges by one method, nothing corrected.
    fn plain(graph: &Graph, folded: &Folded, observed: &Observed, method: Method) -> Quantization {
        let biases = folded.iter().map(|(name, conv)| (name.clone(), conv.bias.clone())).collect();
        Quantization { activations: observed.activations(|_| method).unwrap(), convs: quantize_convs(graph, folded), biases }
    }

    /// A network as batch norm leaves those of mobile backbones: channels of one activation differ a hundredfold. The same
    /// function as `folded`: what a channel is multiplied by, its reader divides by.
    fn uneven(graph: &Graph, folded: &Folded) -> Folded {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut uneven = folded.clone();
        for (first, second) in graph.convs().zip(graph.convs().skip(1)) {
            let follows = second.name == first.name.replace("b2pw1", "b2dw") && second.groups == second.c_in;
            if follows && first.name != second.name {
                let (a, taps) = (first.c_in / first.groups * first.kernel * first.kernel, second.kernel * second.kernel);
                for c in 0..first.c_out {
                    let factor = 10.0_f32.powf(rng.random_range(-1.0..1.0));
                    let conv = uneven.get_mut(&first.name).unwrap();
                    conv.weights[c * a..][..a].iter_mut().for_each(|w| *w *= factor);
                    conv.bias[c] *= factor;
                    uneven.get_mut(&second.name).unwrap().weights[c * taps..][..taps].iter_mut().for_each(|w| *w /= factor);
                }
            }
        }
        uneven
    }

    /// Noise at the heads of a whole integer network, by how it was quantised.
    #[test]
    fn uneven_channels_cost_until_they_are_equalised() {
        let spec = edge(Backbone::ShuffleNetV2);
        let graph = Graph::new(&spec);
        let even = fold(&graph, &random_weights(&graph, 3)).unwrap();
        let pictures: Vec<Vec<u8>> =
            (0..3).map(|seed| test_picture(96, 64).iter().map(|&v: &u8| v.wrapping_mul(2 * seed + 1)).collect()).collect();
        let noise = |folded: &Folded, quantization: &Quantization| {
            let probe = Probe::new(&graph, &spec, folded, &pictures).unwrap();
            probe.of_network(&onnx::encode(&quantized_model(&graph, &spec, quantization))).unwrap()
        };
        let by = |folded: &Folded, method: Method| {
            let observed = observe_all(&graph, &spec, folded, &pictures).unwrap();
            noise(folded, &plain(&graph, folded, &observed, method))
        };
        let folded = uneven(&graph, &even);
        let probe = Probe::new(&graph, &spec, &even, &pictures).unwrap();
        let same = probe.noise(Some(&folded), &crate::export::Fake::new()).unwrap();
        assert!(same < 1e-6, "it is the same function: {same:e}");

        let (at_best, uneven) = (by(&even, Method::Mse), by(&folded, Method::Mse));
        let observed = observe_all(&graph, &spec, &folded, &pictures).unwrap();
        let mut equalized = folded.clone();
        assert!(equalize(&graph, &mut equalized, &observed) > 20);
        let same = probe.noise(Some(&equalized), &crate::export::Fake::new()).unwrap();
        assert!(same < 1e-6, "equalisation changes the function by {same:e}");
        let evened = by(&equalized, Method::Mse);
        assert!(uneven > 3.0 * at_best && evened < 1.2 * at_best, "even {at_best:e}, uneven {uneven:e}, equalised {evened:e}");

        // The layers that were made uneven are found.
        let activations = observed.activations(|_| Method::Mse).unwrap();
        let probe = Probe::new(&graph, &spec, &folded, &pictures[..1]).unwrap();
        let layers = sensitivity(&probe, &activations, &indicatif::ProgressBar::hidden()).unwrap();
        let n_found = layers[..6].iter().filter(|layer| layer.layer.ends_with("b2pw1")).count();
        assert!(n_found >= 5, "{}", sensitivity_table(&layers[..6]));

        // Corrected biases take the mean error away.
        let mut plain = plain(&graph, &even, &observe_all(&graph, &spec, &even, &pictures).unwrap(), Method::Mse);
        let mut corrected = even.clone();
        correct_biases(&graph, &mut corrected, &observe_all(&graph, &spec, &even, &pictures).unwrap());
        let without = noise(&even, &plain);
        plain.biases = corrected.into_iter().map(|(name, conv)| (name, conv.bias)).collect();
        let with = noise(&even, &plain);
        assert!(with < without, "{without:e} without, {with:e} with corrected biases");
    }

    #[test]
    fn every_network_becomes_an_integer_network_near_its_float_form() {
        for spec in variants() {
            becomes_an_integer_network(&spec);
        }
    }

    #[test]
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
        let pixels = test_picture(spec.width, spec.height);
        let observed = observe_all(&graph, spec, &folded, std::slice::from_ref(&pixels)).unwrap();
        let quantization = plain(&graph, &folded, &observed, Method::Mse);
        let float = onnx::encode(&float_model(&graph, spec, &folded, &[]));
        let int8 = onnx::encode(&quantized_model(&graph, spec, &quantization));
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

    #[test]
    fn the_card_names_who_completed_the_labels() {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir(folder.path().to_owned());
        assert_eq!(teachers_of(&dir), "");
        let scored = folder.path().join("pseudo.json");
        std::fs::write(dir.config(), format!("pseudo = {:?}\n", scored.display().to_string())).unwrap();
        assert_eq!(teachers_of(&dir), "");
        let teachers = serde_json::json!([
            {"name": "street", "sha256": "0123456789abcdef"},
            {"name": "without a digest"},
            {"name": "small", "sha256": "fedcba9876543210"},
        ]);
        std::fs::write(&scored, serde_json::json!({"info": {"teachers": teachers}, "images": []}).to_string()).unwrap();
        let text = teachers_of(&dir);
        assert!(text.contains("of street (SHA-256 `0123456789ab`), small (SHA-256 `fedcba987654`) (`pseudo-label`)"), "{text}");
        // Pictures that nobody labelled: the file is the data set's own.
        std::fs::rename(&scored, folder.path().join("annotations.json")).unwrap();
        std::fs::write(dir.config(), format!("data = {:?}\n", folder.path().display().to_string())).unwrap();
        let text = teachers_of(&dir);
        assert!(text.starts_with("\nThe pictures were labelled by street (SHA-256"), "{text}");
    }
}
