//! The architecture as a test: who may use whom, and what is named where.
//!
//! The rules are the tables below. Every source file of the library, the binary and the trainer is cut into tokens (so that
//! macros and attributes are seen as well as `use` lines), its paths are resolved to modules, and each is held against the
//! tables; the manifests are read too. A violation names file, line and rule. `ARCHITECTURE.md` says why.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fmt, fs};

/// Layer of every module: a module uses lower ones only. Modules of one layer do not see each other.
const LAYERS: &[(&str, u8)] = &[
    // L0a: words; a frame's letterbox maps boxes
    ("detection", 0),
    ("quant", 0),
    ("frame", 1),
    // L0b: the contract between executor, postprocessing and trainer
    ("retinanet", 2),
    // L1: machinery
    ("kernels", 3),
    ("queue", 3),
    // L2: stages
    ("images", 4),
    ("preprocess", 4),
    ("executor", 4),
    ("postprocess", 4),
    ("overlay", 4),
    ("eval", 4),
    // L3: what composes them
    ("pipeline", 5),
    // L4: adapters
    ("gst", 6),
    // L5: the command line
    ("cmds", 7),
    ("main", 8),
];

/// What of the library the trainer uses.
const TRAINER_USES: &[&str] = &[
    "detection",
    "frame",
    "quant",
    "retinanet",
    "kernels",
    "images",
    "preprocess",
    "executor",
    "postprocess",
    "eval",
    "pipeline",
];

/// How a confined thing is recognised.
enum Sign {
    /// A path that starts with these segments; the last may end in `*`.
    Path(&'static str),
    /// A path that holds these segments somewhere.
    Within(&'static str),
    /// A word, wherever it stands.
    Word(&'static str),
    /// A method call.
    Method(&'static str),
}

/// Something that is named in few places only.
struct Confined {
    rule: &'static str,
    signs: &'static [Sign],
    /// Files, or folders with a slash at the end.
    only_in: &'static [&'static str],
}

const CONFINED: &[Confined] = &[
    Confined {
        rule: "GStreamer is named in gst/ only",
        signs: &[Sign::Path("gstreamer*"), Sign::Path("glib")],
        only_in: &["src/gst/"],
    },
    Confined { rule: "tract is named in executor/ only", signs: &[Sign::Path("tract_*")], only_in: &["src/executor/"] },
    Confined { rule: "OpenCV is named in overlay/ only", signs: &[Sign::Path("opencv")], only_in: &["src/overlay/"] },
    Confined {
        rule: "anyhow is for main, cmds/ and the trainer; elsewhere errors are types",
        signs: &[Sign::Path("anyhow")],
        only_in: &["src/main.rs", "src/cmds/", "trainer/src/"],
    },
    Confined {
        rule: "the command line is parsed in main, cmds/ and the trainer",
        signs: &[Sign::Path("clap")],
        only_in: &["src/main.rs", "src/cmds/", "trainer/src/"],
    },
    Confined {
        rule: "libtorch is the trainer's",
        signs: &[Sign::Path("tch"), Sign::Path("torch_sys")],
        only_in: &["trainer/src/"],
    },
    Confined { rule: "the library never names the trainer", signs: &[Sign::Word("fovea_train")], only_in: &["trainer/src/"] },
    Confined {
        rule: "unsafe is for kernels/, overlay/mat.rs and the trainer's cuda.rs",
        signs: &[Sign::Word("unsafe"), Sign::Word("unsafe_code")],
        only_in: &["src/kernels/", "src/overlay/mat.rs", "trainer/src/cuda.rs"],
    },
    Confined {
        rule: "instructions of one CPU are for kernels/",
        signs: &[
            Sign::Path("std::arch"),
            Sign::Path("core::arch"),
            Sign::Word("asm"),
            Sign::Word("global_asm"),
            Sign::Word("target_feature"),
            Sign::Word("is_x86_feature_detected"),
            Sign::Word("is_aarch64_feature_detected"),
        ],
        only_in: &["src/kernels/"],
    },
    Confined {
        rule: "time is read in pipeline/clock.rs only",
        signs: &[Sign::Within("Instant::now"), Sign::Word("SystemTime"), Sign::Word("UNIX_EPOCH"), Sign::Method("elapsed")],
        only_in: &["src/pipeline/clock.rs", "trainer/src/"],
    },
    Confined {
        rule: "the environment is read at the top only",
        signs: &[Sign::Path("std::env")],
        only_in: &["src/gst/", "src/cmds/", "src/main.rs", "trainer/src/"],
    },
    Confined {
        rule: "files are opened by images/, pipeline/ and above",
        signs: &[Sign::Path("std::fs"), Sign::Path("std::net")],
        only_in: &["src/images/", "src/pipeline/", "src/gst/", "src/cmds/", "src/main.rs", "trainer/src/"],
    },
];

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    file: String,
    line: usize,
    rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.rule)
    }
}

/// A path as written, `use` trees taken apart, and where it stands.
struct Found {
    segments: Vec<String>,
    line: usize,
    /// Module that it stands in, from the crate root.
    within: Vec<String>,
    /// Under `#[cfg(test)]`.
    testing: bool,
}

/// Everything of one file that the rules look at.
#[derive(Default)]
struct Names {
    paths: Vec<Found>,
    words: Vec<(String, usize)>,
    methods: Vec<(String, usize)>,
    /// Whether what is being read is under `#[cfg(test)]`.
    testing: bool,
}

impl Names {
    fn of(file: &str, source: &str) -> Self {
        let tokens: TokenStream = source.parse().unwrap_or_else(|e| panic!("{file}: not Rust: {e}"));
        let mut names = Self::default();
        names.read(tokens, &[], &module_of(file));
        names
    }

    /// Reads a run of tokens. `prefix` is what stands before a `{…}` of a `use` tree.
    fn read(&mut self, tokens: TokenStream, prefix: &[String], within: &[String]) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let word_at = |i: usize| tokens.get(i).and_then(|t| if let TokenTree::Ident(w) = t { Some(w.to_string()) } else { None });
        let is = |i: usize, c: char| matches!(tokens.get(i), Some(TokenTree::Punct(p)) if p.as_char() == c);
        let colons = |i: usize| is(i, ':') && is(i + 1, ':');
        let mut i = 0;
        // A `{…}` that follows `mod name` belongs to that module.
        let mut entering: Option<String> = None;
        let outside = self.testing;
        while i < tokens.len() {
            let line = tokens[i].span().start().line;
            match &tokens[i] {
                TokenTree::Group(group) => {
                    let mut inner = within.to_vec();
                    if group.delimiter() == Delimiter::Brace {
                        inner.extend(entering.take());
                    }
                    if group.delimiter() == Delimiter::Bracket && group.stream().to_string().replace(' ', "") == "cfg(test)" {
                        self.testing = true;
                    }
                    self.read(group.stream(), &[], &inner);
                    if group.delimiter() == Delimiter::Brace {
                        self.testing = outside;
                    }
                }
                TokenTree::Ident(_) => {
                    let mut segments = prefix.to_vec();
                    loop {
                        let word = word_at(i).expect("an identifier");
                        self.words.push((word.clone(), tokens[i].span().start().line));
                        segments.push(word.trim_start_matches("r#").to_owned());
                        if !colons(i + 1) {
                            break;
                        }
                        match tokens.get(i + 3) {
                            Some(TokenTree::Ident(_)) => i += 3,
                            // The rest of a `use` tree.
                            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                                self.read(group.stream(), &segments, within);
                                i += 3;
                                break;
                            }
                            _ => break,
                        }
                    }
                    let last = segments.last().cloned().unwrap_or_default();
                    let before = segments.len() == 1 && i > 0 && is(i - 1, '.');
                    if before && matches!(tokens.get(i + 1), Some(TokenTree::Group(g)) if g.delimiter() == Delimiter::Parenthesis)
                    {
                        self.methods.push((last, line));
                    }
                    if segments == ["mod"] {
                        entering = word_at(i + 1);
                    }
                    let named_whole = i > 0 && matches!(word_at(i - 1).as_deref(), Some("use" | "crate"));
                    if segments.len() > 1 || named_whole {
                        self.paths.push(Found { segments, line, within: within.to_vec(), testing: self.testing });
                    }
                }
                TokenTree::Punct(p) if p.as_char() == ';' => (entering, self.testing) = (None, outside),
                // The tail of `<T as Trait>::name` or `Vec::<T>::new`: not the start of a path.
                TokenTree::Punct(p) if p.as_char() == '>' && colons(i + 1) && word_at(i + 3).is_some() => i += 3,
                _ => {}
            }
            i += 1;
        }
    }
}

/// Module of a source file: `src/a/b.rs` is `a::b`, `src/a/mod.rs` is `a`, the crate roots are empty.
fn module_of(file: &str) -> Vec<String> {
    let inside = file.split_once("src/").map_or(file, |(_, rest)| rest);
    let mut module: Vec<String> = inside.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if matches!(module.last().map(String::as_str), Some("mod"))
        || matches!(module[..], [ref root] if root == "lib" || root == "main")
    {
        module.pop();
    }
    module
}

/// The name in the table of layers under which a file goes.
fn layer_name(file: &str) -> &str {
    let inside = file.trim_start_matches("src/");
    inside.split_once('/').map_or(inside.trim_end_matches(".rs"), |(folder, _)| folder)
}

fn rank(module: &str) -> Option<u8> {
    LAYERS.iter().find(|(name, _)| *name == module).map(|&(_, rank)| rank)
}

/// The path from the root of its crate, where it can be told; `fovea` is the library's own name.
fn resolve(found: &Found) -> Option<Vec<String>> {
    let mut base = found.within.clone();
    let mut rest = found.segments.as_slice();
    match rest.first().map(String::as_str) {
        Some("crate" | "fovea") => return Some(rest[1..].to_vec()),
        Some("self") => rest = &rest[1..],
        Some("super") => {}
        _ => return None,
    }
    while rest.first().is_some_and(|s| s == "super") {
        base.pop();
        rest = &rest[1..];
    }
    base.extend_from_slice(rest);
    Some(base)
}

fn segment_matches(pattern: &str, segment: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == segment, |start| segment.starts_with(start))
}

fn starts_with(segments: &[String], pattern: &str) -> bool {
    let pattern: Vec<&str> = pattern.split("::").collect();
    segments.len() >= pattern.len() && pattern.iter().zip(segments).all(|(p, s)| segment_matches(p, s))
}

fn is_in(file: &str, places: &[&str]) -> bool {
    places.iter().any(|place| if place.ends_with('/') { file.starts_with(place) } else { file == *place })
}

/// The violations of one source file.
fn check_source(file: &str, source: &str) -> Vec<Violation> {
    let names = Names::of(file, source);
    let mut found = BTreeSet::new();
    let mut report = |line: usize, rule: String| {
        found.insert(Violation { file: file.to_owned(), line, rule });
    };
    for confined in CONFINED.iter().filter(|c| !is_in(file, c.only_in)) {
        for sign in confined.signs {
            let lines: Vec<usize> = match sign {
                Sign::Path(p) => names.paths.iter().filter(|f| starts_with(&f.segments, p)).map(|f| f.line).collect(),
                Sign::Within(p) => names
                    .paths
                    .iter()
                    .filter(|f| (0..f.segments.len()).any(|i| starts_with(&f.segments[i..], p)))
                    .map(|f| f.line)
                    .collect(),
                Sign::Word(w) => names.words.iter().filter(|(word, _)| word == w).map(|&(_, line)| line).collect(),
                Sign::Method(m) => names.methods.iter().filter(|(name, _)| name == m).map(|&(_, line)| line).collect(),
            };
            for line in lines {
                report(line, confined.rule.to_owned());
            }
        }
    }
    for path in &names.paths {
        let Some(target) = resolve(path).and_then(|p| p.first().cloned()) else { continue };
        let Some(target_rank) = rank(&target) else { continue };
        if file.starts_with("trainer/") {
            if path.segments[0] == "fovea" && !TRAINER_USES.contains(&target.as_str()) {
                report(path.line, format!("the trainer does not use {target}"));
            }
            continue;
        }
        let own = layer_name(file);
        if own == "lib" || own == target {
            continue;
        }
        match rank(own) {
            None => report(path.line, format!("{own} has no layer: give it one in tests/architecture.rs")),
            // A stage's own tests may feed it with what its neighbours make.
            Some(own_rank) if target_rank == own_rank && path.testing => {}
            Some(own_rank) if target_rank == own_rank => {
                report(path.line, format!("{own} and {target} are of one layer and do not see each other"));
            }
            Some(own_rank) if target_rank > own_rank => report(path.line, format!("{own} is below {target} and does not use it")),
            Some(_) => {}
        }
    }
    found.into_iter().collect()
}

/// The violations of the root: it declares the modules of the table and hides no edge behind a re-export.
fn check_root(file: &str, source: &str) -> Vec<Violation> {
    let tree = syn::parse_file(source).unwrap_or_else(|e| panic!("{file}: {e}"));
    let mut found = Vec::new();
    for item in &tree.items {
        let (line, rule) = match item {
            syn::Item::Mod(m) if rank(&m.ident.to_string()).is_some() => continue,
            syn::Item::Mod(m) => (m.ident.span().start().line, format!("module {} has no layer", m.ident)),
            syn::Item::Use(u) => {
                (u.use_token.span.start().line, "the root re-exports nothing: it would hide who uses whom".to_owned())
            }
            _ => continue,
        };
        found.push(Violation { file: file.to_owned(), line, rule });
    }
    found
}

/// The violations of the two manifests.
fn check_manifests(root: &str, trainer: &str) -> Vec<Violation> {
    let parse = |file: &str, text: &str| -> toml::Table { text.parse().unwrap_or_else(|e| panic!("{file}: {e}")) };
    let mut found = Vec::new();
    let mut report = |file: &str, text: &str, key: &str, rule: &str| {
        let line = text.lines().position(|l| l.trim_start().starts_with(key)).map_or(1, |i| i + 1);
        found.push(Violation { file: file.to_owned(), line, rule: rule.to_owned() });
    };
    let file = "Cargo.toml";
    let table = parse(file, root);
    for (name, value) in dependencies(&table) {
        let optional = value.get("optional").and_then(toml::Value::as_bool) == Some(true);
        if (name.starts_with("gstreamer") || name == "opencv") && !optional {
            report(file, root, &name, "the media stack is optional: the trainer and emulated targets build without it");
        }
        if name == "fovea-train" || name == "tch" {
            report(file, root, &name, "the library does not depend on the trainer or on libtorch");
        }
    }
    let file = "trainer/Cargo.toml";
    let table = parse(file, trainer);
    let dependencies = dependencies(&table);
    for (name, value) in &dependencies {
        if name.starts_with("gstreamer") || name == "opencv" || name.starts_with("tract") {
            report(file, trainer, name, "the trainer has no media stack and no graph engine of its own");
        }
        if name == "fovea" && value.get("default-features").and_then(toml::Value::as_bool) != Some(false) {
            report(file, trainer, name, "the trainer takes the library without default features");
        }
        if name == "fovea"
            && value
                .get("features")
                .and_then(toml::Value::as_array)
                .is_some_and(|f| f.iter().any(|f| matches!(f.as_str(), Some("gst" | "opencv"))))
        {
            report(file, trainer, name, "the trainer takes the library without its media features");
        }
    }
    if !dependencies.iter().any(|(name, _)| name == "fovea") {
        report(file, trainer, "[dependencies]", "the trainer is built on the library");
    }
    found
}

/// All dependencies that are linked, those of targets too.
fn dependencies(table: &toml::Table) -> Vec<(String, toml::Value)> {
    let targets = table.get("target").and_then(toml::Value::as_table);
    let sections = [table].into_iter().chain(targets.into_iter().flat_map(|t| t.values().filter_map(toml::Value::as_table)));
    sections
        .filter_map(|section| section.get("dependencies").and_then(toml::Value::as_table))
        .flat_map(|section| section.iter().map(|(name, value)| (name.clone(), value.clone())))
        .collect()
}

fn rust_files(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.expect("a folder entry").path();
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn list(violations: &[Violation]) -> String {
    violations.iter().map(|v| format!("  {v}\n")).collect()
}

#[test]
fn the_sources_keep_to_the_architecture() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    rust_files(&root.join("src"), &mut files);
    rust_files(&root.join("trainer/src"), &mut files);
    files.sort();
    assert!(files.len() > 40, "only {} source files found", files.len());
    let violations: Vec<Violation> = files
        .iter()
        .flat_map(|path| {
            let name = path.strip_prefix(root).expect("inside the project").to_string_lossy().replace('\\', "/");
            check_source(&name, &fs::read_to_string(path).expect("a source file"))
        })
        .collect();
    assert!(violations.is_empty(), "architecture violated:\n{}", list(&violations));
}

/// Modules of `uses` that use each other in a circle, or lie between circles.
fn circles(mut uses: BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    while let Some(lowest) = uses.iter().find(|(_, used)| used.is_empty()).map(|(module, _)| module.clone()) {
        uses.remove(&lowest);
        uses.values_mut().for_each(|used| _ = used.remove(&lowest));
    }
    uses.into_keys().collect()
}

#[test]
fn the_trainers_modules_use_each_other_in_no_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("trainer/src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in &files {
        let name = format!("src/{}", path.strip_prefix(&root).expect("inside the trainer").display());
        let Some(own) = module_of(&name).into_iter().next() else { continue };
        let names = Names::of(&name, &fs::read_to_string(path).expect("a source file"));
        let inside = names.paths.iter().filter(|path| !path.testing && path.segments[0] != "fovea");
        let targets = inside.filter_map(|path| resolve(path)?.into_iter().next()).filter(|target| *target != own);
        uses.entry(own.clone()).or_default().extend(targets);
    }
    let modules: BTreeSet<String> = uses.keys().cloned().collect();
    uses.values_mut().for_each(|used| used.retain(|module| modules.contains(module)));
    assert!(uses["fit"].contains("loss") && uses.len() > 30, "{uses:?}");
    let mut planted = uses.clone();
    planted.get_mut("loss").expect("the losses").insert("fit".into());
    let found = circles(planted);
    assert!(found.contains(&"fit".into()) && found.contains(&"loss".into()), "{found:?}");
    assert_eq!(circles(uses), Vec::<String>::new(), "these use each other in a circle");
}

#[test]
fn every_module_has_a_layer() {
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).expect("src/lib.rs");
    let violations = check_root("src/lib.rs", &source);
    assert!(violations.is_empty(), "architecture violated:\n{}", list(&violations));
    let planted = "pub mod detection;\nmod helpers;\npub use detection::BBox;\n";
    let lines: Vec<usize> = check_root("src/lib.rs", planted).iter().map(|v| v.line).collect();
    assert_eq!(lines, [2, 3]);
}

#[test]
fn the_manifests_keep_to_the_architecture() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| fs::read_to_string(root.join(name)).expect("a manifest");
    let violations = check_manifests(&read("Cargo.toml"), &read("trainer/Cargo.toml"));
    assert!(violations.is_empty(), "architecture violated:\n{}", list(&violations));
}

#[test]
fn planted_violations_in_sources_are_found() {
    // file, source, line, part of the rule
    const PLANTED: &[(&str, &str, usize, &str)] = &[
        ("src/quant/mod.rs", "use crate::executor::Executor;", 1, "quant is below executor"),
        ("src/quant/mod.rs", "\n\nfn f() { crate::pipeline::run() }", 3, "quant is below pipeline"),
        ("src/quant/mod.rs", "use super::detection::BBox;", 1, "quant and detection are of one layer"),
        ("src/detection/mod.rs", "use crate::frame;", 1, "detection is below frame"),
        ("src/executor/plan.rs", "use super::super::postprocess;", 1, "executor and postprocess are of one layer"),
        ("src/postprocess/nms.rs", "use crate::{\n  detection::BBox,\n  eval::{self, Metrics},\n};", 3, "one layer"),
        ("src/eval/mod.rs", "#[cfg(test)]\nmod tests { use super::*; }\nuse crate::images;", 3, "one layer"),
        ("src/eval/mod.rs", "#[cfg(test)]\nuse crate::images;\nuse crate::overlay;", 3, "one layer"),
        ("src/eval/mod.rs", "#[cfg(test)]\nmod tests { use crate::pipeline; }", 2, "eval is below pipeline"),
        ("src/eval/mod.rs", "mod tests { mod deep { use super::super::super::images::open; } }", 1, "one layer"),
        ("src/eval/mod.rs", "fn f() { assert_eq!(1, crate::gst::one()) }", 1, "eval is below gst"),
        ("src/queue/mod.rs", "type T = Vec<crate::pipeline::Spec>;", 1, "queue is below pipeline"),
        ("src/pipeline/runner.rs", "impl crate::gst::Trait for X {}", 1, "pipeline is below gst"),
        ("src/gst/mod.rs", "use crate::cmds::Failure;", 1, "gst is below cmds"),
        ("src/stranger/mod.rs", "use crate::frame::Frame;", 1, "stranger has no layer"),
        ("trainer/src/fit.rs", "use fovea::overlay::draw;", 1, "the trainer does not use overlay"),
        ("trainer/src/fit.rs", "use gstreamer as gst;", 1, "GStreamer"),
        ("src/pipeline/mod.rs", "use gstreamer;", 1, "GStreamer"),
        ("src/pipeline/mod.rs", "fn f() { ::gstreamer_app::AppSink::builder(); }", 1, "GStreamer"),
        ("src/postprocess/mod.rs", "fn f(t: &tract_onnx::prelude::Tensor) {}", 1, "tract"),
        ("src/cmds/run.rs", "use {std::io, opencv::core::Mat};", 1, "OpenCV"),
        ("src/pipeline/mod.rs", "extern crate anyhow;", 1, "anyhow"),
        ("src/pipeline/mod.rs", "fn f() -> Result<(), E> { anyhow::bail!(\"x\") }", 1, "anyhow"),
        ("src/pipeline/config.rs", "#[derive(clap::Args)] struct A;", 1, "command line"),
        ("src/executor/mod.rs", "fn f() { tch::no_grad(|| {}) }", 1, "libtorch"),
        ("src/cmds/eval.rs", "use fovea_train::data;", 1, "never names the trainer"),
        ("src/queue/ring.rs", "fn f() {\n  unsafe { g() }\n}", 2, "unsafe"),
        ("src/overlay/mod.rs", "#[expect(unsafe_code, reason = \"r\")] fn f() {}", 1, "unsafe"),
        ("src/gst/mod.rs", "macro_rules! m { () => { unsafe { g() } } }", 1, "unsafe"),
        ("trainer/src/model.rs", "unsafe impl Send for X {}", 1, "unsafe"),
        ("src/quant/mod.rs", "use std::arch::x86_64::*;", 1, "instructions"),
        ("src/quant/mod.rs", "use core::{arch::asm, mem};", 1, "instructions"),
        ("src/preprocess/mod.rs", "#[target_feature(enable = \"avx2\")] fn f() {}", 1, "instructions"),
        ("src/pipeline/runner.rs", "fn f() { std::time::Instant::now(); }", 1, "time"),
        ("src/gst/source.rs", "use std::time::Instant;\nfn f() { Instant::now(); }", 2, "time"),
        ("src/gst/source.rs", "fn f(t: Stamp) { t.elapsed(); }", 1, "time"),
        ("src/cmds/run.rs", "use std::time::{Duration, SystemTime};", 1, "time"),
        ("src/pipeline/spec.rs", "use std::{env, path::Path};", 1, "environment"),
        ("src/kernels/mod.rs", "fn f() { std::env::var(\"X\"); }", 1, "environment"),
        ("src/executor/mod.rs", "fn f() { std::fs::read(p); }", 1, "files"),
    ];
    for &(file, source, line, rule) in PLANTED {
        let found = check_source(file, source);
        assert!(
            found.iter().any(|v| v.file == file && v.line == line && v.rule.contains(rule)),
            "not found: {file}:{line}: {rule}\n{source}\nfound:\n{}",
            list(&found)
        );
    }
}

#[test]
fn what_is_allowed_is_not_reported() {
    const ALLOWED: &[(&str, &str)] = &[
        ("src/executor/plan.rs", "use crate::{detection::BBox, kernels, quant::{self, tables}, retinanet::Level};"),
        ("src/executor/plan.rs", "use super::graph; use self::inner::X; use tract_onnx::prelude::*;"),
        ("src/executor/mod.rs", "mod tests { use super::*; use super::super::quant::Params; }"),
        (
            "src/overlay/mod.rs",
            "#[cfg(test)]\nmod tests { use super::*; use crate::images; fn f() { crate::preprocess::run() } }",
        ),
        ("src/pipeline/mod.rs", "use crate::postprocess::nms; use std::time::Duration;"),
        ("src/gst/mod.rs", "use gstreamer as gst; use crate::pipeline::ports::FrameSource; fn f() { std::env::set(); }"),
        ("src/overlay/mat.rs", "#[expect(unsafe_code, reason = \"r\")] fn f() { unsafe { opencv::core::Mat::new() } }"),
        ("src/kernels/x86_64/avx2.rs", "use std::arch::x86_64::*; #[target_feature(enable = \"avx2\")] unsafe fn f() {}"),
        ("src/cmds/run.rs", "use fovea::pipeline; use fovea::gst; use anyhow::Context; mod queue {}"),
        ("src/main.rs", "mod cmds; fn main() { cmds::run() }"),
        ("src/lib.rs", "pub mod pipeline; pub mod queue;"),
        (
            "src/frame/mod.rs",
            "/// See `crate::pipeline` and `std::env`.\nfn f() { let elapsed = 1; <T as Gst>::gstreamer::x(); }",
        ),
        ("src/frame/mod.rs", "fn f() { g(\"gstreamer::init unsafe\"); detection.pipeline(); let opencv = 1; }"),
        ("trainer/src/fit.rs", "use fovea::{eval::Metrics, retinanet::Anchors}; use std::time::Instant; use tch::Tensor;"),
        ("trainer/src/fit.rs", "use crate::overlay::x; fn f() { Instant::now(); std::env::args(); }"),
        ("trainer/src/cuda.rs", "fn f() { unsafe { dlopen() } }"),
    ];
    for &(file, source) in ALLOWED {
        let found = check_source(file, source);
        assert!(found.is_empty(), "{file}: {source}\nreported:\n{}", list(&found));
    }
}

#[test]
fn planted_violations_in_manifests_are_found() {
    const ROOT: &str = "[dependencies]\ngstreamer = { version = \"0.25\", optional = true }\nserde = \"1\"\n";
    const TRAINER: &str = "[dependencies]\nfovea = { path = \"..\", default-features = false }\n";
    assert!(check_manifests(ROOT, TRAINER).is_empty());
    // root, trainer, file, line
    let planted = [
        ("[dependencies]\nserde = \"1\"\nopencv = \"0.101\"\n", TRAINER, "Cargo.toml", 3),
        ("[dependencies]\ngstreamer-app = { version = \"0.25\" }\n", TRAINER, "Cargo.toml", 2),
        ("[target.'cfg(unix)'.dependencies]\ntch = \"0.24\"\n", TRAINER, "Cargo.toml", 2),
        ("[dependencies]\nfovea-train = { path = \"trainer\" }\n", TRAINER, "Cargo.toml", 2),
        (ROOT, "[dependencies]\nfovea = { path = \"..\" }\n", "trainer/Cargo.toml", 2),
        (
            ROOT,
            "[dependencies]\nfovea = { path = \"..\", default-features = false, features = [\"gst\"] }\n",
            "trainer/Cargo.toml",
            2,
        ),
        (ROOT, "[dependencies]\nserde = \"1\"\n", "trainer/Cargo.toml", 1),
        (
            ROOT,
            "[dependencies]\nfovea = { path = \"..\", default-features = false }\ntract-onnx = \"0.23\"\n",
            "trainer/Cargo.toml",
            3,
        ),
    ];
    for (root, trainer, file, line) in planted {
        let found = check_manifests(root, trainer);
        assert!(found.iter().any(|v| v.file == file && v.line == line), "{root}\n{trainer}\nfound:\n{}", list(&found));
    }
}
