//! `fovea-train tune`: which learning rate, augmentation and input size suit a data set, under a budget.
//!
//! Successive halving (Jamieson, Talwalkar, arXiv 1502.07943; a third goes on, as in Hyperband, arXiv 1603.06560): all trials
//! get a few steps of the same schedule, the best third of them three times as many, until one has them all. A trial is a run
//! folder that `fit` makes, so what was trained is not trained again: the same command goes on where it stopped.

use crate::config::FitConfig;
use crate::curve::last_speed;
use crate::files::write_atomic;
use crate::request::Request;
use crate::run_dir::RunDir;
use anyhow::{Context, Result, anyhow, bail};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// One of so many trials goes on.
const KEPT: usize = 3;
/// Steps that the time of a step is measured on, after as many to warm up.
const MEASURED: usize = 10;
/// Options of `fit` that say where to compute, not what.
const MACHINE: [&str; 4] = ["--device", "--threads", "--precision", "--workers"];

/// Arguments of `fovea-train tune`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  fovea-train tune --minutes 120 --out tuned -- --data mydata/train --val mydata/val --init weights.safetensors

What stands behind -- are options of `fit`: they make the first trial, the others change it. Writes tune.md and a run folder \
for every trial into --out; the same command goes on where it stopped.")]
pub(crate) struct Args {
    /// Folder of the trials and of the table.
    #[arg(long)]
    out: PathBuf,
    /// Minutes of training, all trials together: how many steps that is, is measured.
    #[arg(long, required_unless_present = "iterations")]
    minutes: Option<f64>,
    /// Steps of the best trial, instead of --minutes.
    #[arg(long, conflicts_with = "minutes")]
    iterations: Option<usize>,
    /// Trials: 9 and 27 divide best.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(2..=243))]
    trials: u16,
    /// Input sizes to choose from, besides that of the first trial, for example 416x256,512x288; without it the size stays.
    #[arg(long, value_delimiter = ',', value_parser = super::eval::size)]
    sizes: Vec<(usize, usize)>,
    /// Seed of the trials.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Options of `fit`; its --iterations is replaced by the steps that a trial gets.
    #[arg(last = true, required = true, value_name = "FIT")]
    fit: Vec<String>,
}

/// What is known of the trials: `tune.json`.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    /// The request that the trials belong to.
    request: String,
    /// Steps of the best trial.
    iterations: usize,
    trials: Vec<Trial>,
}

/// A variant of the first trial.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Trial {
    /// Folder, in the folder of all.
    name: String,
    /// Steps that are done; of a trial that diverged, those that it was to do.
    steps: usize,
    /// AP and AP50 by round, where it took part.
    rounds: Vec<Option<(f64, f64)>>,
    /// Round in which it diverged: it takes no further part.
    #[serde(default)]
    diverged: Option<usize>,
}

impl Trial {
    fn found(&self, round: usize) -> Option<(f64, f64)> {
        self.rounds.get(round).copied().flatten()
    }

    /// The last of the first `rounds` rounds with a result, and the result.
    fn reached(&self, rounds: usize) -> Option<(usize, (f64, f64))> {
        (0..rounds.min(self.rounds.len())).rev().find_map(|round| Some((round, self.rounds[round]?)))
    }
}

/// Trials by what the first `rounds` rounds say: who came further, then the better one. Without those that diverged in them.
fn ranked(trials: &[Trial], rounds: usize) -> Vec<usize> {
    let mut order: Vec<usize> =
        (0..trials.len()).filter(|&idx| trials[idx].diverged.is_none_or(|round| round >= rounds)).collect();
    let key = |idx: usize| trials[idx].reached(rounds).map_or((0, -1.0), |(round, found)| (round, found.0));
    order.sort_by(|&a, &b| key(b).0.cmp(&key(a).0).then(key(b).1.total_cmp(&key(a).1)).then(a.cmp(&b)));
    order
}

/// Trials that take part and steps that each of them has then, round by round.
fn rounds(trials: usize, iterations: usize) -> Vec<(usize, usize)> {
    let n_rounds = (1..).take_while(|&round| KEPT.pow(round) <= trials).count() as u32 + 1;
    (0..n_rounds).map(|round| ((trials / KEPT.pow(round)).max(1), (iterations / KEPT.pow(n_rounds - 1 - round)).max(1))).collect()
}

/// Steps that all trials make together.
fn total_steps(rounds: &[(usize, usize)]) -> usize {
    let before = std::iter::once(0).chain(rounds.iter().map(|round| round.1));
    rounds.iter().zip(before).map(|((trials, steps), before)| trials * (steps - before)).sum()
}

/// Steps of the best trial where all trials together make `total` of them.
fn steps_within(total: f64, trials: usize) -> usize {
    let per_step = total_steps(&rounds(trials, 1000)) as f64 / 1000.0;
    (total / per_step) as usize
}

/// The first trial as it is, then random ones: learning rate within a factor of 4, more or less augmentation, one of the sizes.
fn variants(base: &FitConfig, trials: usize, sizes: &[(usize, usize)], seed: u64) -> Vec<FitConfig> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut all = vec![base.clone()];
    while all.len() < trials {
        let mut config = base.clone();
        config.lr = base.lr * rng.random_range(-2.0..2.0_f64).exp2();
        let given = base.augment;
        // Half, as given, or more: of how far pictures are changed and of how often.
        let strength = [0.5, 1.0, 1.4][rng.random_range(0..3)];
        let often = |probability: f32| (probability * strength).min(1.0);
        config.augment.scale = given.scale.map(|scale| scale.powf(strength));
        config.augment.color = often(given.color);
        config.augment.mosaic = often(given.mosaic);
        let degraded = [0.0, 1.0, 2.0][rng.random_range(0..3)];
        for (value, given) in [
            (&mut config.augment.night, given.night),
            (&mut config.augment.blur, given.blur),
            (&mut config.augment.noise, given.noise),
            (&mut config.augment.jpeg, given.jpeg),
        ] {
            *value = (given * degraded).min(1.0);
        }
        let choice = rng.random_range(0..=sizes.len());
        if let Some(&(width, height)) = sizes.get(choice) {
            (config.model.width, config.model.height) = (width, height);
        }
        all.push(config);
    }
    all
}

impl Args {
    /// Searches.
    pub(crate) fn run(self) -> Result<()> {
        std::fs::create_dir_all(&self.out).with_context(|| format!("cannot make the folder {}", self.out.display()))?;
        let mut state = self.state()?;
        let plan = rounds(state.trials.len(), state.iterations);
        for (round, &(n_trials, steps)) in plan.iter().enumerate() {
            // The best of the rounds before; for one that diverges, the next takes part.
            let mut n_measured = 0;
            for idx in ranked(&state.trials, round) {
                if n_measured == n_trials {
                    break;
                }
                if state.trials[idx].diverged == Some(round) {
                    continue;
                }
                n_measured += 1;
                if state.trials[idx].found(round).is_some() {
                    continue;
                }
                let trial = state.trials[idx].clone();
                say!("round {} of {}, trial {n_measured} of {n_trials}: {}", round + 1, plan.len(), trial.name);
                if trial.steps < steps {
                    let is_whole = self.train(&trial, steps)?;
                    state.trials[idx].steps = steps;
                    state.trials[idx].diverged = (!is_whole).then_some(round);
                    self.write(&state)?;
                    if !is_whole {
                        say!("trial {} diverged: it is left out", trial.name);
                        n_measured -= 1;
                        continue;
                    }
                }
                let found = self.measure(&trial)?;
                state.trials[idx].rounds.resize(round, None);
                state.trials[idx].rounds.push(Some(found));
                self.write(&state)?;
            }
        }
        if state.trials.iter().all(|trial| trial.diverged.is_some()) {
            bail!("every trial diverged; give a lower --lr behind -- and another --out");
        }
        let table = self.table(&state)?;
        write_atomic(&self.out.join("tune.md"), table.as_bytes())?;
        println!("{table}");
        Ok(())
    }

    /// What is known, or the trials as they begin.
    fn state(&self) -> Result<State> {
        let request = format!(
            "{:?} {:?} {} {:?} {} {}",
            self.minutes,
            self.iterations,
            self.trials,
            self.sizes,
            self.seed,
            self.fit.join(" ")
        );
        let path = self.out.join("tune.json");
        if let Ok(text) = std::fs::read_to_string(&path) {
            let state: State = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
            if state.request != request {
                return Err(Request(format!("{} belongs to another search; use another --out", path.display())).into());
            }
            return Ok(state);
        }
        if !self.fit.iter().any(|word| ["--val", "--config"].contains(&word.split('=').next().unwrap_or_default())) {
            return Err(Request("tune needs --val behind --: trials are compared on it".into()).into());
        }
        // A short run writes the settings that `fit` makes of its options, and shows how long a step takes.
        let probe = RunDir(self.out.join("probe"));
        std::fs::remove_dir_all(&probe.0).ok();
        let until = |steps: usize| ["--until".to_owned(), steps.to_string()];
        run(["fit".to_owned(), "--out".to_owned(), text(&probe.0)].into_iter().chain(self.fit.clone()).chain(until(MEASURED)))?;
        let again = ["fit".to_owned(), "--resume".to_owned(), "--out".to_owned(), text(&probe.0)];
        run(again.into_iter().chain(self.machine(&MACHINE)).chain(until(3 * MEASURED)))?;
        let mut base = FitConfig::read(&probe.config())?;
        if base.val.is_none() {
            return Err(Request("tune needs --val behind --: trials are compared on it".into()).into());
        }
        // Larger inputs take longer.
        let area = |config: &FitConfig| config.model.width as f64 * config.model.height as f64;
        let trials = variants(&base, usize::from(self.trials), &self.sizes, self.seed);
        let slower = trials.iter().map(area).sum::<f64>() / (trials.len() as f64 * area(&base));
        let seconds = base.batch as f64 / last_speed(&probe.curve())? * slower;
        let iterations = match (self.minutes, self.iterations) {
            (Some(minutes), _) => steps_within(60.0 * minutes / seconds, usize::from(self.trials)),
            (None, given) => given.unwrap_or_default(),
        };
        if iterations < 3 * MEASURED {
            bail!(
                "{iterations} steps for the best trial are too few (a step takes {seconds:.2} s); give more --minutes or fewer --trials"
            );
        }
        base.iterations = iterations;
        // The first round is to see the highest learning rate.
        base.warmup = base.warmup.min(iterations / 30);
        base.eval_every = 0;
        let mut trials = Vec::new();
        for (number, config) in (1..).zip(variants(&base, usize::from(self.trials), &self.sizes, self.seed)) {
            config.check().map_err(|error| Request(format!("{error:#}")))?;
            let name = number.to_string();
            config.write(&self.settings(&name))?;
            trials.push(Trial { name, steps: 0, rounds: Vec::new(), diverged: None });
        }
        std::fs::remove_dir_all(&probe.0).ok();
        let state = State { request, iterations, trials };
        self.write(&state)?;
        Ok(state)
    }

    fn settings(&self, name: &str) -> PathBuf {
        self.out.join(format!("{name}.toml"))
    }

    fn write(&self, state: &State) -> Result<()> {
        write_atomic(&self.out.join("tune.json"), serde_json::to_string_pretty(state)?.as_bytes())
    }

    /// Those of the options behind `--` that say where to compute, not what, of these names.
    fn machine(&self, names: &[&str]) -> Vec<String> {
        let mut kept = Vec::new();
        for (at, word) in self.fit.iter().enumerate() {
            let (name, value) = word.split_once('=').map_or((word.as_str(), self.fit.get(at + 1)), |(name, _)| (name, None));
            if names.contains(&name) {
                kept.push(word.clone());
                kept.extend(value.cloned());
            }
        }
        kept
    }

    /// Trains a trial up to so many steps; false if it diverged.
    fn train(&self, trial: &Trial, steps: usize) -> Result<bool> {
        let dir = RunDir(self.out.join(&trial.name));
        let mut words = vec!["fit".to_owned(), "--out".to_owned(), text(&dir.0)];
        if dir.checkpoint().exists() {
            words.push("--resume".to_owned());
        } else {
            words.extend(["--config".to_owned(), text(&self.settings(&trial.name))]);
        }
        words.extend(self.machine(&MACHINE));
        words.extend(["--until".to_owned(), steps.to_string()]);
        let status = start(&words)?;
        if status.code() == Some(i32::from(crate::DIVERGED)) {
            return Ok(false);
        }
        succeeded(&words, status).map(|()| true)
    }

    /// AP and AP50 on the validation data.
    fn measure(&self, trial: &Trial) -> Result<(f64, f64)> {
        let config = FitConfig::read(&self.settings(&trial.name))?;
        let val = config.val.ok_or_else(|| anyhow!("{}: no `val`", trial.name))?;
        let json = self.out.join(format!("{}.json", trial.name));
        let run_dir = text(&self.out.join(&trial.name));
        let words = ["eval", "--run", &run_dir, "--data", &text(&val), "--json", &text(&json)].map(str::to_owned);
        run(words.into_iter().chain(self.machine(&["--device", "--threads"])))?;
        let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&json)?)?;
        let value = |key: &str| {
            report[key]
                .as_f64()
                .ok_or_else(|| anyhow!("{}: no picture has a completely labelled class of the network", val.display()))
        };
        Ok((value("ap")?, value("ap50")?))
    }

    /// The trials, best first.
    fn table(&self, state: &State) -> Result<String> {
        let fallen = state.trials.iter().filter(|trial| trial.diverged.is_some());
        let whole = ranked(&state.trials, usize::MAX).into_iter().map(|idx| &state.trials[idx]);
        let order: Vec<&Trial> = whole.chain(fallen).collect();
        let mut table = format!(
            "# Tuning\n\nSuccessive halving: {} trials, {} steps for the best. `fovea-train fit {}`\n\n\
             | trial | steps | AP | AP50 | learning rate | scale | mosaic | night, blur, noise, jpeg | input |\n|---|---|---|---|---|---|---|---|---|\n",
            state.trials.len(),
            state.iterations,
            self.fit.join(" ")
        );
        for trial in &order {
            let config = FitConfig::read(&self.settings(&trial.name))?;
            let reached = match trial.reached(usize::MAX) {
                _ if trial.diverged.is_some() => "diverged | –".to_owned(),
                Some((_, (ap, ap50))) => format!("{:.1} | {:.1}", 100.0 * ap, 100.0 * ap50),
                None => "– | –".to_owned(),
            };
            let a = config.augment;
            let _ = writeln!(
                table,
                "| {} | {} | {reached} | {:.2e} | {:.2}–{:.2} | {:.2} | {:.2}, {:.2}, {:.2}, {:.2} | {}x{} |",
                trial.name,
                trial.steps,
                config.lr,
                a.scale[0],
                a.scale[1],
                a.mosaic,
                a.night,
                a.blur,
                a.noise,
                a.jpeg,
                config.model.width,
                config.model.height
            );
        }
        let best = order.first().map_or_else(PathBuf::new, |trial| self.settings(&trial.name));
        let _ = writeln!(
            table,
            "\nThe best trial's settings, for a longer run: `fovea-train fit --config {} --iterations N --out DIR`.",
            best.display()
        );
        Ok(table)
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Runs this program with other arguments; what it prints is seen.
fn run(words: impl IntoIterator<Item = String>) -> Result<()> {
    let words: Vec<String> = words.into_iter().collect();
    succeeded(&words, start(&words)?)
}

fn start(words: &[String]) -> Result<ExitStatus> {
    Command::new(std::env::current_exe()?).args(words).status().context("cannot start fovea-train")
}

fn succeeded(words: &[String], status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("fovea-train {} failed ({status})", words.join(" "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_came_further_goes_first_and_who_diverged_not_at_all() {
        let trial = |found: &[Option<f64>], diverged| Trial {
            name: String::new(),
            steps: 10,
            rounds: found.iter().map(|ap| ap.map(|ap| (ap, ap))).collect(),
            diverged,
        };
        let trials = [
            trial(&[Some(0.9)], Some(1)), // the best of the first round, then it fell
            trial(&[Some(0.2)], None),
            trial(&[], Some(0)),
            trial(&[Some(0.5), Some(0.4)], None),
            trial(&[Some(0.3), Some(0.6)], None),
            trial(&[Some(0.1), None, Some(0.3)], None), // takes the place of others
        ];
        assert_eq!(ranked(&trials, 0), [0, 1, 2, 3, 4, 5]);
        assert_eq!(ranked(&trials, 1), [0, 3, 4, 1, 5]);
        assert_eq!(ranked(&trials, 2), [4, 3, 1, 5]);
        assert_eq!(ranked(&trials, usize::MAX), [5, 4, 3, 1]);
    }

    #[test]
    fn a_third_goes_on_with_three_times_the_steps() {
        for (trials, iterations, wanted) in [
            (9, 900, vec![(9, 100), (3, 300), (1, 900)]),
            (2, 90, vec![(2, 90)]),
            (4, 90, vec![(4, 30), (1, 90)]),
            (27, 2, vec![(27, 1), (9, 1), (3, 1), (1, 2)]),
        ] {
            assert_eq!(rounds(trials, iterations), wanted, "{trials} trials");
        }
        assert_eq!(total_steps(&rounds(9, 900)), 9 * 100 + 3 * 200 + 600);
        // Two hours at 1.2 s a step are spent, but for a few seconds.
        for trials in [2, 4, 9, 27] {
            let steps = steps_within(6000.0, trials);
            let spent = total_steps(&rounds(trials, steps));
            assert!((5900..=6010).contains(&spent), "{trials} trials: {steps} steps for the best, {spent} in all");
        }
    }
}
