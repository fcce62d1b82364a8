//! The executor against ONNX Runtime, value by value.

use crate::{python, read_f32, run_script};
use fovea::executor::{LoadOptions, Network};
use fovea::kernels::{Isa, Kernels};
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Debug, Deserialize)]
struct Case {
    name: String,
    is_float: bool,
    /// Whether ONNX Runtime computes this network in integers by the same rule.
    exact: bool,
}

/// Largest difference of a float network, as a share of the largest value.
const FLOAT_TOLERANCE: f32 = 1e-4;

/// Steps that a value may be off. Where a sum rounds the other way the difference travels on: on deep networks ONNX Runtime
/// differs from itself, with and without its optimiser, by up to 7 steps.
const STEPS: f32 = 1.5;
const STEPS_OF_MODELS: f32 = 8.5;

/// Values that differ, of how many.
fn differing(folder: &Path, case: &Case, steps: f32) -> (usize, usize) {
    let file = |extension: &str| folder.join(format!("{}.{extension}", case.name));
    let bytes = std::fs::read(file("onnx")).expect("the network is there");
    let options = LoadOptions { allow_float: case.is_float, ..LoadOptions::default() };
    let mut network = Network::load(&bytes, &options).unwrap_or_else(|error| panic!("{}: {error}", case.name));
    assert_eq!(network.census().float_convs == 0, !case.is_float, "{}: {:?}", case.name, network.census());
    let is_shuffle = ["shuffle_stack", "shuffle_gather", "shuffle_in_float"].contains(&case.name.trim_end_matches("_qop"));
    let interleaves = network.layers().iter().any(|layer| layer.op == "QuantInterleave");
    assert!(interleaves || !is_shuffle, "{}: the shuffle is not found: {:?}", case.name, network.layers());
    let (input, want) = (read_f32(&file("in")), read_f32(&file("out")));
    let got = network.run_f32(&input).unwrap_or_else(|error| panic!("{}: {error}", case.name)).to_vec();
    let again = network.run_f32(&input).expect("it runs twice");
    assert_eq!(got, again, "{}: a second run gives something else", case.name);
    if !case.is_float {
        for kernels in Isa::available().into_iter().filter_map(Kernels::new) {
            for threads in [1, 3] {
                let options = LoadOptions { threads, kernels, ..LoadOptions::default() };
                let mut network = Network::load(&bytes, &options).expect("it loads");
                let here = network.run_f32(&input).expect("it runs");
                assert!(got == here, "{}: {threads} threads on {} give something else", case.name, kernels.isa().name());
            }
        }
    }
    assert_eq!(got.iter().map(|values| values.len()).sum::<usize>(), want.len(), "{}: number of values", case.name);
    let mut want = want.as_slice();
    let (mut n_differ, mut n_values) = (0, 0);
    for (info, got) in network.outputs().iter().zip(&got) {
        let (here, rest) = want.split_at(got.len());
        want = rest;
        let largest = here.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        for (at, (got, want)) in got.iter().zip(here).enumerate() {
            let difference = (got - want).abs();
            n_values += 1;
            match info.params {
                // Both are multiples of the scale: less than half a step is equal.
                Some(params) if difference > 0.5 * params.scale => {
                    n_differ += 1;
                    assert!(
                        difference < steps * params.scale,
                        "{} {} at {at}: {got}, ONNX Runtime {want}, step {}",
                        case.name,
                        info.name,
                        params.scale
                    );
                }
                Some(_) => {}
                None => assert!(
                    difference <= FLOAT_TOLERANCE * largest,
                    "{} {} at {at}: {got}, ONNX Runtime {want}",
                    case.name,
                    info.name
                ),
            }
        }
        let distinct: std::collections::HashSet<u32> = here.iter().map(|value| value.to_bits()).collect();
        assert!(distinct.len() > 8 || here.len() < 64, "{}: an output of {} values says nothing", case.name, distinct.len());
    }
    (n_differ, n_values)
}

/// Networks that ship with the project.
fn shipped() -> Vec<PathBuf> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let folders = std::fs::read_dir(models).into_iter().flatten().flatten();
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.path()).into_iter().flatten().flatten());
    // `models/default` is a link to one of the others.
    let mut networks: Vec<PathBuf> = files.filter_map(|file| file.path().canonicalize().ok()).collect();
    networks.retain(|path| path.extension().is_some_and(|extension| extension == "onnx"));
    networks.sort();
    networks.dedup();
    networks
}

/// Networks of the folder that `FOVEA_ORACLE_MODELS` names: to try others than the project's own.
fn given() -> Vec<PathBuf> {
    let Some(folder) = std::env::var_os("FOVEA_ORACLE_MODELS") else { return Vec::new() };
    let files = std::fs::read_dir(folder).expect("FOVEA_ORACLE_MODELS names a folder").flatten();
    let mut networks: Vec<PathBuf> = files.map(|file| file.path()).collect();
    networks.retain(|path| path.extension().is_some_and(|extension| extension == "onnx"));
    networks.sort();
    networks
}

#[test]
fn networks_agree_with_onnx_runtime() {
    let Some(python) = python("executor against ONNX Runtime") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (shipped, given) = (shipped(), given());
    let models: Vec<&PathBuf> = shipped.iter().chain(&given).collect();
    let arguments: Vec<&Path> = std::iter::once(folder.path()).chain(models.iter().map(|path| path.as_path())).collect();
    run_script(&python, "executor.py", &arguments, "");
    let cases = std::fs::read_to_string(folder.path().join("cases.json")).expect("a list of cases");
    let cases: Vec<Case> = serde_json::from_str(&cases).expect("a list of cases");
    let n_qop = cases.iter().filter(|case| case.name.ends_with("_qop")).count();
    assert!(cases.len() - n_qop > 50 && n_qop > 40, "only {} cases, {n_qop} of them in QOperator form", cases.len());
    let (mut n_exact, mut n_near, mut wrong) = (0, 0, Vec::new());
    for (idx, path) in models.iter().enumerate() {
        eprintln!("model{idx} is {}", path.display());
    }
    for case in &cases {
        let is_model = (0..models.len()).any(|idx| case.name == format!("model{idx}"));
        let steps = if is_model { STEPS_OF_MODELS } else { STEPS };
        let (n_differ, n_values) = differing(folder.path(), case, steps);
        if case.is_float {
            eprintln!("{}: {n_values} values within {FLOAT_TOLERANCE}", case.name);
        } else if case.exact {
            n_exact += n_values;
            if n_differ > 0 {
                wrong.push(format!("{}: {n_differ} of {n_values}", case.name));
            }
        } else {
            n_near += n_values;
            eprintln!("{}: {n_differ} of {n_values} values off by a step or more", case.name);
        }
    }
    eprintln!(
        "{} shipped and given networks; {n_exact} values of networks in integers equal, {n_near} of others near",
        models.len()
    );
    assert!(wrong.is_empty(), "values that differ: {wrong:#?}");
}
