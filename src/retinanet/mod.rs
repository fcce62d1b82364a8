//! What makes a network a RetinaNet: levels, anchors, the box coder, and the manifest that states them.
//!
//! The contract between trainer, executor and postprocessing. Pure: nothing here reads a file or knows a tensor.

mod anchors;
mod coder;
mod heads;
mod manifest;

pub use anchors::{AnchorConfig, AnchorStride, Anchors, LevelAnchors};
pub use coder::{BBOX_XFORM_CLIP, BoxCoder, Deltas};
pub use heads::{HeadData, HeadOutputs, LevelHeads};
pub use manifest::{
    DEFAULT_SIGMA, InputSpec, LevelSpec, MANIFEST_SCHEMA, Manifest, ManifestError, NetworkSpec, NmsMethod, PREPROCESS_VERSION,
    PostprocessSpec,
};
