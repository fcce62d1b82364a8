//! `fovea-train bench`.

use super::fit::Machine;
use crate::config::FitConfig;
use crate::fit::Repeated;
use crate::run_dir::RunDir;
use anyhow::{Context, Result};
use fovea::pipeline::clock::Stopwatch;
use std::io::BufRead;
use std::path::PathBuf;

/// Arguments of `fovea-train bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  fovea-train bench --config runs/first/fit.toml --precision bf16 --threads 2

Repeats the training step on one batch and says how fast batches are made. Beside PyTorch: trainer/benches/torch_loop.py.")]
pub(crate) struct Args {
    /// Settings: fit.toml of a run.
    #[arg(long)]
    config: PathBuf,
    /// Steps that are timed.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    #[command(flatten)]
    machine: Machine,
    /// Answer every line `<steps>` on stdin with `{"wall":seconds,"cpu":seconds}`.
    #[arg(long)]
    worker: bool,
}

impl Args {
    /// Measures.
    pub(crate) fn run(self) -> Result<()> {
        let resources = self.machine.resources()?;
        let config = FitConfig::read(&self.config)?;
        // Nothing is written.
        let dir = RunDir(PathBuf::new());
        let (mut repeated, making) = Repeated::new(&config, &dir, &resources)?;
        if self.worker {
            println!("{{\"ready\":1,\"parameters\":{}}}", repeated.n_parameters());
            for line in std::io::stdin().lock().lines() {
                let line = line?;
                let steps: usize = line.trim().parse().with_context(|| format!("{line:?}: expected a number of steps"))?;
                let (wall, cpu) = timed(steps, &mut repeated)?;
                println!("{{\"wall\":{wall},\"cpu\":{cpu}}}");
            }
            return Ok(());
        }
        // The first step allocates and chooses kernels.
        repeated.step()?;
        let mut times = (0..self.steps.max(1)).map(|_| Ok(timed(1, &mut repeated)?.0)).collect::<Result<Vec<f64>>>()?;
        times.sort_by(f64::total_cmp);
        let (step, batch) = (config.batch as f64 / times[times.len() / 2], config.batch as f64 / making.as_secs_f64());
        println!("steps: {step:.1} pictures a second, {:?} on {:?}, median of {}", resources.kind, resources.device, times.len());
        println!("batches: {batch:.1} pictures a second and worker; --workers {:.0} keep up", (step / batch).ceil().max(1.0));
        Ok(())
    }
}

/// Wall and CPU time of some steps, seconds.
fn timed(steps: usize, repeated: &mut Repeated<'_>) -> Result<(f64, f64)> {
    let mut clock = Stopwatch::start();
    let before = cpu_seconds();
    for _ in 0..steps {
        repeated.step()?;
    }
    Ok((clock.lap().as_secs_f64(), cpu_seconds() - before))
}

/// CPU time of all threads of this process so far; 0 where the system has no `/proc`.
fn cpu_seconds() -> f64 {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return 0.0 };
    let of = |task: std::fs::DirEntry| -> Option<f64> {
        std::fs::read_to_string(task.path().join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    tasks.flatten().filter_map(of).sum::<f64>() / 1e9
}
