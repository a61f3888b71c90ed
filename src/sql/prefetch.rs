//! Metadata of the next shards while one is read: in go the files of a scan in their order, out come footers (and all of a small
//! object) in the cache before a partition asks for them.
//!
//! A partition opens its files one after the other. With thousands of small shards its time is then the store's latency, so the
//! metadata of the next ones is asked for ahead of it. Nothing is decoded here, and an error is left to the reader that meets it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::reader::{Shard, ShardView};

/// Files asked for ahead of the one that is being opened, in each partition.
const AHEAD: usize = 16;

/// The largest object that is asked for ahead. A larger one takes so long to read that DataFusion's own next file comes in time, and
/// might be ruled out before its turn.
const LARGEST: u64 = 1 << 20;

/// The files of one scan.
#[derive(Debug, Default)]
pub(super) struct Prefetch {
    files: Vec<File>,
    /// The place of each shard in `files`, by its address.
    places: HashMap<usize, usize>,
    /// Requests under way; dropped with the scan.
    tasks: Mutex<JoinSet<()>>,
}

#[derive(Debug)]
struct File {
    view: ShardView,
    partition: usize,
    asked: AtomicBool,
}

impl File {
    fn is_small(&self) -> bool {
        self.view.object().is_ok_and(|object| object.size() <= LARGEST)
    }
}

impl Prefetch {
    /// The files of each partition, in their order.
    pub(super) fn new(partitions: Vec<Vec<ShardView>>) -> Self {
        let numbered = partitions.into_iter().enumerate();
        let files: Vec<File> = numbered
            .flat_map(|(partition, views)| views.into_iter().map(move |view| File { view, partition, asked: AtomicBool::new(false) }))
            .collect();
        let places = files.iter().enumerate().map(|(place, file)| (address(&file.view.shard), place)).collect();
        Self { files, places, tasks: Mutex::default() }
    }

    /// A partition is about to open `shard`.
    pub(super) fn reached(&self, shard: &Arc<Shard>) {
        let Some(&place) = self.places.get(&address(shard)) else { return };
        let Ok(runtime) = Handle::try_current() else { return };
        let Some(current) = self.files.get(place) else { return };
        current.asked.store(true, Ordering::Relaxed);
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        let next = self.files[place + 1..].iter().take(AHEAD).take_while(|file| file.partition == current.partition);
        for file in next.filter(|file| file.is_small() && !file.asked.swap(true, Ordering::Relaxed)) {
            let view = file.view.clone();
            tasks.spawn_on(
                async move {
                    if let Err(error) = view.metadata().await {
                        tracing::debug!(%error, "a shard could not be opened ahead");
                    }
                },
                &runtime,
            );
        }
    }
}

fn address(shard: &Arc<Shard>) -> usize {
    Arc::as_ptr(shard) as usize
}
