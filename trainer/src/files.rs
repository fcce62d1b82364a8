//! Files: written whole or not at all, and listed.

use anyhow::{Context, Result};
use fovea::images;
use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Writes a file beside its place and down to the disk, then into its place: neither a cut nor a full disk leaves half a
/// file or takes the old one away.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    let written = File::create(&partial)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&partial, path));
    if written.is_err() {
        std::fs::remove_file(&partial).ok();
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Pictures of a folder and of the folders in it: names within the folder, in order.
pub(crate) fn list_pictures(dir: &Path) -> Result<Vec<String>> {
    list_files(dir, &images::EXTENSIONS)
}

/// Files with one of these extensions, lower case: names within the folder, in order.
pub(crate) fn list_files(dir: &Path, extensions: &[&str]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let (mut open, mut seen) = (vec![PathBuf::new()], HashSet::new());
    while let Some(folder) = open.pop() {
        let path = dir.join(&folder);
        // Links are followed, but not in circles.
        if path.canonicalize().is_ok_and(|real| !seen.insert(real)) {
            continue;
        }
        for entry in std::fs::read_dir(&path).with_context(|| format!("cannot read the folder {}", path.display()))? {
            let entry = entry?;
            let name = folder.join(entry.file_name());
            if dir.join(&name).is_dir() {
                open.push(name);
            } else if name.extension().is_some_and(|ext| extensions.contains(&&*ext.to_string_lossy().to_lowercase())) {
                names.push(name.to_string_lossy().into_owned());
            }
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linked_folders_are_looked_into_once() {
        let dir = tempfile::tempdir().unwrap();
        let (images, other) = (dir.path().join("images"), dir.path().join("other"));
        for folder in [&images, &other] {
            std::fs::create_dir(folder).unwrap();
        }
        std::fs::write(other.join("a.png"), b"").unwrap();
        std::os::unix::fs::symlink(&other, images.join("train")).unwrap();
        std::os::unix::fs::symlink(&images, other.join("circle")).unwrap();
        assert_eq!(list_pictures(&images).unwrap(), ["train/a.png"]);
    }
}
