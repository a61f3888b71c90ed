//! Sidecars that are being finished while the next shards are computed.

use crate::error::{Error, Result};
use crate::writeback::{Receipt, SidecarWriter};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// Uploads that may be under way while the next shards are computed.
const UNDER_WAY: usize = 4;
/// The same for small sidecars, which take the store's latency and little else.
const SMALL_UNDER_WAY: usize = 16;
/// Rows up to which a sidecar is small.
const SMALL_ROWS: u64 = 4096;

/// Finishes sidecars in the background, some at a time. Blocking: call it outside the async runtime's own threads.
pub(super) struct Uploads<'a> {
    tasks: JoinSet<Result<(usize, Receipt)>>,
    receipts: Vec<Option<Receipt>>,
    runtime: &'a Handle,
}

impl<'a> Uploads<'a> {
    /// For the sidecars of so many shards.
    pub(super) fn new(shards: usize, runtime: &'a Handle) -> Self {
        Self { tasks: JoinSet::new(), receipts: vec![None; shards], runtime }
    }

    /// Finishes the sidecar of a shard. The inner error is the shard's own: rows are missing, and the sidecar is discarded.
    ///
    /// # Errors
    /// What the store answers to an earlier upload.
    pub(super) fn add(&mut self, index: usize, writer: SidecarWriter) -> Result<Result<()>> {
        let most = if writer.rows() <= SMALL_ROWS { SMALL_UNDER_WAY } else { UNDER_WAY };
        while self.tasks.len() >= most {
            let joined = self.runtime.block_on(self.tasks.join_next());
            self.keep(joined)?;
        }
        if let Err(error) = writer.complete() {
            self.runtime.block_on(writer.abort());
            return Ok(Err(error));
        }
        self.tasks.spawn_on(async move { Ok((index, writer.finish().await?)) }, self.runtime);
        Ok(Ok(()))
    }

    /// Waits for the rest. Receipts come in the order of the shards, whatever finished first.
    ///
    /// # Errors
    /// What the store answers.
    pub(super) fn finish(mut self) -> Result<Vec<Receipt>> {
        while let Some(joined) = self.runtime.block_on(self.tasks.join_next()) {
            self.keep(Some(joined))?;
        }
        Ok(self.receipts.into_iter().flatten().collect())
    }

    fn keep(&mut self, joined: Option<Joined>) -> Result<()> {
        if let Some(joined) = joined {
            let (index, receipt) = joined.map_err(|e| Error::Internal(format!("upload: {e}")))??;
            self.receipts[index] = Some(receipt);
        }
        Ok(())
    }
}

type Joined = std::result::Result<Result<(usize, Receipt)>, tokio::task::JoinError>;
