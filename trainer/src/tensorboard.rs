//! Scalars for TensorBoard: event files, written by hand, as two of its messages are all that is needed.
//!
//! A file is a sequence of records (length, its checksum, bytes, their checksum), each a serialised `Event`.
//! A resumed run starts a new file whose first record tells the reader which later steps of older files to forget.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An event file that is appended to.
#[derive(Debug)]
pub(crate) struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// Starts a file in `dir`; steps from `first` on replace those of older files.
    pub(crate) fn create(dir: &Path, first: usize) -> Result<Self> {
        let now = since_epoch();
        let path = dir.join(format!("events.out.tfevents.{:010}.{}.fovea", now.as_secs(), std::process::id()));
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut events = Self { file, path };
        events.record(&event(0, |body| bytes(body, 3, b"brain.Event:2")))?;
        // SessionLog { status: START }.
        events.record(&event(first, |body| bytes(body, 7, &[1 << 3, 1])))?;
        Ok(events)
    }

    /// Adds values at a step, by name.
    pub(crate) fn append(&mut self, step: usize, scalars: &[(&str, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in scalars {
            let mut scalar = Vec::new();
            bytes(&mut scalar, 1, tag.as_bytes());
            scalar.push(2 << 3 | 5);
            scalar.extend((*value as f32).to_le_bytes());
            bytes(&mut summary, 1, &scalar);
        }
        self.record(&event(step, |body| bytes(body, 5, &summary)))
    }

    fn record(&mut self, body: &[u8]) -> Result<()> {
        let length = (body.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(body.len() + 16);
        record.extend(length);
        record.extend(masked(crc32c(&length)).to_le_bytes());
        record.extend(body);
        record.extend(masked(crc32c(body)).to_le_bytes());
        self.file.write_all(&record).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn since_epoch() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// `Event { wall_time, step, … }`.
fn event(step: usize, what: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut body = vec![1 << 3 | 1];
    body.extend(since_epoch().as_secs_f64().to_le_bytes());
    body.push(2 << 3);
    varint(&mut body, step as u64);
    what(&mut body);
    body
}

/// A field of bytes or text.
fn bytes(body: &mut Vec<u8>, field: u8, value: &[u8]) {
    body.push(field << 3 | 2);
    varint(body, value.len() as u64);
    body.extend(value);
}

fn varint(body: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        body.push(value as u8 | 0x80);
        value >>= 7;
    }
    body.push(value as u8);
}

/// CRC-32C (Castagnoli), bit by bit: a few hundred bytes a second.
fn crc32c(bytes: &[u8]) -> u32 {
    let step =
        |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (0x82F6_3B78 & (crc & 1).wrapping_neg()));
    !bytes.iter().fold(u32::MAX, step)
}

/// As TensorFlow stores a checksum.
const fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xA282_EAD8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_those_of_tensorflow() {
        // RFC 3720, B.4, and the check value of the polynomial.
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        let dir = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(dir.path(), 300).unwrap();
        events.append(300, &[("loss", 0.5)]).unwrap();
        let written = std::fs::read(&events.path).unwrap();
        let mut rest = &written[..];
        let mut bodies = Vec::new();
        while !rest.is_empty() {
            let len = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked(crc32c(&rest[..8])).to_le_bytes());
            let body = &rest[12..12 + len];
            assert_eq!(rest[12 + len..16 + len], masked(crc32c(body)).to_le_bytes());
            // Without the time of day.
            bodies.push(body[9..].to_vec());
            rest = &rest[16 + len..];
        }
        assert_eq!(bodies[0], [&[0x10, 0, 0x1A, 13][..], b"brain.Event:2"].concat());
        assert_eq!(bodies[1], [0x10, 0xAC, 2, 0x3A, 2, 8, 1]);
        let summary = [&[0x10, 0xAC, 2, 0x2A, 13, 0x0A, 11, 0x0A, 4][..], b"loss", &[0x15, 0, 0, 0, 0x3F]].concat();
        assert_eq!(bodies[2], summary);
    }
}
