//! Whether a video file is as long as its container says: most demuxers report the end of a truncated file as an
//! ordinary one.

use std::fs::File;
use std::io::{Read, Result, Seek, SeekFrom};
use std::path::Path;

/// Size of a file in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Length {
    /// What is on the disk.
    pub(super) found: u64,
    /// What the container says there must be.
    pub(super) stated: u64,
}

/// Length of the AVI, MP4 or Matroska file at `path`. `None` where it cannot be read, is of another kind (opening a pipe would
/// wait for somebody who writes to it), or was not finalised by whoever wrote it.
pub(super) fn length(path: &Path) -> Option<Length> {
    std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    let mut file = File::open(path).ok()?;
    let found = file.metadata().ok()?.len();
    let head: [u8; 12] = read_at(&mut file, 0).ok()?;
    let stated = match head {
        // FFmpeg writes this length where it cannot go back to fill it in.
        [b'R', b'I', b'F', b'F', 0xff, 0xff, 0xff, 0xff, ..] => None,
        [b'R', b'I', b'F', b'F', a, b, c, d, ..] => Some(u64::from(u32::from_le_bytes([a, b, c, d])) + 8),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => end_of_boxes(&mut file, found).ok().flatten(),
        [0x1a, 0x45, 0xdf, 0xa3, ..] => end_of_segment(&mut file, &head),
        _ => None,
    };
    // A writer that was killed leaves a length of nothing.
    stated.filter(|stated| *stated > 8).map(|stated| Length { found, stated })
}

fn read_at<const N: usize>(file: &mut File, at: u64) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Where the last box of an MP4 file ends. What follows and is no box, such as padding with zeros, is not missed by anyone.
fn end_of_boxes(file: &mut File, found: u64) -> Result<Option<u64>> {
    let mut at = 0_u64;
    while at < found {
        if found - at < 8 {
            let mut rest = Vec::new();
            file.seek(SeekFrom::Start(at))?;
            file.take(8).read_to_end(&mut rest)?;
            let is_padding = rest.iter().all(|byte| *byte == 0);
            return Ok(Some(if is_padding { at } else { at + 8 }));
        }
        let [a, b, c, d, kind @ ..]: [u8; 8] = read_at(file, at)?;
        // Four letters; Apple's begin with a copyright sign.
        if !kind.iter().all(|byte| matches!(byte, b' '..=b'~' | 0xa9)) {
            return Ok(Some(at));
        }
        let size = match u32::from_be_bytes([a, b, c, d]) {
            // To the end of the file, however long that is.
            0 => return Ok(None),
            1 => u64::from_be_bytes(read_at(file, at + 8)?),
            size => u64::from(size),
        };
        match at.checked_add(size) {
            Some(end) if size >= 8 => at = end,
            _ => return Ok(None),
        }
    }
    Ok(Some(at))
}

/// Where the segment of a Matroska file ends.
fn end_of_segment(file: &mut File, head: &[u8; 12]) -> Option<u64> {
    let segment_at = 4 + number(&head[4..])?;
    let segment: [u8; 12] = read_at(file, segment_at).ok()?;
    match segment {
        [0x18, 0x53, 0x80, 0x67, ..] => segment_at.checked_add(4)?.checked_add(number(&segment[4..])?),
        _ => None,
    }
}

/// Bytes that an EBML length field and what it measures take; `None` for the length that says "unknown".
fn number(bytes: &[u8]) -> Option<u64> {
    let n_bytes = bytes.first()?.leading_zeros() + 1;
    let all = bytes.iter().take(usize::try_from(n_bytes).ok()?);
    let mask = (1_u64 << (7 * n_bytes).min(63)) - 1;
    let value = all.fold(0_u64, |value, byte| (value << 8) | u64::from(*byte)) & mask;
    (n_bytes <= 8 && value < mask).then_some(value + u64::from(n_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_containers_state() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("video");
        let avi = b"RIFF\x16\0\0\0AVI LISTmovi0123456789".to_vec();
        let mp4 = b"\0\0\0\x0cftypisom\0\0\0\x01mdat\0\0\0\0\0\0\0\x12xx\0\0\0\x08free".to_vec();
        let mkv = b"\x1a\x45\xdf\xa3\x82ab\x18\x53\x80\x67\x01\0\0\0\0\0\0\x06abcdef".to_vec();
        for (bytes, stated) in [(&avi, 30), (&mp4, 38), (&mkv, 25)] {
            for n_missing in [0, 1, 3] {
                let found = bytes.len() - n_missing;
                std::fs::write(&path, &bytes[..found]).unwrap();
                let found = u64::try_from(found).unwrap();
                assert_eq!(length(&path), Some(Length { found, stated }));
            }
        }
        for padding in [b"\0\0\0".as_slice(), &[0; 8], b"\0\0\0\x20\0\x01\x02\x03 and more"] {
            std::fs::write(&path, [mp4.as_slice(), padding].concat()).unwrap();
            let found = u64::try_from(mp4.len() + padding.len()).unwrap();
            assert_eq!(length(&path), Some(Length { found, stated: 38 }));
        }
        for unknown in [
            b"RIFF\0\0\0\0AVI LISTmovi".as_slice(),
            b"RIFF\xff\xff\xff\xffAVI LISTmovi",
            b"\x1a\x45\xdf\xa3\x82ab\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xffabcdef",
            b"\0\0\0\x0cftypisom\0\0\0\0mdat12345",
            b"this is a text file",
            b"",
        ] {
            std::fs::write(&path, unknown).unwrap();
            assert_eq!(length(&path), None, "{unknown:?}");
        }
    }
}
