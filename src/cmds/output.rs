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
    Stream(Stream),
    File(PathBuf),
}

/// What has each text at once.
#[derive(Debug)]
pub(crate) enum Stream {
    Stdout,
    /// A pipe or a device.
    Special {
        path: PathBuf,
        file: File,
    },
}

impl Stream {
    fn write(&mut self, text: &str) -> Result<(), Failure> {
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("cannot write to stdout")
            }
            Self::Special { path, file } => {
                let written = file.write_all(text.as_bytes()).and_then(|()| file.flush());
                written.with_context(|| format!("cannot write {}", path.display()))
            }
        }
        .map_err(Failure::failed)
    }
}

impl ResultFile {
    /// Opens `path`, or stdout for `-`; makes its folder, which stays.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        if Output::new(path.to_owned()) == Output::Stdout {
            return Ok(Self { target: Target::Stream(Stream::Stdout) });
        }
        let is_special = fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
        let target = || -> io::Result<Target> {
            if is_special {
                let file = OpenOptions::new().append(true).open(path)?;
                return Ok(Target::Stream(Stream::Special { path: path.to_owned(), file }));
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
        matches!(self.target, Target::Stream(Stream::Stdout))
    }

    /// Replaces what the file held by `text`; if that fails, a regular file still holds what it held.
    pub(crate) fn write(self, text: &str) -> Result<(), Failure> {
        match self.target {
            Target::Stream(mut stream) => stream.write(text),
            Target::File(path) => {
                let written = replace(&path, text).with_context(|| format!("cannot write {}", path.display()));
                written.map_err(Failure::failed)
            }
        }
    }

    /// To be written line by line.
    pub(crate) fn into_lines(self) -> Result<Lines, Failure> {
        Ok(match self.target {
            Target::Stream(stream) => Lines::Stream(stream),
            Target::File(path) => {
                let new = Replacement::begin(&path).with_context(|| format!("cannot write {}", path.display()));
                Lines::File { new: new.map_err(Failure::failed)?, len: 0 }
            }
        })
    }
}

/// Lines of results of long work, written as they come. A pipe has each at once; a regular file holds what it held
/// until [`Self::finish`], and where the work is killed before, what was done lies beside it as `.NAME.partial`.
#[derive(Debug)]
pub(crate) enum Lines {
    Stream(Stream),
    File {
        new: Replacement,
        /// Of whole lines, in bytes.
        len: u64,
    },
}

impl Lines {
    /// Writes one or more lines.
    pub(crate) fn push(&mut self, text: &str) -> Result<(), Failure> {
        match self {
            Self::Stream(stream) => stream.write(text),
            Self::File { new, len } => {
                if let Err(error) = new.file.write_all(text.as_bytes()) {
                    // A torn line; if it stays, so does the reason for it.
                    let _ = new.file.set_len(*len);
                    return Err(new.left(*len, error));
                }
                *len += u64::try_from(text.len()).unwrap_or(0);
                Ok(())
            }
        }
    }

    /// Puts the file in its place.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        match self {
            Self::Stream(_) => Ok(()),
            Self::File { new, len } => new.finish().map_err(|error| new.left(len, error)),
        }
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
    let is_table_wanted = !json.as_ref().is_some_and(ResultFile::is_stdout);
    let json_written = json.map_or(Ok(()), |json| json.write(&(text + "\n")));
    let table_written = if is_table_wanted { write_stdout(table) } else { Ok(()) };
    json_written.and(table_written)
}

/// Writes `text` to stdout.
pub(crate) fn write_stdout(text: &str) -> Result<(), Failure> {
    Stream::Stdout.write(text)
}

/// A regular file that takes the place of another when it is whole, with the same rights.
#[derive(Debug)]
pub(crate) struct Replacement {
    /// As it was asked for.
    name: PathBuf,
    /// Where that leads.
    path: PathBuf,
    /// What is written to; `None`: the file itself, in a folder where nothing can be made.
    partial: Option<PathBuf>,
    file: File,
    is_new: bool,
}

impl Replacement {
    fn begin(name: &Path) -> io::Result<Self> {
        let is_new = !name.exists();
        let is_link = fs::symlink_metadata(name).is_ok_and(|metadata| metadata.is_symlink());
        if is_new && is_link {
            File::create(name)?;
        }
        // A link stays a link.
        let path = if is_new && !is_link { name.to_owned() } else { name.canonicalize()? };
        let name = name.to_owned();
        let mut hidden = OsString::from(".");
        hidden.push(path.file_name().unwrap_or_default());
        hidden.push(".partial");
        let partial = path.with_file_name(hidden);
        match File::create(&partial) {
            Ok(file) => {
                if let Ok(metadata) = fs::metadata(&path) {
                    file.set_permissions(metadata.permissions())?;
                }
                Ok(Self { name, path, partial: Some(partial), file, is_new })
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let file = File::create(&path)?;
                Ok(Self { name, path, partial: None, file, is_new })
            }
            Err(error) => Err(error),
        }
    }

    /// Puts it in its place.
    fn finish(&self) -> io::Result<()> {
        // Some file systems find out only now that they are full.
        self.file.sync_all()?;
        self.partial.as_ref().map_or(Ok(()), |partial| fs::rename(partial, &self.path))
    }

    /// The error of a file that is not put in its place; where `len` bytes are worth it, it stays.
    fn left(&self, len: u64, error: io::Error) -> Failure {
        let name = self.name.display();
        match &self.partial {
            Some(partial) if len > 0 => {
                let partial = partial.display();
                Failure::failed(anyhow::anyhow!("cannot write {name}: {error}; the lines until now are in {partial}"))
            }
            _ => {
                self.abandon();
                Failure::failed(anyhow::anyhow!("cannot write {name}: {error}"))
            }
        }
    }

    /// Leaves what was there; what was written of it is of no use, and the failure that matters is reported.
    fn abandon(&self) {
        let Some(partial) = &self.partial else { return };
        let _ = fs::remove_file(partial);
        if self.is_new {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Puts a file with `text` in the place of the regular file `path`, at once.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut new = Replacement::begin(path)?;
    let written = new.file.write_all(text.as_bytes()).and_then(|()| new.finish());
    if written.is_err() {
        new.abandon();
    }
    written
}
