//! The training loop.

use crate::batches::{Batch, Batches, Recipe, repeated};
use crate::checkpoint;
use crate::config::FitConfig;
use crate::curve::Curve;
use crate::data::{self, Example, Folder};
use crate::evaluate::{evaluate, summary};
use crate::loss::{box_loss, with_gradient};
use crate::model::{Mode, Model};
use crate::optim::{Optimizer, Step};
use crate::package::write_atomic;
use crate::run_dir::RunDir;
use crate::weights;
use anyhow::{Context, Result, bail};
use fovea::detection::BBox;
use fovea::pipeline::clock::Stopwatch;
use fovea::retinanet::Anchors;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tch::{Device, Kind, Tensor};

/// What does not change the result, only how fast it comes.
#[derive(Debug, Clone)]
pub(crate) struct Resources {
    /// Where the network is.
    pub(crate) device: Device,
    /// Type of the arithmetic.
    pub(crate) kind: Kind,
    /// Threads that make batches.
    pub(crate) workers: usize,
    /// Training pictures that are in memory already, as `data::load` gives them for the settings.
    pub(crate) examples: Option<Arc<Vec<Example>>>,
}

/// Losses of one step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Losses {
    /// Classification loss, per anchor on an object.
    pub(crate) cls: f64,
    /// Box loss, per anchor on an object, weighted.
    pub(crate) bbox: f64,
    /// Norm of all gradients together, before clipping.
    pub(crate) norm: f64,
}

/// A loss or the gradients are not finite.
#[derive(Debug, thiserror::Error)]
#[error(
    "training diverged at iteration {iteration}: classification loss {}, box loss {}, gradient norm {}; the last good checkpoint \
     is {}. Set a lower `lr` or `clip` or a longer `warmup` in {} and use --resume",
    losses.cls, losses.bbox, losses.norm, dir.checkpoint().display(), dir.config().display()
)]
pub(crate) struct Diverged {
    /// The first such step.
    pub(crate) iteration: usize,
    losses: Losses,
    dir: RunDir,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All iterations are done.
    Done,
    /// Stopped on request, before this iteration.
    Stopped(usize),
}

/// Trains from scratch, from initial weights, or on from the checkpoint in `dir`. `until` stops early, as `stop` does.
pub(crate) fn fit(
    config: &FitConfig,
    dir: &RunDir,
    resume: bool,
    resources: Resources,
    until: Option<usize>,
    stop: &AtomicBool,
) -> Result<Outcome> {
    tch::manual_seed(i64::try_from(config.seed).unwrap_or(0));
    let spec = &config.model;
    let mut model = Model::new(spec, config.prior, config.seed, resources.device);
    let mut optimizer;
    let mut first = 0;
    if resume {
        optimizer = Optimizer::new(&model, config.rule);
        first = checkpoint::restore(&dir.checkpoint(), &mut model, &mut optimizer)?;
        eprintln!("resuming at iteration {first} of {}", config.iterations);
    } else {
        if let Some(path) = &config.init {
            let loaded = model.load_matching(&weights::read_initial(path)?).with_context(|| path.display().to_string())?;
            eprintln!(
                "{}: {} arrays taken; {} of the network are not in it and {} have another shape there: these start at random",
                path.display(),
                loaded.set,
                loaded.missing,
                loaded.other_shape
            );
        }
        optimizer = Optimizer::new(&model, config.rule);
    }
    let end = until.unwrap_or(config.iterations).min(config.iterations);
    if end < first {
        bail!("{} is at iteration {first} already, beyond {end}; nothing was changed", dir.0.display());
    }
    let val = config.val.as_deref().map(Folder::open).transpose()?;
    let recipe = Arc::new(recipe(config, resources.examples.clone())?);
    let curve = Curve::open(&dir.curve(), resume.then_some(first))?;
    let bar = data::progress(config.iterations, "training");
    bar.set_position(first as u64);
    let mut clock = Stopwatch::start();
    let mut shown = Shown::default();
    let mut batches = Batches::start(&recipe, first, end, resources.workers);
    for iteration in first..end {
        let batch = batches.next();
        let (false, Some(batch)) = (stop.load(Ordering::Relaxed), &batch) else {
            checkpoint::save(dir, &mut model, &mut optimizer, iteration)?;
            curve.plot_or_warn(&dir.plot());
            if batch.is_none() {
                bail!(
                    "a thread that makes batches ended before iteration {iteration}, its message is above; a checkpoint was written"
                );
            }
            return Ok(Outcome::Stopped(iteration));
        };
        let losses = step(config, &mut model, &mut optimizer, batch, iteration, &recipe.anchors, resources.kind)?;
        if !(losses.cls.is_finite() && losses.bbox.is_finite() && losses.norm.is_finite()) {
            return Err(Diverged { iteration, losses, dir: dir.clone() }.into());
        }
        shown.add(losses);
        bar.inc(1);
        let done = iteration + 1;
        if done % 20 == 0 || done == end {
            let rate = (shown.n * config.batch) as f64 / clock.lap().as_secs_f64();
            let mean = shown.take();
            bar.set_message(format!("cls {:.3} box {:.3} norm {:.2} {rate:.1} img/s", mean.cls, mean.bbox, mean.norm));
            curve.append(done, rate_of(config, iteration), mean, rate)?;
            if bar.is_hidden() && done % 100 == 0 {
                eprintln!(
                    "{done}/{} cls {:.3} box {:.3} norm {:.2} {rate:.1} img/s",
                    config.iterations, mean.cls, mean.bbox, mean.norm
                );
            }
        }
        if done % config.checkpoint_every == 0 && done < end {
            checkpoint::save(dir, &mut model, &mut optimizer, done)?;
            curve.plot_or_warn(&dir.plot());
        }
        if config.eval_every > 0 && done % config.eval_every == 0 && done < config.iterations {
            bar.suspend(|| measure(config, val.as_ref(), &mut model, &mut optimizer, done, None))?;
        }
    }
    bar.finish_and_clear();
    checkpoint::save(dir, &mut model, &mut optimizer, end)?;
    curve.plot_or_warn(&dir.plot());
    if end < config.iterations {
        return Ok(Outcome::Stopped(end));
    }
    measure(config, val.as_ref(), &mut model, &mut optimizer, end, Some(dir))?;
    Ok(Outcome::Done)
}

/// Evaluates the averaged weights, if there is validation data.
fn measure(
    config: &FitConfig,
    val: Option<&Folder>,
    model: &mut Model,
    optimizer: &mut Optimizer,
    done: usize,
    dir: Option<&RunDir>,
) -> Result<()> {
    let Some(folder) = val else { return Ok(()) };
    optimizer.swap_average(model);
    let measured = evaluate(model, &config.model, folder, None);
    optimizer.swap_average(model);
    let measured = measured?;
    eprintln!("iteration {done}: {}", summary(&measured));
    if let Some(dir) = dir {
        let path = dir.0.join("eval.json");
        write_atomic(&path, serde_json::to_string_pretty(&measured)?.as_bytes())?;
    }
    Ok(())
}

fn recipe(config: &FitConfig, examples: Option<Arc<Vec<Example>>>) -> Result<Recipe> {
    let spec = &config.model;
    let examples = match examples {
        Some(examples) => examples,
        None => Arc::new(data::load(&Folder::open(&config.data)?, &spec.classes, config.pseudo.as_deref(), config.bands)?),
    };
    if examples.is_empty() {
        bail!("{}: no pictures", config.data.display());
    }
    let manifest = spec.manifest("", "");
    let size = (spec.width, spec.height);
    let anchors = Anchors::new(&spec.anchors, size, &manifest.strides(), &manifest.grids());
    let augment = config.clone();
    Ok(Recipe {
        epoch: repeated(&examples, spec.classes.len(), config.repeat_below, config.seed),
        examples,
        batch: config.batch,
        size,
        anchors: anchors.iter().collect(),
        n_classes: spec.classes.len(),
        matching: config.matching,
        seed: config.seed,
        augment: Box::new(move |iteration| augment.augment(iteration)),
    })
}

fn rate_of(config: &FitConfig, iteration: usize) -> f64 {
    config.lr * config.schedule.factor(iteration, config.iterations, config.warmup)
}

/// One step. Nothing is moved where a loss or the gradients are not finite.
fn step(
    config: &FitConfig,
    model: &mut Model,
    optimizer: &mut Optimizer,
    batch: &Batch,
    iteration: usize,
    anchors: &[BBox],
    kind: Kind,
) -> Result<Losses> {
    let spec = &config.model;
    let device = model.device();
    let (n, classes) = (config.batch as i64, spec.classes.len() as i64);
    let shape = [n, spec.height as i64, spec.width as i64, 3];
    let images = Tensor::from_data_size(&batch.pixels, &shape, Kind::Uint8).to_device(device);
    let outputs = model.forward(&images, Mode { training: true, slope: config.slope(iteration), kind });
    let join = |of: &dyn Fn(&crate::model::LevelOutput) -> Tensor, width: i64| {
        let levels: Vec<Tensor> = outputs.iter().map(|level| of(level).reshape([n, -1, width])).collect();
        Tensor::cat(&levels, 1)
    };
    let logits = join(&|level| level.cls.shallow_clone(), classes);
    let target_shape = [n, anchors.len() as i64, classes];
    let codes = Tensor::from_data_size(&batch.classes, &target_shape, Kind::Uint8).to_device(device);
    let target = codes.eq(i64::from(crate::targets::OBJECT)).to_kind(Kind::Float);
    let weight = codes.ne(i64::from(crate::targets::IGNORED)).to_kind(Kind::Float);
    let n_positive = (batch.positives.len() as f64).max(1.0);
    let (cls_loss, gradient) = config.loss.with_gradient(&logits, &target, &weight, anchors);
    let mut surrogate = with_gradient(&logits, &(gradient / n_positive));
    let mut losses = Losses { cls: f64::try_from(cls_loss)? / n_positive, bbox: 0.0, norm: 0.0 };
    if !batch.positives.is_empty() {
        let places = Tensor::from_slice(&batch.positives).to_device(device);
        let boxes = |values: &[f32]| Tensor::from_slice(values).reshape([-1, 4]).to_device(device);
        let deltas = join(&|level| level.bbox.shallow_clone(), 4).reshape([-1, 4]).index_select(0, &places);
        let loss = box_loss(&deltas, &boxes(&batch.positive_anchors), &boxes(&batch.positive_boxes), config.box_loss)
            * (config.box_weight / n_positive);
        losses.bbox = f64::try_from(&loss)?;
        surrogate += loss;
    }
    if !(losses.cls.is_finite() && losses.bbox.is_finite()) {
        return Ok(losses);
    }
    surrogate.f_backward().context("the backward pass failed")?;
    let rate = Step {
        lr: rate_of(config, iteration),
        backbone: config.backbone_lr,
        weight_decay: config.weight_decay,
        clip: config.clip,
        ema: config.ema,
    };
    losses.norm = optimizer.step(model, &rate)?;
    Ok(losses)
}

/// Mean losses since the last line of the curve.
#[derive(Debug, Default)]
struct Shown {
    n: usize,
    cls: f64,
    bbox: f64,
    norm: f64,
}

impl Shown {
    fn add(&mut self, losses: Losses) {
        self.n += 1;
        self.cls += losses.cls;
        self.bbox += losses.bbox;
        self.norm += losses.norm;
    }

    fn take(&mut self) -> Losses {
        let n = self.n.max(1) as f64;
        let mean = Losses { cls: self.cls / n, bbox: self.bbox / n, norm: self.norm / n };
        *self = Self::default();
        mean
    }
}
