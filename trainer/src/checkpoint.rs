//! A training run on disk: everything a resumed run needs to go on as if it had never stopped.

use crate::distill;
use crate::model::Model;
use crate::optim::Optimizer;
use crate::run_dir::RunDir;
use crate::weights::{self, Array};
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::path::Path;

/// The best evaluation so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Best {
    /// When.
    pub(crate) iteration: usize,
    /// COCO AP of the averaged weights.
    pub(crate) ap: f32,
}

/// Name of the array that holds [`Best`].
const BEST: &str = "best";

/// Writes model, optimiser and iteration, and the averaged weights beside them.
pub(crate) fn save(
    dir: &RunDir,
    model: &mut Model,
    optimizer: &mut Optimizer,
    iteration: usize,
    best: Option<Best>,
) -> Result<()> {
    let mut state = model.weights()?;
    state.extend(optimizer.state()?);
    if let Some(Best { iteration, ap }) = best {
        state.insert(BEST.into(), Array { shape: vec![2], data: vec![iteration as f32, ap] });
    }
    keep_before(dir)?;
    weights::write(&dir.checkpoint(), &state, HashMap::from([("iteration".to_owned(), iteration.to_string())]))?;
    save_average(&dir.weights(), model, optimizer, iteration)
}

/// Keeps the checkpoint that is about to be replaced, unless one is kept already: then the newest was not proven.
fn keep_before(dir: &RunDir) -> Result<()> {
    let (newest, before) = (dir.checkpoint(), dir.checkpoint_before());
    if !newest.exists() || before.exists() {
        return Ok(());
    }
    // Not every file system has hard links.
    std::fs::hard_link(&newest, &before)
        .or_else(|_| std::fs::copy(&newest, &before).map(drop))
        .with_context(|| format!("cannot write {}", before.display()))
}

/// A step from the newest checkpoint was sound: the one before is not needed any more.
pub(crate) fn approve(dir: &RunDir) {
    // What cannot be removed is a file too many.
    let _ = std::fs::remove_file(dir.checkpoint_before());
}

/// The first step from the newest checkpoint was not sound: the one before takes its place. False where there is none: the newest
/// was the first.
pub(crate) fn reject(dir: &RunDir) -> Result<bool> {
    let before = dir.checkpoint_before();
    if !before.exists() {
        return Ok(false);
    }
    std::fs::rename(&before, dir.checkpoint()).with_context(|| format!("cannot put {} back", before.display()))?;
    Ok(true)
}

/// Writes the averaged weights.
pub(crate) fn save_average(path: &Path, model: &mut Model, optimizer: &mut Optimizer, iteration: usize) -> Result<()> {
    optimizer.swap_average(model);
    let averaged = model.weights();
    optimizer.swap_average(model);
    let mut averaged = averaged?;
    averaged.retain(|name, _| !name.starts_with(distill::PREFIX));
    weights::write(path, &averaged, HashMap::from([("iteration".to_owned(), iteration.to_string())]))
}

/// Restores what [`save`] wrote; gives the next iteration and the best evaluation.
pub(crate) fn restore(path: &Path, model: &mut Model, optimizer: &mut Optimizer) -> Result<(usize, Option<Best>)> {
    let file = weights::read(path)?;
    let iteration = file.texts.get("iteration").and_then(|text| text.parse().ok());
    let iteration = iteration.with_context(|| format!("{} does not say at which iteration it was written", path.display()))?;
    model.load(&file.weights).with_context(|| path.display().to_string())?;
    optimizer.restore(&file.weights, iteration).with_context(|| path.display().to_string())?;
    let best = file.weights.get(BEST).filter(|array| array.data.len() == 2);
    Ok((iteration, best.map(|array| Best { iteration: array.data[0] as usize, ap: array.data[1] })))
}
