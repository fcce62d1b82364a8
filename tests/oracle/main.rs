//! Comparison with independent implementations: ONNX Runtime, pycocotools, NumPy and Pillow (`requirements.txt`).
//!
//! They run in the Python interpreter that `FOVEA_PYTHON` names (`make test` makes one). Without it the tests print that
//! they were skipped; with `FOVEA_REQUIRE_ORACLE=1` they fail instead.

mod coco;
mod executor;
mod postprocess;
mod preprocess;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The interpreter, or `None` after saying that `what` is skipped.
fn python(what: &str) -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "a test is the top: it reads its own knobs")]
    let knob = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    match knob("FOVEA_PYTHON") {
        Some(python) => Some(PathBuf::from(python)),
        None if knob("FOVEA_REQUIRE_ORACLE").is_some_and(|value| value == "1") => {
            panic!("FOVEA_REQUIRE_ORACLE=1 but FOVEA_PYTHON names no interpreter; run `make test`")
        }
        None => {
            eprintln!("skipped: {what} (FOVEA_PYTHON is not set; `make test` sets it)");
            None
        }
    }
}

/// Runs `script` of this folder; returns what it prints.
fn run_script(python: &Path, script: &str, arguments: &[&Path], input: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle").join(script);
    let mut child = Command::new(python)
        .arg(&path)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", python.display()));
    child.stdin.take().expect("stdin is piped").write_all(input.as_bytes()).expect("the script reads its input");
    let output = child.wait_with_output().expect("the script ends");
    assert!(output.status.success(), "{script} failed: {}", output.status);
    String::from_utf8(output.stdout).expect("the script prints text")
}

/// Little-endian f32 of a file.
fn read_f32(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// xorshift64* (Vigna 2016): the same numbers on every machine and for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// In `[0, 1)`, a multiple of 2^-24.
    fn unit(&mut self) -> f64 {
        f64::from(u32::try_from(self.below(1 << 24)).expect("24 bits")) / f64::from(1 << 24)
    }
}
