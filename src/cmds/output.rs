//! Where machine-readable results go: a file, or stdout for `-`.

use super::Failure;
use anyhow::Context;
use clap::builder::{PathBufValueParser, TypedValueParser};
use fovea::pipeline::detections::{Output, probe_writable};
use serde::Serialize;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// A result file that is tried before the work starts, so that hours are not spent on what cannot be written. It
/// keeps what it held until [`Self::write`]; one that was not there is made only then.
#[derive(Debug)]
pub(crate) struct ResultFile {
    target: Target,
}

#[derive(Debug)]
enum Target {
    Stdout,
    /// A pipe or a device.
    Special {
        path: PathBuf,
        file: File,
    },
    File(PathBuf),
}

impl ResultFile {
    /// Opens `path`, or stdout for `-`; makes its folder, which stays.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        if Output::new(path.to_owned()) == Output::Stdout {
            return Ok(Self { target: Target::Stdout });
        }
        let is_special = fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
        let target = || -> io::Result<Target> {
            if is_special {
                return Ok(Target::Special { path: path.to_owned(), file: OpenOptions::new().append(true).open(path)? });
            }
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            folder.map_or(Ok(()), fs::create_dir_all)?;
            probe_writable(path)?;
            Ok(Target::File(path.to_owned()))
        };
        let target = target().with_context(|| format!("cannot write {}; choose a folder that can be written", path.display()));
        Ok(Self { target: target.map_err(Failure::request)? })
    }

    /// Whether results go to stdout, where nothing else should be then.
    pub(crate) const fn is_stdout(&self) -> bool {
        matches!(self.target, Target::Stdout)
    }

    /// Replaces what the file held by `text`; if that fails, a regular file still holds what it held.
    pub(crate) fn write(self, text: &str) -> Result<(), Failure> {
        match self.target {
            Target::Stdout => io::stdout().lock().write_all(text.as_bytes()).context("cannot write to stdout"),
            Target::Special { path, mut file } => {
                let written = file.write_all(text.as_bytes()).and_then(|()| file.flush());
                written.with_context(|| format!("cannot write {}", path.display()))
            }
            Target::File(path) => replace(&path, text).with_context(|| format!("cannot write {}", path.display())),
        }
        .map_err(Failure::failed)
    }
}

/// The path of a file to write, as an option names it.
pub(crate) fn output_path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| Output::named(path.clone()).map(|_| path))
}

/// Refuses outputs that are one file, or that are read.
pub(crate) fn keep_apart<'a>(
    read: impl IntoIterator<Item = &'a Path>,
    written: impl IntoIterator<Item = &'a Path>,
) -> anyhow::Result<()> {
    let mut taken: Vec<PathBuf> = read.into_iter().map(place).collect();
    let is_one = |a: &PathBuf, b: &PathBuf| a == b || is_hard_link(a, b);
    // Devices such as /dev/null may be named twice.
    for path in written.into_iter().filter(|path| *path != Path::new("-") && (path.is_file() || !path.exists())) {
        let place = place(path);
        if taken.iter().any(|other| is_one(other, &place)) {
            let path = path.display();
            anyhow::bail!("{path} would be overwritten: it is named twice; give every output a name of its own");
        }
        taken.push(place);
    }
    Ok(())
}

/// What belongs to a model: the files that its folder has for it, or the network alone.
pub(crate) fn model_files(model: &Path) -> Vec<PathBuf> {
    let is_of_model = |path: &PathBuf| {
        let is_text = matches!(path.file_name().and_then(OsStr::to_str), Some("labels.txt" | "golden.json" | "README.md"));
        let extension = path.extension().and_then(OsStr::to_str);
        path.is_file() && (is_text || matches!(extension, Some("toml" | "onnx" | "safetensors")))
    };
    let entries = fs::read_dir(model).into_iter().flatten().flatten();
    let files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_of_model).collect();
    if files.is_empty() { vec![model.to_owned()] } else { files }
}

/// Whether two paths are names of one file.
fn is_hard_link(a: &Path, b: &Path) -> bool {
    let inode = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    matches!((inode(a), inode(b)), (Ok(a), Ok(b)) if a == b)
}

/// Where a path leads, whether or not it is there: its folders may be yet to be made.
fn place(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let real = absolute.ancestors().find_map(|above| Some((above.canonicalize().ok()?, absolute.strip_prefix(above).ok()?)));
    let Some((mut place, rest)) = real else { return absolute };
    for component in rest.components() {
        match component {
            Component::ParentDir => _ = place.pop(),
            component => place.push(component),
        }
    }
    place
}

/// Writes `value` as one line of JSON where it is asked for, and `table` to stdout unless the JSON goes there. The JSON
/// comes first, and neither waits for the other to work: the first failure is returned.
pub(crate) fn write_report(json: Option<ResultFile>, value: &impl Serialize, table: &str) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(Failure::failed)?;
    write_results(json, &(text + "\n"), table)
}

/// As [`write_report`], of JSON that is text already.
pub(crate) fn write_results(json: Option<ResultFile>, json_text: &str, table: &str) -> Result<(), Failure> {
    let is_table_wanted = !json.as_ref().is_some_and(ResultFile::is_stdout);
    let json_written = json.map_or(Ok(()), |json| json.write(json_text));
    let table_written = if is_table_wanted { write_stdout(table) } else { Ok(()) };
    json_written.and(table_written)
}

/// Writes `text` to stdout.
pub(crate) fn write_stdout(text: &str) -> Result<(), Failure> {
    ResultFile { target: Target::Stdout }.write(text)
}

/// Puts a file with `text` in the place of the regular file `path`, at once and with the same rights.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let is_new = !path.exists();
    if is_new {
        File::create(path)?;
    }
    // A link stays a link.
    let path = path.canonicalize()?;
    let rights = fs::metadata(&path)?.permissions();
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".partial");
    let partial = path.with_file_name(name);
    let mut file = match File::create(&partial) {
        Ok(file) => file,
        // A folder in which nothing can be made, and in it a file that can be written.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return fs::write(&path, text),
        Err(error) => return Err(error),
    };
    let written = file
        .set_permissions(rights)
        .and_then(|()| file.write_all(text.as_bytes()))
        // Some file systems find out only now that they are full.
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&partial, &path));
    if written.is_err() {
        // What was written of it is of no use; the failure that matters is reported.
        let _ = fs::remove_file(&partial);
        if is_new {
            let _ = fs::remove_file(&path);
        }
    }
    written
}
