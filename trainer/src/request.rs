//! What a user asked for and cannot have.

/// A request that is wrong, as opposed to work that failed: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Request(pub(crate) String);
