//! Where machine-readable results go: a file, or stdout for `-`.

use super::Failure;
use anyhow::Context;
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A result file that is opened before the work starts, so that hours are not spent on what cannot be written. It
/// keeps what it held until [`Self::write`]; a file that was made for nothing is removed.
#[derive(Debug)]
pub(crate) struct ResultFile {
    target: Target,
}

#[derive(Debug)]
enum Target {
    Stdout,
    File { path: PathBuf, file: File, is_ours: bool },
}

impl ResultFile {
    /// Opens `path`, or stdout for `-`.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") {
            return Ok(Self { target: Target::Stdout });
        }
        let is_ours = !path.exists();
        let file = OpenOptions::new().append(true).create(true).open(path);
        let file =
            file.with_context(|| format!("cannot write {}; choose a folder that exists and can be written", path.display()));
        Ok(Self { target: Target::File { path: path.to_owned(), file: file.map_err(Failure::request)?, is_ours } })
    }

    /// Whether results go to stdout, where nothing else should be then.
    pub(crate) const fn is_stdout(&self) -> bool {
        matches!(self.target, Target::Stdout)
    }

    /// Replaces what the file held by `text`.
    pub(crate) fn write(mut self, text: &str) -> Result<(), Failure> {
        match &mut self.target {
            Target::Stdout => io::stdout().lock().write_all(text.as_bytes()).context("cannot write to stdout"),
            Target::File { path, file, is_ours } => {
                *is_ours = false;
                // Pipes and devices have no length.
                let is_regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
                let emptied = if is_regular { file.set_len(0) } else { Ok(()) };
                let written = emptied.and_then(|()| file.write_all(text.as_bytes())).and_then(|()| file.flush());
                written.with_context(|| format!("cannot write {}", path.display()))
            }
        }
        .map_err(Failure::failed)
    }

    /// Replaces what the file held by `value` as one line of JSON.
    pub(crate) fn write_json(self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value).map_err(Failure::failed)?;
        self.write(&(text + "\n"))
    }
}

impl Drop for ResultFile {
    fn drop(&mut self) {
        if let Target::File { path, is_ours: true, .. } = &self.target {
            // Nothing was written: what cannot be removed is an empty file.
            let _ = std::fs::remove_file(path);
        }
    }
}
