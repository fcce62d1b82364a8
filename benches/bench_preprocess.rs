//! Measures preprocessing of a picture from a file, beside other programs: `benches/preprocess_peers.py` runs it.
//!
//! usage: `bench_preprocess FORMAT WIDTHxHEIGHT INPUT_WIDTHxINPUT_HEIGHT FILE [ISA]`. The file holds the planes without padding. Prints
//! `{"ready":1,"isa":name,"pixels":hexadecimal}`, then for every line `<seconds>` on stdin `{"wall":ms,"cpu":ms,"n":count}`: the
//! least of each.

mod worker;

use fovea::frame::{ColorInfo, PictureRef, PixelFormat, PlaneRef};
use fovea::pipeline::detector::hex;
use fovea::preprocess::Preprocessor;
use std::error::Error;

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
    let kernels = worker::kernels(isa.first())?;
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
    let ready = serde_json::json!({ "ready": 1, "isa": kernels.isa().name(), "pixels": hex(&pixels) });
    worker::serve(&ready, || {
        preprocessor.run(&picture, &mut pixels);
    })
}
