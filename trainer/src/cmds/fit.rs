//! `fovea-train fit`.

use super::device;
use crate::config::FitConfig;
use crate::data::Folder;
use crate::distill::Distill;
use crate::fit::{Control, Outcome, Resources, fit};
use crate::loss::{BoxLoss, ClsLoss};
use crate::optim::{Rule, Schedule};
use crate::peers::Peers;
use crate::request::Request;
use crate::run_dir::{Origin, RunDir};
use crate::spec::{Backbone, ModelSpec, Norm, Pixels, Pyramid, STRIDES};
use crate::weights;
use anyhow::{Context, Result};
use fovea::pipeline::interrupt::on_interrupt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tch::Kind;

/// A recipe to start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Preset {
    /// AdamW, cosine, mosaic, GIoU: for small data and initial weights.
    Edge,
    /// The paper's: SGD, two steps, flip only, P3 anchors of 32 pixels, 256 channels.
    Paper,
}

/// Arguments of `fovea-train fit`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  fovea-train fit --data mydata/train --val mydata/val --out runs/first --init shufflenetv2-x1.0.safetensors
  fovea-train fit --resume --out runs/first
  fovea-train fit --data mydata/train --out runs/small --backbone edgelite --teacher runs/first

A data set is a folder in COCO, YOLO, Pascal VOC, Open Images or CVAT format. Ctrl-C writes a checkpoint and stops; --resume goes on \
from it as if it had never stopped.")]
pub(crate) struct Args {
    /// Folder of the run: settings, checkpoint, weights, curve.
    #[arg(long)]
    out: PathBuf,
    /// Go on from the checkpoint in --out, with the settings written there.
    #[arg(long, conflicts_with = "Settings")]
    resume: bool,
    /// Go on even if pictures or labels are not those that the run began with.
    #[arg(long, requires = "resume")]
    other_data: bool,
    /// Stop after this iteration, as Ctrl-C does.
    #[arg(long)]
    until: Option<usize>,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    machine: Machine,
}

/// What a run is: a file, or a preset and what differs from it.
#[derive(Debug, clap::Args)]
pub(crate) struct Settings {
    /// Training data: a data set in COCO, YOLO, Pascal VOC, Open Images or CVAT format.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Validation data, measured at the end.
    #[arg(long)]
    val: Option<PathBuf>,
    /// Scored annotations that complete the classes a picture's own labels leave out.
    #[arg(long)]
    pseudo: Option<PathBuf>,
    /// Settings as a file (fit.toml of another run) instead of flags; --data, --val, --pseudo, --init and --teacher replace
    /// its paths.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Initial weights (safetensors, or the folder of a run or of a model that has them), taken by name. Where a model.toml lies beside them (a run, a shipped model), the network is that
    /// one, anchors and input size as well, but for its classes and what flags name.
    #[arg(long, value_parser = super::weights_path)]
    init: Option<PathBuf>,
    /// A stronger network to learn from beside the labels: the folder of a run or a model with the same anchors. Weights of
    /// its losses: `distill` in fit.toml.
    #[arg(long)]
    teacher: Option<PathBuf>,
    /// Train with quantisation, from the weights and settings of this float run: the arithmetic is that of the integer kernels.
    /// --data, --val, --pseudo, --iterations, --warmup, --batch, --lr, --seed, --mosaic, --checkpoint-every and --eval-every
    /// change its settings.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["config", "init", "preset", "teacher", "backbone", "backbone_norm",
        "width_channels", "head_width", "head_norm", "pyramid", "pyramid_norm", "stride_in_1x1", "blocks", "scales", "ratios", "head_depth",
        "width", "height", "classes", "backbone_lr", "rule", "schedule", "loss", "prior", "box_loss", "leak_share"])]
    qat: Option<PathBuf>,
    /// Recipe to start from; the flags below change it.
    #[arg(long, value_enum, default_value = "edge", conflicts_with = "config")]
    preset: Preset,
    /// Part that makes C3 to C5. [default: that of --init, else shufflenetv2, paper: resnet18]
    #[arg(long, value_enum, conflicts_with = "config")]
    backbone: Option<Backbone>,
    /// Batch norm in the backbone: needed from scratch, wrong for initial weights whose batch norm is folded.
    /// [default: what --init has; true without --init]
    #[arg(long, conflicts_with = "config")]
    backbone_norm: Option<bool>,
    /// Channels of the pyramid and of the towers. [default: those of --init, else 64, paper: 256]
    #[arg(long, conflicts_with = "config")]
    width_channels: Option<usize>,
    /// Channels of the towers alone. [default: --width-channels, else those of --init, else those of the
    /// pyramid]
    #[arg(long, conflicts_with = "config")]
    head_width: Option<usize>,
    /// Norm in the towers; a network with group norm cannot be exported. [default: that of --init, else batch, paper: none]
    #[arg(long, value_enum, conflicts_with = "config")]
    head_norm: Option<Norm>,
    /// How the levels come from the backbone. [default: that of --init, else fpn]
    #[arg(long, value_enum, conflicts_with = "config")]
    pyramid: Option<Pyramid>,
    /// Batch norm in the pyramid; false: biases, as the paper has it. [default: that of --init, else true, paper: false]
    #[arg(long, conflicts_with = "config")]
    pyramid_norm: Option<bool>,
    /// Stride 2 of a bottleneck in its first 1x1 convolution: for weights of detectron2.
    #[arg(long, conflicts_with = "config")]
    stride_in_1x1: bool,
    /// Blocks of the stages that make C3, C4, C5 of a shufflenetv2: 4,8,3 has an eighth of the weights of 1.0x less; what is left
    /// takes its initial weights. [default: those of --init, else 4,8,4]
    #[arg(long, value_delimiter = ',', num_args = 1, value_name = "N,N,N", conflicts_with = "config")]
    blocks: Vec<usize>,
    /// Scales of anchors to the octave. [default: those of --init, else 3]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=4), conflicts_with = "config")]
    scales: Option<u8>,
    /// Shapes of anchors: 1 (square) or 3 (1:2, 1:1, 2:1). [default: those of --init, else 3]
    #[arg(long, value_parser = ["1", "3"], conflicts_with = "config")]
    ratios: Option<String>,
    /// Convolutions in each tower, before the last. [default: that of --init, else 2, paper: 4]
    #[arg(long, conflicts_with = "config")]
    head_depth: Option<usize>,
    /// Input width in pixels, a multiple of 32. [default: that of --init, else 416]
    #[arg(long, conflicts_with = "config")]
    width: Option<usize>,
    /// Input height in pixels, a multiple of 32. [default: that of --init, else 256]
    #[arg(long, conflicts_with = "config")]
    height: Option<usize>,
    /// Class names in the order of the outputs. [default: the data set's categories]
    #[arg(long, value_delimiter = ',', conflicts_with = "config")]
    classes: Vec<String>,
    /// Steps; the warm-up takes a tenth of them at most.
    #[arg(long)]
    iterations: Option<usize>,
    /// Steps of linear warm-up. [default: 250, paper: 1000; no more than a tenth of --iterations]
    #[arg(long, conflicts_with = "config")]
    warmup: Option<usize>,
    /// Pictures a step.
    #[arg(long, conflicts_with = "config")]
    batch: Option<usize>,
    /// Highest learning rate.
    #[arg(long, conflicts_with = "config")]
    lr: Option<f64>,
    /// Factor on it for the backbone.
    #[arg(long, conflicts_with = "config")]
    backbone_lr: Option<f64>,
    /// Optimiser.
    #[arg(long, value_enum, conflicts_with = "config")]
    rule: Option<Rule>,
    /// Learning rate over time.
    #[arg(long, value_enum, conflicts_with = "config")]
    schedule: Option<Schedule>,
    /// Loss on the logits: cross_entropy, balanced (alpha), focal (gamma, alpha), focal_star (gamma, beta, alpha), hinge
    /// (margin), ohem (batch, nms_threshold, ratio); parameters as in focal:gamma=2,alpha=0.25.
    #[arg(long, conflicts_with = "config")]
    loss: Option<ClsLoss>,
    /// Probability that the classifier gives everything at the start; 0.5: no prior.
    #[arg(long, conflicts_with = "config")]
    prior: Option<f64>,
    /// Loss on the boxes.
    #[arg(long, value_enum, conflicts_with = "config")]
    box_loss: Option<BoxLoss>,
    /// Probability of four pictures in one.
    #[arg(long, conflicts_with = "config")]
    mosaic: Option<f32>,
    /// First part of the run in which LeakyReLU becomes ReLU, for initial weights trained with LeakyReLU.
    #[arg(long, conflicts_with = "config")]
    leak_share: Option<f64>,
    /// Seed of everything random.
    #[arg(long)]
    seed: Option<u64>,
    /// Steps between checkpoints.
    #[arg(long, conflicts_with = "config")]
    checkpoint_every: Option<usize>,
    /// Steps between evaluations on --val; 0: at the end only.
    #[arg(long, conflicts_with = "config")]
    eval_every: Option<usize>,
}

/// What it runs on.
#[derive(Debug, clap::Args)]
pub(crate) struct Machine {
    /// auto, cpu or cuda.
    #[arg(long, default_value = "auto")]
    device: String,
    /// f32, or bf16. [default: with --resume that of the run, else bf16 on CUDA, f32 on a CPU]
    #[arg(long, value_parser = ["f32", "bf16"])]
    precision: Option<String>,
    /// Threads of the arithmetic on a CPU.
    #[arg(long)]
    threads: Option<usize>,
    /// Threads that make batches.
    #[arg(long, default_value_t = 1)]
    workers: usize,
}

impl Args {
    /// Trains.
    pub(crate) fn run(mut self) -> Result<()> {
        let dir = RunDir(self.out.clone());
        if self.resume && self.machine.precision.is_none() {
            // Else it would be another run.
            self.machine.precision = Origin::precision(&dir);
        }
        let resources = self.machine.resources()?;
        let mut peers = Peers::meet()?;
        let config = self.config(&dir)?;
        config.check().map_err(|error| Request(format!("{error:#}")))?;
        std::fs::create_dir_all(&dir.0).with_context(|| format!("cannot make the folder {}", dir.0.display()))?;
        // Two runs into one folder would replace each other's checkpoints. Held until the end; where locks are not known, none.
        let lock = std::fs::File::open(&dir.0).ok().filter(|_| peers.rank == 0);
        if lock.as_ref().is_some_and(|lock| matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock))) {
            return Err(Request(format!("another process trains into {}", dir.0.display())).into());
        }
        if config.batch % peers.world != 0 {
            return Err(Request(format!("batch {} cannot be shared by {} processes", config.batch, peers.world)).into());
        }
        if self.resume && ModelSpec::read(&dir.model())? != config.model {
            // What measures and exports reads the one, what trains the other.
            return Err(Request(format!(
                "{} has another [model] than {}: a run keeps the network that it began with; start another: --config with another --out",
                dir.config().display(),
                dir.model().display()
            ))
            .into());
        }
        if !self.resume && peers.rank == 0 {
            config.write(&dir.config())?;
            config.model.write(&dir.model())?;
        }
        let stop = stop_on_interrupt()?;
        let control = Control { resume: self.resume, other_data: self.other_data, until: self.until, stop: &stop };
        match fit(&config, &dir, control, &resources, &mut peers)? {
            _ if peers.rank > 0 => {}
            Outcome::Done => say!("done: {}", dir.weights().display()),
            Outcome::Stopped(at) => {
                say!("stopped before iteration {at}; go on with: fovea-train fit --resume --out {}", dir.0.display());
            }
        }
        Ok(())
    }

    fn config(&self, dir: &RunDir) -> Result<FitConfig> {
        if self.resume {
            if !dir.checkpoint().exists() {
                return Err(Request(format!("--resume: there is no {}", dir.checkpoint().display())).into());
            }
            return FitConfig::read(&dir.config());
        }
        if !dir.checkpoint().exists() && dir.weights().exists() {
            return Err(Request(format!(
                "{} would be replaced; choose another --out (--init {0} starts from it)",
                dir.weights().display()
            ))
            .into());
        }
        if dir.checkpoint().exists() {
            return Err(Request(format!(
                "{} holds a run already; use --resume to go on with it, or another --out",
                dir.0.display()
            ))
            .into());
        }
        self.settings.config()
    }
}

impl Machine {
    /// Device, arithmetic and threads.
    pub(crate) fn resources(&self) -> Result<Resources> {
        let device = device(&self.device, self.threads)?;
        let kind = match self.precision.as_deref() {
            Some("bf16") => Kind::BFloat16,
            None if device.is_cuda() => Kind::BFloat16,
            _ => Kind::Float,
        };
        if device.is_cuda() {
            tch::Cuda::cudnn_set_benchmark(true);
        }
        Ok(Resources { device, kind, workers: self.workers, examples: None })
    }
}

/// Set by Ctrl-C; a second one ends the program.
pub(crate) fn stop_on_interrupt() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    on_interrupt(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        say!("stopping after this step; again to stop at once");
    })?;
    Ok(stop)
}

impl Settings {
    /// Whether a seed is given.
    pub(crate) const fn has_seed(&self) -> bool {
        self.seed.is_some()
    }

    /// The settings of the run.
    pub(crate) fn config(&self) -> Result<FitConfig> {
        if let Some(path) = &self.config {
            let mut config = FitConfig::read(path).map_err(|error| Request(format!("{error:#}")))?;
            if config.qat.is_some() && self.init.is_some() {
                let path = path.display();
                return Err(Request(format!(
                    "--init: {path} is of a training with quantisation, which begins with its float run"
                ))
                .into());
            }
            set(&mut config.data, self.data.clone());
            for (path, given) in
                [(&mut config.val, &self.val), (&mut config.pseudo, &self.pseudo), (&mut config.init, &self.init)]
            {
                if given.is_some() {
                    path.clone_from(given);
                }
            }
            if let Some(teacher) = &self.teacher {
                match &mut config.distill {
                    Some(distill) => distill.teacher.clone_from(teacher),
                    None => config.distill = Some(Distill::new(teacher.clone())),
                }
            }
            if let Some(iterations) = self.iterations {
                config.set_iterations(iterations);
            }
            set(&mut config.seed, self.seed);
            return Ok(config);
        }
        if let Some(run) = &self.qat {
            let mut config = FitConfig::quantized(&RunDir(run.clone()), self.data.as_deref())?;
            set(&mut config.data, self.data.clone());
            for (path, given) in [(&mut config.val, &self.val), (&mut config.pseudo, &self.pseudo)] {
                if given.is_some() {
                    path.clone_from(given);
                }
            }
            if let Some(iterations) = self.iterations {
                config.set_iterations(iterations);
            }
            set(&mut config.warmup, self.warmup);
            set(&mut config.batch, self.batch);
            set(&mut config.lr, self.lr);
            set(&mut config.seed, self.seed);
            set(&mut config.augment.mosaic, self.mosaic);
            set(&mut config.checkpoint_every, self.checkpoint_every);
            set(&mut config.eval_every, self.eval_every);
            return Ok(config);
        }
        let data = self.data.clone().ok_or_else(|| Request("--data is missing: the folder of a data set".into()))?;
        let is_paper = self.preset == Preset::Paper;
        let classes = if self.classes.is_empty() {
            Folder::open(&data)?.coco.categories.into_iter().map(|category| category.name).collect()
        } else {
            self.classes.clone()
        };
        let origin = self.init.as_deref().and_then(Path::parent).map(|dir| RunDir(dir.to_owned()));
        let origin = origin.filter(|dir| dir.model().exists()).map(|dir| dir.spec()).transpose()?;
        let model = self.network(origin, classes)?;
        let mut config = if is_paper { FitConfig::paper(data, model) } else { FitConfig::edge(data, model) };
        config.val.clone_from(&self.val);
        config.pseudo.clone_from(&self.pseudo);
        config.init.clone_from(&self.init);
        config.distill = self.teacher.clone().map(Distill::new);
        if let Some(iterations) = self.iterations {
            config.set_iterations(iterations);
        }
        set(&mut config.warmup, self.warmup);
        set(&mut config.batch, self.batch);
        set(&mut config.lr, self.lr);
        set(&mut config.backbone_lr, self.backbone_lr);
        set(&mut config.rule, self.rule);
        set(&mut config.schedule, self.schedule);
        set(&mut config.loss, self.loss);
        set(&mut config.prior, self.prior);
        set(&mut config.box_loss, self.box_loss);
        set(&mut config.augment.mosaic, self.mosaic);
        set(&mut config.leak_share, self.leak_share);
        set(&mut config.seed, self.seed);
        set(&mut config.checkpoint_every, self.checkpoint_every);
        set(&mut config.eval_every, self.eval_every);
        Ok(config)
    }

    /// What flags make of the network that the initial weights belong to, else of the preset's.
    fn network(&self, origin: Option<ModelSpec>, classes: Vec<String>) -> Result<ModelSpec> {
        let is_new = origin.is_none();
        let mut model = origin.unwrap_or_else(|| match self.preset {
            Preset::Paper => ModelSpec {
                pyramid_norm: false,
                head_norm: Norm::None,
                anchors: ModelSpec::paper_anchors(),
                ..ModelSpec::edge(Backbone::ResNet18, 256, 4, (416, 256), Vec::new())
            },
            Preset::Edge => ModelSpec::edge(Backbone::ShuffleNetV2, 64, 2, (416, 256), Vec::new()),
        });
        let n_levels = if model.pyramid == Pyramid::C5 { STRIDES.len() } else { 1 };
        let n_scales = if is_new { 3 } else { u8::try_from(model.anchors.scales.len() / n_levels)? };
        (model.classes, model.quantized) = (classes, false);
        if self.init.as_ref().is_some_and(|path| path.with_extension("json").exists()) {
            // As they are read, the first layer is turned to RGB / 255.
            model.pixels = Pixels::default();
        }
        if self.backbone.is_some_and(|backbone| backbone != model.backbone) {
            model.blocks = None;
        }
        set(&mut model.backbone, self.backbone);
        model.backbone_norm = match (self.backbone_norm, &self.init) {
            (Some(given), _) => given,
            (None, None) => true,
            (None, Some(path)) => weights::read(path)?.weights.contains_key("stem.norm.weight"),
        };
        model.stride_in_1x1 |= self.stride_in_1x1;
        if !self.blocks.is_empty() {
            let wrong = |_| Request(format!("--blocks has {} numbers, expected three", self.blocks.len()));
            model.blocks = Some(self.blocks[..].try_into().map_err(wrong)?);
        }
        set(&mut model.pyramid, self.pyramid);
        set(&mut model.pyramid_norm, self.pyramid_norm);
        set(&mut model.fpn_width, self.width_channels);
        set(&mut model.head_width, self.head_width.or(self.width_channels));
        set(&mut model.head_depth, self.head_depth);
        set(&mut model.head_norm, self.head_norm);
        set(&mut model.width, self.width);
        set(&mut model.height, self.height);
        if is_new || self.scales.is_some() || self.ratios.is_some() || self.pyramid.is_some() {
            if self.ratios.as_deref() == Some("3") {
                model.anchors.aspect_ratios = ModelSpec::edge_anchors().aspect_ratios;
            }
            let is_square = self.ratios.as_deref() == Some("1");
            model.anchors = ModelSpec::arranged(model.anchors, self.scales.unwrap_or(n_scales), is_square, model.pyramid);
        }
        Ok(model)
    }
}

fn set<T>(value: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *value = given;
    }
}
