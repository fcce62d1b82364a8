//! `fovea bench --model-only`: the speed of a network alone, without pictures around it.

use super::Failure;
use super::model_file::{Loaded, ModelFile};
use super::output::{ResultFile, keep_apart, model_files, write_report};
use anyhow::Context;
use fovea::executor::{LayerInfo, LoadOptions};
use fovea::kernels::Kernels;
use fovea::pipeline::clock::{Stopwatch, process_cpu_time};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Duration;

/// What `fovea bench --model-only` takes.
#[derive(Debug)]
pub(crate) struct ModelArgs {
    /// Model folder, or a bare .onnx file (its input is random then as well).
    pub(crate) model: PathBuf,
    /// Threads that share the rows of a layer; 0: as many as there are processors.
    pub(crate) threads: usize,
    /// How long to measure.
    pub(crate) seconds: Duration,
    /// Where the result goes as JSON.
    pub(crate) json: Option<PathBuf>,
    /// Bytes `[H, W, C]` in and quantised values out, instead of f32 `[C, H, W]` in and out.
    pub(crate) native_io: bool,
    /// Speak the protocol of a benchmark worker on stdin and stdout.
    pub(crate) worker: bool,
    /// Accept a network that runs in float.
    pub(crate) allow_float: bool,
    /// Print every layer instead of the slowest.
    pub(crate) all_layers: bool,
    /// Run a quantised network by the graph engine's own operators.
    pub(crate) force_float: bool,
}

/// The result, as `--json` writes it.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    cpu_ms_min: f64,
    wall_ms: Quantiles,
    frames: usize,
    macs: usize,
    threads: usize,
    isa: &'static str,
    native_io: bool,
    /// What one thread of this machine reaches in registers, with the kernels' own instruction; 0 where it is not known.
    peak_gmacs_per_s: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ops: Vec<OpTime>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers: Vec<LayerTime>,
}

#[derive(Debug, Serialize)]
struct Quantiles {
    min: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

/// Time of one layer: the least of all runs.
#[derive(Debug, Clone, Serialize)]
struct LayerTime {
    name: String,
    op: &'static str,
    kernel: String,
    /// Rows, columns, channels of its output.
    output: [usize; 3],
    macs: usize,
    ms: f64,
    gmacs_per_s: f64,
    /// Share of what all threads together could reach, in percent.
    peak_percent: f64,
}

/// Time of one kind of operator in one run: the sum of its layers.
#[derive(Debug, Serialize)]
struct OpTime {
    op: &'static str,
    count: usize,
    ms: f64,
}

/// Measures the network.
pub(crate) fn run(args: &ModelArgs) -> Result<(), Failure> {
    keep_apart(model_files(&args.model).iter().map(PathBuf::as_path), args.json.as_deref()).map_err(Failure::request)?;
    let json = args.json.as_deref().map(ResultFile::open).transpose()?;
    let threads = match args.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let file = ModelFile::read(&args.model)?;
    let loaded = file.load(&LoadOptions {
        threads,
        allow_float: args.allow_float,
        force_float: args.force_float,
        ..LoadOptions::default()
    })?;
    let mut bench = Bench::new(loaded, args.native_io)?;
    bench.once()?;
    bench.once()?;
    if args.worker {
        return worker(&mut bench);
    }
    let times = bench.measure(args.seconds)?;
    // Float networks are the graph engine's: its own kernels, one thread.
    let is_float = bench.loaded.network().input_params().is_none();
    let (threads, isa) = if is_float { (1, "tract") } else { (threads, super::effective_isa().name()) };
    let peak = if is_float { 0.0 } else { measure_peak() };
    let layers = bench.profile(peak * count_as_f64(threads))?;
    let census = bench.loaded.network().census();
    let report = Report {
        model: file.name(),
        cpu_ms_min: ms(times.cpu_min),
        wall_ms: times.quantiles(),
        frames: times.walls.len(),
        macs: census.ops.iter().map(|count| count.macs).sum(),
        threads,
        isa,
        native_io: args.native_io,
        peak_gmacs_per_s: peak,
        ops: by_operator(&layers),
        layers,
    };
    write_report(json, &report, &table(&report, args.all_layers))
}

/// One network and one input.
#[derive(Debug)]
struct Bench {
    loaded: Loaded,
    reals: Vec<f32>,
    bytes: Option<Vec<u8>>,
}

/// What a measurement gave.
#[derive(Debug)]
struct Times {
    cpu_min: Duration,
    walls: Vec<Duration>,
}

impl Times {
    fn quantiles(&self) -> Quantiles {
        let mut sorted = self.walls.clone();
        sorted.sort_unstable();
        let at = |per_mille: usize| {
            let rank = (sorted.len() * per_mille).div_ceil(1000).max(1) - 1;
            ms(sorted.get(rank).copied().unwrap_or_default())
        };
        Quantiles { min: at(0), p50: at(500), p90: at(900), p99: at(990), max: at(1000) }
    }
}

impl Bench {
    fn new(loaded: Loaded, native_io: bool) -> Result<Self, Failure> {
        let network = loaded.network();
        if native_io && network.input_params().is_none() {
            return Err(Failure::request(anyhow::anyhow!("--native-io needs a quantised network; this one runs in float")));
        }
        // Blocks of 16 x 16 equal pixels: like a picture rather than noise, and the same on every machine.
        let shape = network.input_shape();
        let mut state = 0x9E37_79B9_u32;
        let mut blocks = Vec::new();
        let (columns, rows) = (shape.w.div_ceil(16), shape.h.div_ceil(16));
        for _ in 0..columns * rows * shape.c {
            // xorshift32 (Marsaglia 2003).
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            blocks.push((state >> 24).to_le_bytes()[0]);
        }
        let block = |c: usize, y: usize, x: usize| blocks[(c * rows + y / 16) * columns + x / 16];
        let (h, w, c) = (shape.h, shape.w, shape.c);
        let planes = (0..c).flat_map(|c| (0..h).flat_map(move |y| (0..w).map(move |x| (c, y, x))));
        let reals = planes.map(|(c, y, x)| f32::from(block(c, y, x)) / 255.0).collect();
        let pixels = (0..h).flat_map(|y| (0..w).flat_map(move |x| (0..c).map(move |c| (c, y, x))));
        let bytes = native_io.then(|| pixels.map(|(c, y, x)| block(c, y, x)).collect());
        Ok(Self { loaded, reals, bytes })
    }

    fn once(&mut self) -> Result<(), Failure> {
        let network = self.loaded.network_mut();
        match &self.bytes {
            Some(bytes) => network.run_u8(bytes, None),
            None => network.run_f32(&self.reals).map(|_| ()),
        }
        .map_err(Failure::failed)
    }

    /// Runs for `time`, at least once.
    fn measure(&mut self, time: Duration) -> Result<Times, Failure> {
        let mut times = Times { cpu_min: Duration::MAX, walls: Vec::new() };
        let mut total = Duration::ZERO;
        while times.walls.is_empty() || total < time {
            let cpu_before = process_cpu_time();
            let mut stopwatch = Stopwatch::start();
            self.once()?;
            let wall = stopwatch.lap();
            times.cpu_min = times.cpu_min.min(process_cpu_time().saturating_sub(cpu_before));
            times.walls.push(wall);
            total += wall;
        }
        Ok(times)
    }

    /// Time of every layer, in order; empty in float. `peak` is in GMAC/s.
    fn profile(&mut self, peak: f64) -> Result<Vec<LayerTime>, Failure> {
        const N_RUNS: usize = 20;
        let network = self.loaded.network_mut();
        let Some(params) = network.input_params() else { return Ok(Vec::new()) };
        let input = match &self.bytes {
            Some(bytes) => bytes.clone(),
            None => vec![params.zero_point; network.input_shape().len()],
        };
        let mut least = vec![Duration::MAX; network.layers().len()];
        for _ in 0..N_RUNS {
            let mut stopwatch = Stopwatch::start();
            let mut observe = |idx: usize| {
                let lap = stopwatch.lap();
                if let Some(least) = least.get_mut(idx) {
                    *least = lap.min(*least);
                }
            };
            network.run_u8(&input, Some(&mut observe)).map_err(Failure::failed)?;
        }
        let layer = |(layer, &least): (&LayerInfo, &Duration)| {
            let gmacs_per_s = count_as_f64(layer.macs) / (1e6 * ms(least).max(1e-9));
            LayerTime {
                name: layer.name.clone(),
                op: layer.op,
                kernel: layer.kernel.clone(),
                output: [layer.output.h, layer.output.w, layer.output.c],
                macs: layer.macs,
                ms: ms(least),
                gmacs_per_s,
                peak_percent: if peak > 0.0 { 100.0 * gmacs_per_s / peak } else { 0.0 },
            }
        };
        Ok(network.layers().iter().zip(&least).map(layer).collect())
    }
}

/// Time by kind of operator, slowest first.
fn by_operator(layers: &[LayerTime]) -> Vec<OpTime> {
    let mut ops: Vec<OpTime> = Vec::new();
    for layer in layers {
        match ops.iter_mut().find(|time| time.op == layer.op) {
            Some(time) => {
                time.count += 1;
                time.ms += layer.ms;
            }
            None => ops.push(OpTime { op: layer.op, count: 1, ms: layer.ms }),
        }
    }
    ops.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    ops
}

/// GMAC/s of one thread with operands in registers: the best of many short bursts, which other work cannot all disturb.
fn measure_peak() -> f64 {
    let kernels = Kernels::default();
    let burst = |_| {
        let mut stopwatch = Stopwatch::start();
        let macs = kernels.saturate();
        count_as_f64(macs) / (1e6 * ms(stopwatch.lap()).max(1e-9))
    };
    (0..2000).map(burst).fold(0.0, f64::max)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
const fn count_as_f64(n: usize) -> f64 {
    n as f64
}

/// Answers each line `<seconds>` on stdin with one line `{"wall":ms,"cpu":ms,"n":count}`: the least of each.
fn worker(bench: &mut Bench) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let mut say = |line: String| {
        writeln!(stdout, "{line}").and_then(|()| stdout.flush()).context("cannot write to stdout").map_err(Failure::failed)
    };
    say(r#"{"ready":1}"#.into())?;
    for line in std::io::stdin().lock().lines() {
        let line = line.context("cannot read stdin").map_err(Failure::failed)?;
        let seconds = line.trim().parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let seconds = seconds.with_context(|| format!("`{line}` on stdin is no number of seconds")).map_err(Failure::request)?;
        let times = bench.measure(seconds)?;
        say(serde_json::json!({ "wall": times.quantiles().min, "cpu": ms(times.cpu_min), "n": times.walls.len() }).to_string())?;
    }
    Ok(())
}

fn ms(time: Duration) -> f64 {
    1e3 * time.as_secs_f64()
}

/// Layers that are shown unless all are asked for.
const N_SLOWEST: usize = 12;

/// The result for people.
fn table(report: &Report, all_layers: bool) -> String {
    let Quantiles { min, p50, p90, p99, max } = report.wall_ms;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{}: {} runs, {} threads, kernels {}", report.model, report.frames, report.threads, report.isa);
    let _ = writeln!(text, "wall ms  min {min:.2}  p50 {p50:.2}  p90 {p90:.2}  p99 {p99:.2}  max {max:.2}");
    let rate = count_as_f64(report.macs) / (1e6 * min.max(1e-9));
    let mmacs = count_as_f64(report.macs) / 1e6;
    let _ = write!(text, "CPU ms   min {:.2}; {mmacs:.1} million MACs, {rate:.1} GMAC/s", report.cpu_ms_min);
    let peak = report.peak_gmacs_per_s * count_as_f64(report.threads);
    let _ = if peak > 0.0 {
        writeln!(text, ", {:.0} % of the {peak:.1} that this machine reaches in registers", 100.0 * rate / peak)
    } else {
        writeln!(text)
    };
    for OpTime { op, count, ms } in &report.ops {
        let _ = writeln!(text, "  {op:<16} {count:>4} {ms:>9.3} ms");
    }
    if report.layers.is_empty() {
        return text;
    }
    let mut layers: Vec<(usize, &LayerTime)> = report.layers.iter().enumerate().collect();
    if !all_layers {
        layers.sort_by(|(_, a), (_, b)| b.ms.total_cmp(&a.ms));
        layers.truncate(N_SLOWEST);
        let _ = writeln!(text, "slowest layers (all with --layers):");
    }
    let _ = writeln!(
        text,
        "{:>4}  {:<16} {:<18} {:>13} {:>9} {:>9} {:>7} {:>6}  node",
        "", "operator", "kernel", "output", "MMAC", "ms", "GMAC/s", "% peak"
    );
    for (idx, layer) in layers {
        let [h, w, c] = layer.output;
        let _ = write!(text, "{idx:>4}  {:<16} {:<18} {:>13}", layer.op, layer.kernel, format!("{h}x{w}x{c}"));
        let _ = if layer.macs > 0 {
            let LayerTime { ms, gmacs_per_s, peak_percent, .. } = layer;
            write!(text, " {:>9.2} {ms:>9.4} {gmacs_per_s:>7.1} {peak_percent:>6.0}", count_as_f64(layer.macs) / 1e6)
        } else {
            write!(text, " {:>9} {:>9.4} {:>7} {:>6}", "", layer.ms, "", "")
        };
        let _ = writeln!(text, "  {}", layer.name);
    }
    if report.layers.iter().any(|layer| layer.peak_percent > 100.0) {
        text.push_str("above 100 %: 3x3 convolutions after Winograd count as plain ones, and need fewer multiplications\n");
    }
    text
}
