//! What the programs that peers are measured beside have in common: the kernels that are asked for, and the protocol.

use fovea::kernels::{Isa, Kernels};
use fovea::pipeline::clock::{Stopwatch, process_cpu_time};
use std::error::Error;
use std::io::{BufRead, Write};
use std::time::Duration;

/// The kernels of the instruction set with this name; without a name the best that are there.
///
/// # Errors
/// They are not there.
pub(crate) fn kernels(name: Option<&String>) -> Result<Kernels, Box<dyn Error>> {
    let Some(name) = name else { return Ok(Kernels::default()) };
    let isa = Isa::available().into_iter().find(|isa| isa.name() == name);
    Ok(isa.and_then(Kernels::new).ok_or_else(|| format!("this CPU or this build has no kernels {name}"))?)
}

/// Prints `ready`, then for every line `<seconds>` on stdin `{"wall":ms,"cpu":ms,"n":count}`: the least of each over as many
/// runs of `work` as fit in.
///
/// # Errors
/// A line that is not a number; a closed stdout.
pub(crate) fn serve(ready: &serde_json::Value, mut work: impl FnMut()) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{ready}")?;
    for line in std::io::stdin().lock().lines() {
        let time = Duration::try_from_secs_f64(line?.trim().parse()?)?;
        let (mut wall, mut cpu, mut spent, mut n) = (Duration::MAX, Duration::MAX, Duration::ZERO, 0);
        while spent < time {
            let (before, mut stopwatch) = (process_cpu_time(), Stopwatch::start());
            work();
            let lap = stopwatch.lap();
            (wall, cpu) = (wall.min(lap), cpu.min(process_cpu_time().saturating_sub(before)));
            (spent, n) = (spent + lap, n + 1);
        }
        let ms = |time: Duration| 1e3 * time.as_secs_f64();
        writeln!(out, "{}", serde_json::json!({ "wall": ms(wall), "cpu": ms(cpu), "n": n }))?;
        out.flush()?;
    }
    Ok(())
}
