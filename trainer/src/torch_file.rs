//! Arrays by name from files of other programs: PyTorch's (`torch.save`, as a zip archive and as it was before 1.6),
//! pickles of numpy arrays (detectron2's model zoo), safetensors.
//!
//! Pickles are described, never executed: see [`crate::pickle`].

use crate::pickle::{Id, Pickle, Value};
use crate::weights::{self, Array, Weights};
use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;
use std::path::Path;

/// Where a checkpoint keeps its arrays, if not at the top.
const STATE_KEYS: [&str; 4] = ["state_dict", "model", "model_state", "model_state_dict"];

/// Reads every array of floats.
pub(crate) fn read(path: &Path) -> Result<Weights> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read weights {}", path.display()))?;
    let weights = if bytes.starts_with(b"PK\x03\x04") {
        from_archive(&bytes)
    } else if bytes.starts_with(&[0x80]) {
        from_pickles(&bytes)
    } else {
        weights::read(path).map(|file| file.weights)
    };
    let weights = weights.with_context(|| path.display().to_string())?;
    ensure!(!weights.is_empty(), "{}: it holds no arrays of floats by name", path.display());
    Ok(weights)
}

/// `torch.save` since 1.6: a zip archive of `data.pkl` and one file for each storage.
fn from_archive(bytes: &[u8]) -> Result<Weights> {
    let files = zip_entries(bytes)?;
    let (name, data) = files.iter().find(|(name, _)| name.ends_with("/data.pkl")).context("the archive has no data.pkl")?;
    let root = name.trim_end_matches("data.pkl");
    ensure!(files.get(format!("{root}byteorder").as_str()).is_none_or(|order| *order == b"little"), "its numbers are big-endian");
    let pickle = Pickle::read(data)?;
    let storage = |key: &str| files.get(format!("{root}data/{key}").as_str()).copied();
    state(&pickle, &storage)
}

/// `torch.save` before 1.6, or a pickle of numpy arrays.
fn from_pickles(bytes: &[u8]) -> Result<Weights> {
    /// What every such file of PyTorch begins with: `0x1950a86a20f9469cfc6c`.
    const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
    let first = Pickle::read(bytes)?;
    if *first.get(first.root) != Value::Bytes(&MAGIC) {
        return state(&first, &|_| None);
    }
    // Magic number, protocol, facts about the machine, the object, the keys of its storages; then the storages.
    let mut at = first.len;
    let mut next = || -> Result<Pickle<'_>> {
        let pickle = Pickle::read(&bytes[at..])?;
        at += pickle.len;
        Ok(pickle)
    };
    let (_protocol, _machine, object, keys) = (next()?, next()?, next()?, next()?);
    let sizes = storage_sizes(&object);
    let mut storages = HashMap::new();
    for &key in keys.items(keys.root) {
        let key = keys.text(key).context("a storage without a key")?;
        let width = *sizes.get(key).with_context(|| format!("storage {key} belongs to nothing"))?;
        let header = bytes.get(at..at + 8).context("it is cut off")?;
        let len =
            usize::try_from(u64::from_le_bytes(header.try_into()?))?.checked_mul(width).context("a storage is too large")?;
        at += 8;
        storages.insert(key, at.checked_add(len).and_then(|end| bytes.get(at..end)).context("it is cut off")?);
        at += len;
    }
    state(&object, &|key| storages.get(key).copied())
}

/// Bytes of a number in each storage that a pickle names.
fn storage_sizes<'a>(pickle: &'a Pickle<'_>) -> HashMap<&'a str, usize> {
    let stored = pickle.values.iter().filter_map(|value| if let Value::Persistent(id) = value { Some(*id) } else { None });
    let width = |id: Id| {
        let [_, class, key, ..] = pickle.items(id) else { return None };
        let width = match pickle.name(*class)?.trim_start_matches("torch.") {
            "DoubleStorage" | "LongStorage" | "ComplexFloatStorage" => 8,
            "FloatStorage" | "IntStorage" => 4,
            "HalfStorage" | "BFloat16Storage" | "ShortStorage" => 2,
            "ComplexDoubleStorage" => 16,
            _ => 1,
        };
        Some((pickle.text(*key)?, width))
    };
    stored.filter_map(width).collect()
}

/// The arrays of a state dict.
fn state<'f>(pickle: &Pickle<'_>, storage: &dyn Fn(&str) -> Option<&'f [u8]>) -> Result<Weights> {
    let is_dict = |id: &Id| pickle.entries(*id).is_some();
    let mut root = pickle.root;
    // Checkpoints hold the state dict under a key, some in two layers.
    for _ in 0..2 {
        let inner = |key: &str| entry(pickle, root, key).filter(is_dict);
        root = STATE_KEYS.into_iter().find_map(inner).unwrap_or(root);
    }
    let Some(entries) = pickle.entries(root) else {
        bail!(
            "it holds no dictionary of arrays; a whole model, saved with its code, cannot be read: save model.state_dict() instead"
        );
    };
    let mut weights = Weights::new();
    for &(key, value) in entries {
        let Some(name) = pickle.text(key) else { continue };
        if let Some(array) = array(pickle, value, storage).with_context(|| format!("`{name}`"))? {
            weights.insert(name.to_owned(), array);
        }
    }
    Ok(weights)
}

fn entry(pickle: &Pickle<'_>, dict: Id, key: &str) -> Option<Id> {
    pickle.entries(dict)?.iter().find(|(name, _)| pickle.text(*name) == Some(key)).map(|(_, value)| *value)
}

/// What a parameter holds.
fn unwrapped(pickle: &Pickle<'_>, mut id: Id) -> Id {
    while let Value::Call { function, args, .. } = pickle.get(id)
        && pickle.name(*function) == Some("torch._utils._rebuild_parameter")
        && let &[data, ..] = pickle.items(*args)
        && data < id
    {
        id = data;
    }
    id
}

/// An array of floats; `None` for other values and for integers.
fn array<'f>(pickle: &Pickle<'_>, id: Id, storage: &dyn Fn(&str) -> Option<&'f [u8]>) -> Result<Option<Array>> {
    let Value::Call { function, args, state, .. } = pickle.get(unwrapped(pickle, id)) else { return Ok(None) };
    let args = pickle.items(*args);
    match (pickle.name(*function).unwrap_or_default(), args) {
        ("torch._utils._rebuild_tensor_v2", &[stored, offset, shape, strides, ..]) => {
            let damaged = || "its description is damaged".to_owned();
            let Value::Persistent(stored) = pickle.get(stored) else { bail!(damaged()) };
            let &[_, class, key, ..] = pickle.items(*stored) else { bail!(damaged()) };
            let kind = match pickle.name(class).unwrap_or_default() {
                "torch.FloatStorage" => Kind::F32,
                "torch.DoubleStorage" => Kind::F64,
                "torch.HalfStorage" => Kind::F16,
                "torch.BFloat16Storage" => Kind::Bf16,
                _ => return Ok(None),
            };
            let key = pickle.text(key).with_context(damaged)?;
            let bytes = storage(key).with_context(|| format!("its storage {key} is not in the file"))?;
            let offset = pickle.size(offset).with_context(damaged)?;
            let (shape, strides) = (pickle.sizes(shape).with_context(damaged)?, pickle.sizes(strides).with_context(damaged)?);
            strided(kind, bytes, offset, shape, &strides).map(Some)
        }
        ("numpy.core.multiarray._reconstruct" | "numpy._core.multiarray._reconstruct", _) => numpy(pickle, *state),
        _ => Ok(None),
    }
}

/// An array of numpy from the state of its `__setstate__`: version, shape, type, whether columns come first, bytes.
fn numpy(pickle: &Pickle<'_>, state: Option<Id>) -> Result<Option<Array>> {
    let &[_, shape, dtype, by_columns, data] = state.map_or(&[][..], |state| pickle.items(state)) else {
        bail!("its description is damaged");
    };
    let Value::Call { args, state: Some(order), .. } = pickle.get(dtype) else { return Ok(None) };
    let kind = match pickle.items(*args).first().and_then(|&name| pickle.text(name)) {
        Some("f4") => Kind::F32,
        Some("f8") => Kind::F64,
        Some("f2") => Kind::F16,
        _ => return Ok(None),
    };
    ensure!(pickle.items(*order).get(1).and_then(|&order| pickle.text(order)) != Some(">"), "its numbers are big-endian");
    ensure!(
        *pickle.get(by_columns) == Value::Bool(false),
        "its columns come first; make it contiguous (numpy.ascontiguousarray)"
    );
    let shape = pickle.sizes(shape).context("its description is damaged")?;
    let text;
    let bytes: &[u8] = match pickle.get(data) {
        Value::Bytes(bytes) => bytes,
        // Protocol 2 under Python 3: `_codecs.encode(text, "latin1")`, each character a byte.
        Value::Call { args, .. } => {
            let latin = pickle.items(*args).first().and_then(|&text| pickle.text(text)).context("its description is damaged")?;
            text = latin.chars().map(|char| u8::try_from(u32::from(char))).collect::<Result<Vec<u8>, _>>()?;
            &text
        }
        _ => bail!("its description is damaged"),
    };
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1);
    }
    strided(kind, bytes, 0, shape, &strides).map(Some)
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    F64,
    F32,
    F16,
    Bf16,
}

impl Kind {
    const fn width(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The number in `bytes`, of which there are [`Self::width`].
    fn value(self, bytes: &[u8]) -> f32 {
        match (self, bytes) {
            (Self::F64, &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32,
            (Self::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Self::F16, &[a, b]) => half::f16::from_le_bytes([a, b]).to_f32(),
            (Self::Bf16, &[a, b]) => half::bf16::from_le_bytes([a, b]).to_f32(),
            _ => f32::NAN,
        }
    }
}

/// An array in row-major order from numbers that lie `strides` apart.
fn strided(kind: Kind, bytes: &[u8], offset: usize, shape: Vec<usize>, strides: &[usize]) -> Result<Array> {
    ensure!(shape.len() == strides.len() && shape.len() <= 8, "its description is damaged");
    let n_stored = bytes.len() / kind.width();
    let len = shape.iter().try_fold(1_usize, |len, &n| len.checked_mul(n)).filter(|len| *len <= n_stored);
    let reach = |(&n, &stride): (&usize, &usize)| n.saturating_sub(1).checked_mul(stride);
    let last = shape.iter().zip(strides).map(reach).try_fold(offset, |last, reach| last.checked_add(reach?));
    let (Some(len), Some(last)) = (len, last) else { bail!("shape {shape:?} is more than its storage of {n_stored} numbers") };
    ensure!(len == 0 || last < n_stored, "shape {shape:?} is more than its storage of {n_stored} numbers");
    let mut place = vec![0; shape.len()];
    let mut data = Vec::with_capacity(len);
    for _ in 0..len {
        let at = offset + place.iter().zip(strides).map(|(&i, &stride)| i * stride).sum::<usize>();
        data.push(kind.value(&bytes[at * kind.width()..][..kind.width()]));
        for axis in (0..shape.len()).rev() {
            place[axis] += 1;
            if place[axis] < shape[axis] {
                break;
            }
            place[axis] = 0;
        }
    }
    Ok(Array { shape, data })
}

/// Files of a zip archive, which PyTorch stores without compression.
fn zip_entries(bytes: &[u8]) -> Result<HashMap<&str, &[u8]>> {
    let cut = || "the archive is cut off or damaged";
    let u16_at = |at: usize| bytes.get(at..at + 2).map(|b| usize::from(b[0]) | usize::from(b[1]) << 8).with_context(cut);
    let u32_at = |at: usize| Ok::<usize, anyhow::Error>(u16_at(at)? | u16_at(at + 2)? << 16);
    let slice = |at: usize, len: usize| at.checked_add(len).and_then(|end| bytes.get(at..end)).with_context(cut);
    // The record at the end lies behind a comment of up to 64 KiB.
    let from = bytes.len().saturating_sub(22 + 0xffff);
    let end =
        (from..bytes.len().saturating_sub(21)).rev().find(|&at| bytes[at..].starts_with(b"PK\x05\x06")).with_context(cut)?;
    let (n_files, mut at) = (u16_at(end + 10)?, u32_at(end + 16)?);
    ensure!(n_files != 0xffff && at != 0xffff_ffff, "archives of 4 GiB and more are not read");
    let mut files = HashMap::with_capacity(n_files);
    for _ in 0..n_files {
        ensure!(slice(at, 4)? == b"PK\x01\x02", cut());
        let (method, len, name_len) = (u16_at(at + 10)?, u32_at(at + 24)?, u16_at(at + 28)?);
        let name = str::from_utf8(slice(at + 46, name_len)?)?;
        ensure!(method == 0, "{name} in the archive is compressed, which PyTorch never does");
        let local = u32_at(at + 42)?;
        ensure!(slice(local, 4)? == b"PK\x03\x04", cut());
        files.insert(name, slice(local + 30 + u16_at(local + 26)? + u16_at(local + 28)?, len)?);
        at += 46 + name_len + u16_at(at + 30)? + u16_at(at + 32)?;
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of `tests/fixtures/make_imports.py`: the same two arrays in every way that they are written in.
    #[test]
    fn arrays_are_the_same_from_every_kind_of_file() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let ramp: Vec<f32> = (0..24_u8).map(|i| f32::from(i) / 4.0 - 2.0).collect();
        for name in [
            "archive.pth",
            "legacy.pth",
            "checkpoint.ckpt",
            "half.pth",
            "bfloat16.pth",
            "double.pth",
            "parameter.pth",
            "numpy2.pkl",
            "numpy4.pkl",
            "plain.safetensors",
        ] {
            let weights = read(&folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            assert_eq!(weights.keys().collect::<Vec<_>>(), ["a.bias", "a.weight"], "{name}");
            assert_eq!(weights["a.weight"], Array { shape: vec![2, 3, 2, 2], data: ramp.clone() }, "{name}");
            // Every second number of a row in the file.
            assert_eq!(weights["a.bias"], Array { shape: vec![3], data: vec![0.5, 1.5, 2.5] }, "{name}");
        }
    }

    #[test]
    fn what_is_no_state_dict_is_refused() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let dir = tempfile::tempdir().unwrap();
        let good = std::fs::read(folder.join("archive.pth")).unwrap();
        let damaged = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        for (path, part) in [
            (folder.join("module.pth"), "save model.state_dict() instead"),
            (damaged("cut.pth", &good[..good.len() / 2]), "cut off"),
            (damaged("text.pth", b"hello"), "not a safetensors file"),
            (damaged("empty.pkl", b"\x80\x02}."), "no arrays"),
            (dir.path().join("missing.pth"), "cannot read"),
        ] {
            let error = format!("{:#}", read(&path).unwrap_err());
            assert!(error.contains(part), "{}: {error}", path.display());
        }
        // A file with any byte changed is read or refused, never a panic.
        for name in ["archive.pth", "legacy.pth", "numpy2.pkl", "numpy4.pkl"] {
            let good = std::fs::read(folder.join(name)).unwrap();
            for (at, flip) in (0..good.len()).flat_map(|at| [0x01, 0x55, 0xff].map(|flip| (at, flip))) {
                let mut bytes = good.clone();
                bytes[at] ^= flip;
                if name == "archive.pth" {
                    from_archive(&bytes).ok()
                } else {
                    from_pickles(&bytes).ok()
                };
            }
        }
    }
}
