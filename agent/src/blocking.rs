// SPDX-License-Identifier: Apache-2.0
//! Mounting and giving birth block; the runtime's one thread must not.

use crate::error::{Error, Result};

/// On a thread for that. It runs to its end, also when nobody waits any more.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(Error::internal("a blocking task panicked")))
}
