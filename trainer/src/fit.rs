//! The training loop.

use crate::batches::{Batch, Batches, Recipe, repeated};
use crate::checkpoint::{self, Best};
use crate::config::FitConfig;
use crate::curve::Log;
use crate::data::{self, Example, Folder};
use crate::distill::{Teacher, joined};
use crate::evaluate::{check_classes, evaluate, summary};
use crate::files::write_atomic;
use crate::loss::{Losses, box_loss, with_gradient};
use crate::model::{Mode, Model};
use crate::optim::{Optimizer, Step};
use crate::peers::Peers;
use crate::progress::Progress;
use crate::run_dir::{Origin, RunDir};
use crate::weights;
use anyhow::{Context, Result, bail};
use fovea::detection::BBox;
use fovea::eval::EvalReport;
use fovea::pipeline::clock::Stopwatch;
use fovea::retinanet::Anchors;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
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

/// Where a run begins and what ends it early.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Control<'a> {
    /// Go on from the checkpoint.
    pub(crate) resume: bool,
    /// Go on even with other data.
    pub(crate) other_data: bool,
    /// Stop after this iteration, as `stop` does.
    pub(crate) until: Option<usize>,
    /// Set from outside.
    pub(crate) stop: &'a AtomicBool,
}

/// A loss or the gradients are not finite.
#[derive(Debug, thiserror::Error)]
#[error(
    "training diverged at iteration {iteration}: classification loss {}, box loss {}, distillation {:?}, gradient norm {}; {}",
    losses.cls, losses.bbox, losses.distill, losses.norm, self.remedy()
)]
pub(crate) struct Diverged {
    /// The first such step.
    pub(crate) iteration: usize,
    losses: Losses,
    dir: RunDir,
    /// Whether there is a checkpoint from which steps were sound.
    can_resume: bool,
}

impl Diverged {
    fn remedy(&self) -> String {
        let (checkpoint, config) = (self.dir.checkpoint(), self.dir.config());
        if self.can_resume {
            format!(
                "the last good checkpoint is {}. Set a lower `lr` or `clip` or a longer `warmup` in {} and use --resume",
                checkpoint.display(),
                config.display()
            )
        } else {
            "no checkpoint gives a sound step with these settings. Check the data, or begin anew in another --out with a lower --lr".to_owned()
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All iterations are done.
    Done,
    /// Stopped on request, before this iteration.
    Stopped(usize),
}

/// A run under way.
struct Run<'a> {
    config: &'a FitConfig,
    dir: &'a RunDir,
    kind: Kind,
    model: Model,
    optimizer: Optimizer,
    teacher: Option<Teacher>,
    best: Option<Best>,
    val: Option<Folder>,
    /// Rank 0 reports and writes, the others have no log.
    log: Option<Log>,
    /// Whether no step was made yet from the newest checkpoint.
    is_unproven: bool,
}

/// Trains from scratch, from initial weights, or on from the checkpoint in `dir`.
pub(crate) fn fit(
    config: &FitConfig,
    dir: &RunDir,
    control: Control<'_>,
    resources: &Resources,
    peers: &mut Peers,
) -> Result<Outcome> {
    let Control { resume, other_data, until, stop } = control;
    let mut run = Run::new(config, dir, resources, !resume)?;
    let mut first = 0;
    if resume {
        (first, run.best) = checkpoint::restore(&dir.checkpoint(), &mut run.model, &mut run.optimizer)?;
        run.is_unproven = true;
        say!("resuming at iteration {first} of {}", config.iterations);
    }
    let end = until.unwrap_or(config.iterations).min(config.iterations);
    if end < first {
        bail!("{} is at iteration {first} already, beyond {end}; nothing was changed", dir.0.display());
    }
    run.val = config.val.as_deref().map(Folder::open).transpose()?;
    if let Some(val) = &run.val {
        check_classes(val, &config.model)?;
    }
    let recipe = Arc::new(recipe(config, resources, peers)?);
    let origin = Origin::of(&recipe.examples, if resources.kind == Kind::BFloat16 { "bf16" } else { "f32" });
    if resume {
        origin.check(dir, other_data)?;
    }
    if peers.world > 1 {
        let mut start = Sha256::new();
        start.update(format!("{config:?} {first} {end} {}", origin.data()));
        run.model.weights()?.values().flat_map(|array| &array.data).for_each(|value| start.update(value.to_le_bytes()));
        peers.agree("settings, data and weights to start from", start.finalize().into())?;
    }
    if peers.rank == 0 {
        origin.write(dir)?;
        run.log = Some(Log::open(dir, resume.then_some(first))?);
    }
    let mut progress = Progress::start(config, first, peers.rank == 0);
    let mut batches = Batches::start(&recipe, first, end, resources.workers);
    for iteration in first..end {
        progress.before_wait();
        let batch = batches.next();
        progress.after_wait();
        let is_over = peers.any(stop.load(Ordering::Relaxed) || batch.is_none())?;
        let (false, Some(batch)) = (is_over, &batch) else {
            run.save(iteration)?;
            // Of any process: all of them fail then.
            if peers.any(batch.is_none())? {
                bail!(
                    "a thread that makes batches ended before iteration {iteration}, its message is above; a checkpoint was written"
                );
            }
            return Ok(Outcome::Stopped(iteration));
        };
        let losses = run.step(batch, iteration, &recipe.anchors, peers)?;
        if !losses.is_finite() {
            let can_resume = run.judge_checkpoint(false)?;
            return Err(Diverged { iteration, losses, dir: dir.clone(), can_resume }.into());
        }
        run.judge_checkpoint(true)?;
        let done = iteration + 1;
        progress.add(losses);
        if done % 20 == 0 || done == end {
            let row = progress.row(done, rate_of(config, iteration));
            run.log.as_mut().map_or(Ok(()), |log| log.append(done, &row))?;
        }
        let is_checkpoint_due = done % config.checkpoint_every == 0 && done < end;
        let is_evaluation_due = config.eval_every > 0 && done % config.eval_every == 0 && done < config.iterations;
        if is_checkpoint_due || is_evaluation_due {
            // Measured first: the checkpoint has to know what was, as a run that goes on from it would take a worse network for
            // the best; and a run that is killed while it measures goes on from before, and measures.
            let is_measured = is_evaluation_due && progress.bar.suspend(|| run.measure(done))?.is_some();
            if is_checkpoint_due || is_measured {
                run.save(done)?;
            }
            progress.forget_time();
        }
    }
    progress.bar.finish_and_clear();
    if end < config.iterations {
        run.save(end)?;
        return Ok(Outcome::Stopped(end));
    }
    // Twice, so that a cut while evaluating does not lose the last steps, and the checkpoint knows of the evaluation.
    run.save(end)?;
    if let Some(measured) = run.measure(end)? {
        write_atomic(&dir.0.join("eval.json"), serde_json::to_string_pretty(&measured)?.as_bytes())?;
        run.save(end)?;
    }
    Ok(Outcome::Done)
}

impl<'a> Run<'a> {
    /// A run before its first step: weights at random, or the settings' initial ones.
    fn new(config: &'a FitConfig, dir: &'a RunDir, resources: &Resources, with_init: bool) -> Result<Self> {
        tch::manual_seed(i64::try_from(config.seed).unwrap_or(0));
        let spec = &config.model;
        let mut model = Model::new(spec, config.prior, config.seed, resources.device);
        if let Some(run) = config.qat.as_ref().filter(|_| with_init) {
            crate::qat::start(&mut model, spec, run, &Folder::open(&config.data)?, config.seed)?;
        } else if with_init && let Some(path) = &config.init {
            let loaded = model.load_matching(&weights::read_initial(path)?).with_context(|| path.display().to_string())?;
            say!(
                "{}: {} arrays taken; {} of the network are not in it and {} have another shape there: these start at random",
                path.display(),
                loaded.set,
                loaded.missing,
                loaded.other_shape
            );
        }
        let open = |settings| Teacher::open(settings, spec, resources.device, resources.kind);
        let teacher = config.distill.as_ref().map(open).transpose()?;
        if let Some(teacher) = &teacher {
            teacher.add_adapters(&mut model, config.seed);
        }
        let optimizer = Optimizer::new(&model, config.rule);
        Ok(Self {
            config,
            dir,
            kind: resources.kind,
            model,
            optimizer,
            teacher,
            best: None,
            val: None,
            log: None,
            is_unproven: false,
        })
    }

    /// Writes a checkpoint.
    fn save(&mut self, iteration: usize) -> Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        log.plot_or_warn(&self.dir.plot());
        self.is_unproven = true;
        checkpoint::save(self.dir, &mut self.model, &mut self.optimizer, iteration, self.best)
    }

    /// After a step: if it was the first one from the newest checkpoint, that one is good or not. Gives whether a good one is there.
    fn judge_checkpoint(&mut self, is_sound: bool) -> Result<bool> {
        if self.log.is_none() {
            return Ok(self.dir.checkpoint().exists());
        }
        match (std::mem::take(&mut self.is_unproven), is_sound) {
            (true, true) => checkpoint::approve(self.dir),
            (true, false) if !checkpoint::reject(self.dir)? => return Ok(false),
            (true, false) => {
                // The averaged weights beside it came from the other.
                let (iteration, _) = checkpoint::restore(&self.dir.checkpoint(), &mut self.model, &mut self.optimizer)?;
                checkpoint::save_average(&self.dir.weights(), &mut self.model, &mut self.optimizer, iteration)?;
            }
            (false, _) => {}
        }
        Ok(self.dir.checkpoint().exists())
    }

    /// Evaluates the averaged weights, if there is validation data, and keeps them if they are the best so far.
    fn measure(&mut self, done: usize) -> Result<Option<EvalReport>> {
        let (Some(folder), Some(log)) = (&self.val, &mut self.log) else { return Ok(None) };
        self.optimizer.swap_average(&mut self.model);
        let measured = evaluate(&self.model, &self.config.model, folder, None);
        self.optimizer.swap_average(&mut self.model);
        let measured = measured?;
        say!("iteration {done}: {}", summary(&measured));
        log.append_eval(done, &measured)?;
        let ap = measured.ap.map(|ap| ap as f32);
        if let Some(ap) = ap.filter(|ap| self.best.is_none_or(|best| *ap > best.ap)) {
            checkpoint::save_average(&self.dir.best(), &mut self.model, &mut self.optimizer, done)?;
            self.best = Some(Best { iteration: done, ap });
        }
        Ok(Some(measured))
    }

    /// One step. Nothing is moved where a loss or the gradients are not finite.
    fn step(&mut self, batch: &Batch, iteration: usize, anchors: &[BBox], peers: &mut Peers) -> Result<Losses> {
        let (config, model) = (self.config, &self.model);
        let (device, spec) = (model.device(), &config.model);
        let (height, width, classes) = (spec.height as i64, spec.width as i64, spec.classes.len() as i64);
        let images = Tensor::from_slice(&batch.pixels).reshape([-1, height, width, 3]).to_device(device);
        let mode = Mode { training: true, slope: config.slope(iteration), kind: self.kind };
        let taps = if self.teacher.is_some() { model.graph.pyramid_values() } else { &[] };
        let (heads, pyramid) = model.forward_tapped(&images, mode, taps);
        let (logits, deltas) = joined(&heads, classes);
        let codes = Tensor::from_slice(&batch.classes).reshape(logits.size()).to_device(device);
        let target = codes.eq(i64::from(crate::targets::OBJECT)).to_kind(Kind::Float);
        let weight = codes.ne(i64::from(crate::targets::IGNORED)).to_kind(Kind::Float);
        let (cls_loss, gradient) = config.loss.with_gradient(&logits, &target, &weight, anchors);
        let places = Tensor::from_slice(&batch.positives).to_device(device);
        let boxes = |values: &[f32]| Tensor::from_slice(values).reshape([-1, 4]).to_device(device);
        let on_object = deltas.reshape([-1, 4]).index_select(0, &places);
        let loss = box_loss(&on_object, &boxes(&batch.positive_anchors), &boxes(&batch.positive_boxes), config.box_loss);
        let compare = |teacher: &Teacher| teacher.compare(&images, model, &logits, &deltas, &pyramid);
        let apart = self.teacher.as_ref().map(compare).transpose()?;

        // What losses are divided by counts the batches of all processes.
        let mut sums = [batch.positives.len() as f32, f32::try_from(cls_loss)?, f32::try_from(&loss)?, 0.0, 0.0, 0.0, 0.0];
        if let Some(apart) = &apart {
            let features = f32::try_from(&apart.features)? / peers.world as f32;
            sums[3..].copy_from_slice(&[apart.sure as f32, apart.logits as f32, f32::try_from(&apart.boxes)?, features]);
        }
        peers.sum(&mut sums)?;
        let [n_positive, cls_sum, box_sum, sure, soft @ ..] = sums.map(f64::from);
        let (n_positive, sure) = (n_positive.max(1.0), sure.max(1.0));
        let mut losses =
            Losses { cls: cls_sum / n_positive, bbox: box_sum * config.box_weight / n_positive, ..Losses::default() };
        let mut gradient = gradient / n_positive;
        let mut surrogate = loss * (config.box_weight / n_positive);
        if let (Some(apart), Some(settings)) = (apart, &config.distill) {
            let weights = [settings.logits / sure, settings.boxes / sure, settings.features];
            losses.distill = std::array::from_fn(|part| soft[part] * weights[part]);
            gradient += apart.gradient * weights[0];
            surrogate += apart.boxes * weights[1] + apart.features * (weights[2] / peers.world as f64);
        }
        if !losses.is_finite() {
            return Ok(losses);
        }
        surrogate += with_gradient(&logits, &gradient);
        surrogate.f_backward().context("the backward pass failed")?;
        let rate = Step {
            lr: rate_of(config, iteration),
            backbone: config.backbone_lr,
            weight_decay: config.weight_decay,
            clip: config.clip,
            ema: config.ema,
        };
        losses.norm = self.optimizer.step(&mut self.model, &rate, peers)?;
        Ok(losses)
    }
}

/// What batches of a run are made of.
pub(crate) fn recipe(config: &FitConfig, resources: &Resources, peers: &Peers) -> Result<Recipe> {
    let spec = &config.model;
    let examples = match &resources.examples {
        Some(examples) => Arc::clone(examples),
        None => Arc::new(data::load(&Folder::open(&config.data)?, spec, config.pseudo.as_deref(), config.bands)?),
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
        share: peers.share(config.batch),
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

/// The same step on the same batch, for measurements.
pub(crate) struct Repeated<'a> {
    run: Run<'a>,
    recipe: Recipe,
    batch: Batch,
}

impl<'a> Repeated<'a> {
    /// Gets ready; says how long a batch takes to make.
    pub(crate) fn new(config: &'a FitConfig, dir: &'a RunDir, resources: &Resources) -> Result<(Self, Duration)> {
        let run = Run::new(config, dir, resources, true)?;
        let recipe = recipe(config, resources, &Peers::alone())?;
        let mut clock = Stopwatch::start();
        let batch = recipe.make(0);
        Ok((Self { run, recipe, batch }, clock.lap()))
    }

    /// Parameters that are learnt.
    pub(crate) fn n_parameters(&self) -> usize {
        self.run.model.params.values().map(|param| param.tensor.numel()).sum()
    }

    /// One step.
    pub(crate) fn step(&mut self) -> Result<Losses> {
        self.run.step(&self.batch, 0, &self.recipe.anchors, &mut Peers::alone())
    }
}
