//! A training run on disk: everything a resumed run needs to go on as if it had never stopped.

use crate::model::Model;
use crate::optim::Optimizer;
use crate::run_dir::RunDir;
use crate::weights;
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::path::Path;

/// Writes model, optimiser and iteration, and the averaged weights beside them.
pub(crate) fn save(dir: &RunDir, model: &mut Model, optimizer: &mut Optimizer, iteration: usize) -> Result<()> {
    let mut state = model.weights()?;
    state.extend(optimizer.state()?);
    let texts = HashMap::from([("iteration".to_owned(), iteration.to_string())]);
    weights::write(&dir.checkpoint(), &state, texts.clone())?;
    optimizer.swap_average(model);
    let averaged = model.weights();
    optimizer.swap_average(model);
    weights::write(&dir.weights(), &averaged?, texts)
}

/// Restores what [`save`] wrote; gives the next iteration.
pub(crate) fn restore(path: &Path, model: &mut Model, optimizer: &mut Optimizer) -> Result<usize> {
    let file = weights::read(path)?;
    let iteration = file.texts.get("iteration").and_then(|text| text.parse().ok());
    let iteration = iteration.with_context(|| format!("{} does not say at which iteration it was written", path.display()))?;
    model.load(&file.weights).with_context(|| path.display().to_string())?;
    optimizer.restore(&file.weights, iteration).with_context(|| path.display().to_string())?;
    Ok(iteration)
}
