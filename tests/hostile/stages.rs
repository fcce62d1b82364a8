//! Pictures and heads from anywhere: the bodies of the fuzz targets on seeded inputs, from the seeds of `fuzz/seeds` and from
//! nothing.

use crate::damage::damage;
use crate::{Random, rounds};
use std::path::Path;

#[path = "../../fuzz/bodies/bytes.rs"]
mod bytes;
#[path = "../../fuzz/bodies/postprocess.rs"]
mod postprocess;
#[path = "../../fuzz/bodies/preprocess.rs"]
mod preprocess;

/// Shows the input of a case that fails.
struct Shown<'a>(&'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input: {:?}", self.0);
        }
    }
}

/// Looks at `n` inputs: damaged seeds, and noise. Most of them have to be worth a look.
fn check(name: &str, n: usize, look: fn(&[u8]) -> bool) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
    let mut paths: Vec<_> = std::fs::read_dir(folder).expect("seeds").map(|file| file.expect("a seed").path()).collect();
    paths.sort();
    let seeds: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).expect("a seed")).collect();
    for (path, seed) in paths.iter().zip(&seeds) {
        assert!(look(seed), "{}: refused", path.display());
    }
    let mut random = Random(0x0BAD_F00D_0000_0009);
    let mut n_looked_at = 0;
    for _ in 0..n * rounds() {
        let mut input = if random.below(2) == 0 {
            let len = 24 + random.below(80);
            (0..len).map(|_| random.below(256).to_le_bytes()[0]).collect()
        } else {
            random.pick(&seeds)
        };
        damage(&mut input, &mut random);
        let shown = Shown(&input);
        n_looked_at += usize::from(look(shown.0));
    }
    eprintln!("{name}: {n_looked_at} of {} inputs looked at", n * rounds());
    assert!(n_looked_at > n * rounds() / 3, "{n_looked_at} looked at: the inputs are too wild");
}

#[test]
fn pictures_from_anywhere() {
    check("preprocess", 3000, preprocess::look);
}

#[test]
fn heads_from_anywhere() {
    check("postprocess", 1000, postprocess::look);
}
