//! Reads shards ahead of whoever consumes them: while one shard's chunks are computed on, its next chunks and the next shard's
//! first ones are fetched and decoded, within a budget of bytes. Of small shards more are under way at once.

use super::chunk::{Chunk, ReadOptions, read_chunks};
use super::layout::Layout;
use super::listing::Shard;
use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Shards under way at once: the one that is consumed and the one after it.
const SHARDS_AHEAD: usize = 2;
/// Small shards under way at once: each takes the store's latency and little else, so more of them are asked for together.
const SMALL_SHARDS_AHEAD: usize = 16;
/// Bytes up to which a shard is small.
const SMALL: u64 = 256 << 10;
/// How much larger than its file a small shard's decoded chunks are taken to be, so that those ahead stay within a part of the budget.
const DECODED: u64 = 32;
/// Chunks that may wait whatever their size; the byte budget is the real bound.
const CHUNKS_AHEAD: usize = 64;
/// The budget's unit, so that it fits the semaphore's permits.
const UNIT: u64 = 1 << 10;

/// One shard to read, and which of its rows (`None`: all).
#[derive(Debug, Clone)]
pub struct ShardRequest {
    /// The shard.
    pub shard: Shard,
    /// Positions of the wanted rows, sorted and without duplicates; `None` is all of them.
    pub rows: Option<Vec<u64>>,
}

/// What happened next, in the order of the requests and of the rows.
#[derive(Debug)]
pub enum ShardEvent {
    /// A shard's footer was read. Comes first and once for each shard that has one.
    Opened(Arc<Layout>),
    /// The next rows. Its memory counts until it is dropped.
    Rows(Chunk, Permit),
    /// Every row came.
    Done,
    /// The shard cannot be read (further). No more of it comes.
    Failed(Error),
}

/// A chunk's share of the memory budget, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    _permit: Option<OwnedSemaphorePermit>,
}

/// The shards' events, one shard after another.
#[derive(Debug)]
pub struct ReadAhead {
    waiting: VecDeque<(usize, ShardRequest)>,
    started: VecDeque<Started>,
    options: ReadOptions,
    runtime: Handle,
}

/// A shard under way.
#[derive(Debug)]
struct Started {
    index: usize,
    bytes: u64,
    events: Receiver<ShardEvent>,
}

/// Starts reading `requests` in order with `options` (whose `rows` each request replaces). Each shard under way has an equal share of
/// `options.memory`, so a later one cannot starve the one that is consumed.
pub fn read_ahead(requests: Vec<ShardRequest>, options: ReadOptions, runtime: Handle) -> ReadAhead {
    let options = ReadOptions { memory: (options.memory / SHARDS_AHEAD as u64).max(1), ..options };
    ReadAhead { waiting: requests.into_iter().enumerate().collect(), started: VecDeque::new(), options, runtime }
}

impl ReadAhead {
    /// The next event and the number of the request it belongs to; `None` after the last. Blocking.
    pub fn next_blocking(&mut self) -> Option<(usize, ShardEvent)> {
        loop {
            while self.has_room()
                && let Some((index, request)) = self.waiting.pop_front()
            {
                let bytes = request.shard.meta.size;
                self.started.push_back(Started { index, bytes, events: self.start(request) });
            }
            let first = self.started.front_mut()?;
            match first.events.blocking_recv() {
                Some(event) => return Some((first.index, event)),
                None => {
                    self.started.pop_front();
                }
            }
        }
    }

    /// Whether the next shard may be started: one of any size beside the current one, small ones beyond that.
    fn has_room(&self) -> bool {
        let Some((_, next)) = self.waiting.front() else { return false };
        let beyond: u64 = self.started.iter().skip(1).map(|started| started.bytes).sum::<u64>() + next.shard.meta.size;
        let small = next.shard.meta.size <= SMALL && beyond.saturating_mul(DECODED) <= self.options.memory / 4;
        self.started.len() < if small { SMALL_SHARDS_AHEAD } else { SHARDS_AHEAD }
    }

    /// Gives up the shard whose events are coming: the next event is of the next shard.
    pub fn skip_shard(&mut self) {
        self.started.pop_front();
    }

    fn start(&self, request: ShardRequest) -> Receiver<ShardEvent> {
        let (sender, receiver) = channel(CHUNKS_AHEAD);
        let options = ReadOptions { rows: request.rows, ..self.options.clone() };
        let runtime = self.runtime.clone();
        self.runtime.spawn_blocking(move || {
            let shard = request.shard;
            // A malformed file must not take the run down with it.
            let outcome = catch_unwind(AssertUnwindSafe(|| read_one(&shard, &options, &runtime, &sender)));
            let last = match outcome {
                Ok(Ok(())) => ShardEvent::Done,
                Ok(Err(error)) => ShardEvent::Failed(error),
                Err(_) => ShardEvent::Failed(Error::Shard {
                    shard: shard.name.clone(),
                    row_group: None,
                    reason: "its reader panicked: the file is malformed".into(),
                    source: None,
                }),
            };
            // The consumer may be gone already; then nobody asks.
            let _ = sender.blocking_send(last);
        });
        receiver
    }
}

fn read_one(shard: &Shard, options: &ReadOptions, runtime: &Handle, sender: &Sender<ShardEvent>) -> Result<()> {
    let layout = Arc::new(runtime.block_on(Layout::load(shard, options.rows.is_some()))?);
    layout.column_positions(&shard.name, &options.columns)?;
    if sender.blocking_send(ShardEvent::Opened(Arc::clone(&layout))).is_err() {
        return Ok(());
    }
    // Three quarters: a quarter of the share is for blocks.
    let budget = (options.memory / 4 * 3 / UNIT).clamp(1, u64::from(u32::MAX)) as usize;
    let permits = Arc::new(Semaphore::new(budget));
    read_chunks(shard, &layout, options, runtime, |chunk| {
        let units = (chunk.bytes() / UNIT).clamp(1, budget as u64) as u32;
        let permit = runtime.block_on(Arc::clone(&permits).acquire_many_owned(units)).ok();
        sender.blocking_send(ShardEvent::Rows(chunk, Permit { _permit: permit })).is_ok()
    })
}
