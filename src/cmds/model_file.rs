//! A model given on the command line: a folder with a manifest, or a bare .onnx file.

use super::Failure;
use anyhow::Context;
use fovea::executor::{Executor, LoadError, LoadOptions, Network};
use fovea::pipeline::detector::{OpenError, hex, read_network, read_network_file};
use fovea::retinanet::Manifest;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The bytes of a network, with its manifest where there is one.
#[derive(Debug)]
pub(crate) struct ModelFile {
    path: PathBuf,
    manifest: Option<Manifest>,
    bytes: Vec<u8>,
}

/// A loaded network.
#[derive(Debug)]
pub(crate) struct Loaded {
    network: Network,
    why_float: Option<String>,
}

impl Loaded {
    /// The network.
    pub(crate) const fn network(&self) -> &Network {
        &self.network
    }

    /// The network, to run it.
    pub(crate) const fn network_mut(&mut self) -> &mut Network {
        &mut self.network
    }

    /// Why the network runs in float, where it does.
    pub(crate) fn why_float(&self) -> Option<&str> {
        self.why_float.as_deref()
    }
}

impl ModelFile {
    /// Reads a model folder (manifest and network, digest checked) or a bare .onnx file.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        if path.is_dir() {
            let (manifest, path, bytes) = read_network(path).map_err(Failure::request)?;
            return Ok(Self { path, manifest: Some(manifest), bytes });
        }
        let hint = "give a model folder (with manifest.toml) or an .onnx file";
        let bytes = read_network_file(path).with_context(|| format!("cannot read {}; {hint}", path.display()));
        Ok(Self { path: path.to_owned(), manifest: None, bytes: bytes.map_err(Failure::request)? })
    }

    /// Name of the model, or of the file.
    pub(crate) fn name(&self) -> String {
        let of_file = || self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.manifest.as_ref().map_or_else(of_file, |manifest| manifest.name.clone())
    }

    /// The network file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// SHA-256 of the network file in hexadecimal.
    pub(crate) fn sha256(&self) -> String {
        hex(&Sha256::digest(&self.bytes))
    }

    /// Loads the network, in integers; in float only where `allow_float` says so. A manifest is checked against it.
    pub(crate) fn load(&self, options: &LoadOptions) -> Result<Loaded, Failure> {
        self.try_load(options).map_err(|source| self.failure(source))
    }

    /// Loads the network in integers, else in float with the reason.
    pub(crate) fn load_for_inspection(&self, threads: usize) -> Result<Loaded, Failure> {
        match self.try_load(&LoadOptions { threads, ..LoadOptions::default() }) {
            Err(why @ (LoadError::Float { .. } | LoadError::Lower(_))) => {
                let loaded = self.load(&LoadOptions { threads, allow_float: true, ..LoadOptions::default() })?;
                Ok(Loaded { why_float: Some(why.to_string()), ..loaded })
            }
            loaded => loaded.map_err(|source| self.failure(source)),
        }
    }

    fn try_load(&self, options: &LoadOptions) -> Result<Loaded, LoadError> {
        let network = match &self.manifest {
            Some(manifest) => Executor::load(&self.bytes, manifest, options)?.into_network(),
            None => Network::load(&self.bytes, options)?,
        };
        Ok(Loaded { network, why_float: None })
    }

    fn failure(&self, source: LoadError) -> Failure {
        Failure::request(OpenError::Load { path: self.path.clone(), source })
    }
}
