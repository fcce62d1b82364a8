//! What can be known of a source before anything is opened.

use super::ports::SourceError;
use super::spec::{SourceKind, SourceSpec};
use crate::images;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Whether what a source names is there: file, pictures, camera. Nothing is started, and no named pipe is opened: whoever
/// writes to it would take that for its reader.
///
/// # Errors
/// [`SourceError::Request`] with the remedy.
pub fn source(spec: &SourceSpec) -> Result<(), SourceError> {
    match &spec.kind {
        SourceKind::File(path) => file(path),
        SourceKind::Images { folder, .. } => pictures(folder).map(drop),
        SourceKind::V4l2 { device, .. } => camera(device),
        SourceKind::Test { n_frames: Some(0), .. } => {
            Err(SourceError::Request(format!("{spec}: no frames were asked for; the smallest number is frames=1")))
        }
        _ => Ok(()),
    }
}

fn file(path: &Path) -> Result<(), SourceError> {
    let shown = path.display();
    let readable = |metadata: fs::Metadata| -> io::Result<fs::Metadata> {
        if metadata.is_file() {
            fs::File::open(path)?;
        }
        Ok(metadata)
    };
    match fs::metadata(path).and_then(readable) {
        Err(error) => {
            Err(SourceError::Request(format!("cannot read {shown}: {error}; --source names a video file, a URL or a camera")))
        }
        Ok(metadata) if metadata.is_file() && metadata.len() == 0 => {
            Err(SourceError::Request(format!("{shown}: the file is empty; record or copy it again")))
        }
        Ok(_) => Ok(()),
    }
}

/// The pictures of a folder, by name.
///
/// # Errors
/// [`SourceError::Request`] if it cannot be read or holds none.
pub fn pictures(folder: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let shown = folder.display();
    let unreadable = |error: io::Error| SourceError::Request(format!("cannot read {shown}: {error}; check path and permissions"));
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        if extension.is_some_and(|extension| images::EXTENSIONS.contains(&extension.as_str())) && path.is_file() {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        let extensions = images::EXTENSIONS.join(", .");
        return Err(SourceError::Request(format!("{shown} holds no pictures; files ending in .{extensions} are read")));
    }
    paths.sort();
    Ok(paths)
}

fn camera(device: &Path) -> Result<(), SourceError> {
    let shown = device.display();
    let Err(error) = fs::metadata(device) else { return Ok(()) };
    let is_camera = |name: &String| name.starts_with("video");
    let entries = fs::read_dir("/dev").into_iter().flatten().flatten();
    let mut cameras: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(is_camera).collect();
    cameras.sort();
    let found = match cameras.as_slice() {
        [] => "there is no camera at all (no /dev/video*)".to_owned(),
        cameras => format!("there are /dev/{}; `v4l2-ctl --list-devices` names them", cameras.join(", /dev/")),
    };
    Err(SourceError::Request(format!("{shown} does not exist ({error}): is the camera plugged in? {found}")))
}
