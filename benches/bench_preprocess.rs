//! Measures preprocessing of a picture from a file, beside other programs: `benches/preprocess_peers.py` runs it.
//!
//! usage: `bench_preprocess FORMAT WIDTHxHEIGHT INPUT_WIDTHxINPUT_HEIGHT FILE [ISA]`. The file holds the planes without padding. Prints
//! `{"ready":1,"isa":name,"pixels":hexadecimal}`, then for every line `<seconds>` on stdin `{"wall":ms,"cpu":ms,"n":count}`: the
//! least of each.

use fovea::frame::{ColorInfo, PictureRef, PixelFormat, PlaneRef};
use fovea::kernels::{Isa, Kernels};
use fovea::pipeline::clock::{Stopwatch, process_cpu_time};
use fovea::pipeline::detector::hex;
use fovea::preprocess::Preprocessor;
use std::error::Error;
use std::io::{BufRead, Write};
use std::time::Duration;

/// `640x480`.
fn size(text: &str) -> Result<(usize, usize), Box<dyn Error>> {
    let (width, height) = text.split_once('x').ok_or("a size is written 640x480")?;
    Ok((width.parse()?, height.parse()?))
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, format, src, dst, file, isa @ ..] = arguments.as_slice() else {
        return Err("usage: bench_preprocess FORMAT WIDTHxHEIGHT INPUT_WIDTHxINPUT_HEIGHT FILE [ISA]".into());
    };
    let kernels = match isa.first() {
        None => Kernels::default(),
        Some(name) => {
            let isa = Isa::available().into_iter().find(|isa| isa.name() == name);
            isa.and_then(Kernels::new).ok_or_else(|| format!("this CPU or this build has no kernels {name}"))?
        }
    };
    let format = PixelFormat::ALL.into_iter().find(|known| known.to_string() == *format).ok_or("no such format")?;
    let (src, dst, bytes) = (size(src)?, size(dst)?, std::fs::read(file)?);
    let (mut planes, mut rest) = ([PlaneRef::default(); 3], &bytes[..]);
    for (plane_idx, plane) in planes.iter_mut().enumerate() {
        let Some(size) = format.plane_size(plane_idx, src.0, src.1) else { continue };
        let (data, later) = rest.split_at_checked(size.row_bytes * size.rows).ok_or("the file is too short")?;
        (*plane, rest) = (PlaneRef { data, stride_bytes: size.row_bytes }, later);
    }
    let picture = PictureRef::new(format, src.0, src.1, ColorInfo::default(), planes)?;
    let mut preprocessor = Preprocessor::with_kernels(dst, kernels);
    let mut pixels = vec![0; dst.0 * dst.1 * 3];
    preprocessor.run(&picture, &mut pixels);
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::json!({ "ready": 1, "isa": kernels.isa().name(), "pixels": hex(&pixels) }))?;
    for line in std::io::stdin().lock().lines() {
        let time = Duration::try_from_secs_f64(line?.trim().parse()?)?;
        let (mut wall, mut cpu, mut spent, mut n) = (Duration::MAX, Duration::MAX, Duration::ZERO, 0);
        while spent < time {
            let (before, mut stopwatch) = (process_cpu_time(), Stopwatch::start());
            preprocessor.run(&picture, &mut pixels);
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
