//! Detections as JSON lines, one a frame: layout version 1 of the contract.
//!
//! A line is built in a buffer that is kept and handed to the system in one write: a process that is killed leaves
//! whole lines, and `tail -f` sees them as they come.

use crate::detection::Detection;
use crate::frame::Stamps;
use serde::ser::{Serialize, SerializeSeq, Serializer};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

/// Where results are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Standard output, written `-`.
    Stdout,
    /// A file, replaced if it is there.
    File(PathBuf),
}

impl Output {
    /// `-` (or `/dev/stdout`) is standard output, everything else a path.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        if path.as_os_str() == "-" || path.as_os_str() == "/dev/stdout" { Self::Stdout } else { Self::File(path) }
    }

    /// As [`Self::new`], of what a user named.
    ///
    /// # Errors
    /// [`NoFile`] for a URL: as a path it would make folders with its password in their names.
    pub fn named(path: PathBuf) -> Result<Self, NoFile> {
        if path.to_string_lossy().contains("://") { Err(NoFile) } else { Ok(Self::new(path)) }
    }

    /// The file, opened for writing; `None` for standard output.
    fn create(&self) -> Result<Option<File>, OutputError> {
        let Self::File(path) = self else { return Ok(None) };
        File::create(path).map(Some).map_err(|source| OutputError::Create { path: path.clone(), source })
    }

    /// Whether it is a named pipe, whose opening waits for somebody who reads it.
    #[must_use]
    pub fn is_pipe(&self) -> bool {
        let Self::File(path) = self else { return false };
        std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo())
    }

    /// Checks that a file could be created, without touching one that is there.
    ///
    /// # Errors
    /// [`OutputError::Create`] naming the file.
    pub fn probe(&self) -> Result<(), OutputError> {
        let Self::File(path) = self else { return Ok(()) };
        probe_writable(path).map_err(|source| OutputError::Create { path: path.clone(), source })
    }
}

/// Checks that `path` can be created or overwritten: one that is there is opened for appending, else a file is made and
/// removed again. A link counts as there, wherever it leads. A named pipe is not touched: whoever reads it would take
/// the probe for the end.
///
/// # Errors
/// What the system says.
pub fn probe_writable(path: &std::path::Path) -> io::Result<()> {
    let existed = match std::fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_fifo() => return Ok(()),
        found => found.is_ok(),
    };
    File::options().append(true).create(true).open(path)?;
    if existed {
        return Ok(());
    }
    // Of a link, what it leads to was made.
    let is_link = std::fs::symlink_metadata(path)?.is_symlink();
    std::fs::remove_file(if is_link { path.canonicalize()? } else { path.to_owned() })
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stdout => f.write_str("standard output"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Adds number, then class, score and box of each detection to a digest, little endian.
pub fn digest_detections(detections: &[Detection], digest: &mut Sha256) {
    digest.update(u64::try_from(detections.len()).unwrap_or(u64::MAX).to_le_bytes());
    for detection in detections {
        digest.update(detection.class_id.0.to_le_bytes());
        digest.update(detection.score.to_le_bytes());
        for edge in detection.bbox.to_array() {
            digest.update(edge.to_le_bytes());
        }
    }
}

/// A result is asked for where none can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("results go into a file, or to standard output (-); a URL is neither")]
pub struct NoFile;

/// Why results cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// The file cannot be made.
    #[error("cannot write {path}: {source}; name a file in a folder that exists and that you may write to")]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Writing stopped in the middle.
    #[error("writing {output} failed: {source}; what was written before is kept")]
    Write {
        /// The file, or standard output.
        output: String,
        /// What the system says: the disk is full.
        source: io::Error,
    },
}

/// One line of the file.
#[derive(serde::Serialize)]
struct Line<'a> {
    v: u32,
    stream: &'a str,
    frame: u64,
    pts_ns: Option<u64>,
    width: usize,
    height: usize,
    detections: Objects<'a>,
}

/// The list `detections` of a line.
#[derive(Debug, Clone, Copy)]
pub struct Objects<'a> {
    /// What was found.
    pub detections: &'a [Detection],
    /// Class names by class id.
    pub labels: &'a [String],
}

#[derive(serde::Serialize)]
struct Object<'a> {
    class: &'a str,
    class_id: u16,
    score: f32,
    #[serde(rename = "box")]
    bbox: [f32; 4],
    track: Option<u64>,
}

impl Serialize for Objects<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(self.detections.len()))?;
        for Detection { bbox, class_id, score } in self.detections {
            seq.serialize_element(&Object {
                class: self.labels.get(class_id.index()).map_or("", String::as_str),
                class_id: class_id.0,
                score: *score,
                bbox: bbox.to_array(),
                track: None,
            })?;
        }
        seq.end()
    }
}

/// Writes detections; nothing is allocated per frame once the buffer has grown.
pub struct DetectionsWriter {
    output: Output,
    /// `None` until [`Self::start`].
    out: Option<Box<dyn Write + Send>>,
    /// The same where it is a regular file, and how long it is.
    file: Option<(File, u64)>,
    line: Vec<u8>,
}

impl DetectionsWriter {
    /// For `output`, which is not touched before [`Self::start`].
    #[must_use]
    pub const fn new(output: Output) -> Self {
        Self { output, out: None, file: None, line: Vec::new() }
    }

    /// Opens the output, replacing what was there, unless it is open.
    ///
    /// # Errors
    /// [`OutputError::Create`] naming the file.
    pub fn start(&mut self) -> Result<(), OutputError> {
        if self.out.is_some() {
            return Ok(());
        }
        self.out = Some(match self.output.create()? {
            None => Box::new(io::stdout()),
            Some(file) => {
                let is_regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
                self.file = file.try_clone().ok().filter(|_| is_regular).map(|file| (file, 0));
                Box::new(file)
            }
        });
        Ok(())
    }

    /// Writes the line of one frame of `stream`, a `width` x `height` picture.
    ///
    /// # Errors
    /// [`OutputError::Write`] naming the file.
    pub fn write(
        &mut self,
        stream: &str,
        stamps: &Stamps,
        (width, height): (usize, usize),
        detections: &[Detection],
        labels: &[String],
    ) -> Result<(), OutputError> {
        let pts_ns = stamps.pts.map(|pts| u64::try_from(pts.as_nanos()).unwrap_or(u64::MAX));
        let detections = Objects { detections, labels };
        let line = Line { v: 1, stream, frame: stamps.id.0, pts_ns, width, height, detections };
        self.line.clear();
        let written = serde_json::to_writer(&mut self.line, &line).map_err(io::Error::from).and_then(|()| {
            self.line.push(b'\n');
            let out = self.out.as_mut().ok_or_else(|| io::Error::other("it was not opened"))?;
            out.write_all(&self.line)
        });
        if let Some((file, len)) = &mut self.file {
            match written {
                Ok(()) => *len += u64::try_from(self.line.len()).unwrap_or_default(),
                // A part of a line is of no use to who reads the others; where it cannot be taken back it stays.
                Err(_) => _ = file.set_len(*len),
            }
        }
        written.map_err(|source| OutputError::Write { output: self.output.to_string(), source })
    }

    /// Makes sure that everything has reached the system.
    ///
    /// # Errors
    /// [`OutputError::Write`] naming the file.
    pub fn finish(&mut self) -> Result<(), OutputError> {
        let flushed = self.out.as_mut().map_or(Ok(()), |out| out.flush());
        flushed.map_err(|source| OutputError::Write { output: self.output.to_string(), source })
    }
}

impl std::fmt::Debug for DetectionsWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DetectionsWriter").field("output", &self.output).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detection::{BBox, ClassId};
    use crate::frame::FrameId;
    use std::time::Duration;

    #[test]
    fn lines_are_those_of_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.jsonl");
        let mut writer = DetectionsWriter::new(Output::new(path.clone()));
        writer.start().unwrap();
        let labels = ["person".to_owned(), "car".to_owned()];
        let detection = Detection { bbox: BBox::new(1.5, 2.0, 30.25, 40.0), class_id: ClassId(1), score: 0.87 };
        let stamps = Stamps { id: FrameId(7), pts: Some(Duration::from_millis(40)), ..Stamps::default() };
        writer.write("street", &stamps, (640, 480), &[detection], &labels).unwrap();
        writer.write("street", &Stamps::default(), (1, 1), &[], &labels).unwrap();
        // Nothing waits in a buffer.
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            concat!(
                r#"{"v":1,"stream":"street","frame":7,"pts_ns":40000000,"width":640,"height":480,"detections":"#,
                r#"[{"class":"car","class_id":1,"score":0.87,"box":[1.5,2.0,30.25,40.0],"track":null}]}"#,
                "\n",
                r#"{"v":1,"stream":"street","frame":0,"pts_ns":null,"width":1,"height":1,"detections":[]}"#,
                "\n"
            )
        );
        writer.finish().unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_probe_leaves_everything_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("there"), "kept").unwrap();
        for (link, to) in [("dangling", "later"), ("working", "there")] {
            std::os::unix::fs::symlink(path(to), path(link)).unwrap();
        }
        for name in ["there", "new", "dangling", "working"] {
            probe_writable(&path(name)).unwrap();
        }
        assert!(["dangling", "working"].iter().all(|link| path(link).is_symlink()));
        assert!(!path("later").exists() && !path("new").exists());
        assert_eq!(std::fs::read_to_string(path("there")).unwrap(), "kept");
    }

    #[test]
    fn a_full_disk_and_a_missing_folder_are_named() {
        let mut writer = DetectionsWriter::new(Output::File("/dev/full".into()));
        writer.start().unwrap();
        let error = writer.write("s", &Stamps::default(), (1, 1), &[], &[]).unwrap_err().to_string();
        assert!(error.contains("/dev/full") && error.contains("No space left"), "{error}");
        let missing = Output::File("/nowhere/d.jsonl".into());
        let error = missing.create().err().unwrap().to_string();
        assert!(error.contains("/nowhere/d.jsonl") && error.contains("folder that exists"), "{error}");
        assert!(missing.probe().is_err());
        assert_eq!(Output::new("-".into()), Output::Stdout);
        assert_eq!(Output::named("rtsp://me:secret@host/1".into()), Err(NoFile));
    }
}
