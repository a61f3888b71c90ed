//! Applies a fitted model to shards: read, embed, weigh, write the sidecar. Nothing is published here.

use super::context::Progress;
use super::encoder::RowEncoder;
use super::report::{Quarantined, WeighedRow};
use super::uploads::Uploads;
use super::windows::weigh_batch;
use crate::catalog::{SchemaWriter, StoredModel};
use crate::embed::WindowPlace;
use crate::error::{Error, Result};
use crate::shard::{ReadOptions, Shard, ShardEvent, ShardRequest, read_ahead};
use crate::storage::Location;
use crate::writeback::{Receipt, ReferenceIds, SidecarIdentity, SidecarRow, SidecarWriter};
use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use std::sync::Arc;
use tokio::runtime::Handle;

/// Rows shown at each end.
const SHOWN: usize = 3;
/// Characters of a shown row's text.
const EXCERPT: usize = 72;

/// What weighing gave.
#[derive(Debug, Default)]
pub struct Weighed {
    /// Sidecars written, in the order of the shards.
    pub receipts: Vec<Receipt>,
    /// Shards that could not be read.
    pub quarantined: Vec<Quarantined>,
    /// The first error among the quarantined.
    pub first_error: Option<Error>,
    /// The rows at both ends.
    pub extremes: Extremes,
}

/// What weighing needs.
#[derive(Clone, Copy)]
pub struct Weighing<'a> {
    /// The model whose weights are written.
    pub model: &'a StoredModel,
    /// Rows to vectors, as for the model's own sample.
    pub encoder: &'a RowEncoder,
    /// The shards, in the order they are read.
    pub shards: &'a [Shard],
    /// The sidecars are written below this place.
    pub output: &'a Location,
    /// How shards are read; its columns are the encoder's.
    pub options: &'a ReadOptions,
    /// Where IO runs.
    pub runtime: &'a Handle,
    /// Is told how many rows are done.
    pub progress: &'a dyn Progress,
}

/// Weighs shards with a model and writes their sidecars. Blocking: call it outside the async runtime's own threads. Embedding and
/// transport run on rayon's current pool.
///
/// A shard that cannot be read or has no such column is quarantined, its unfinished sidecar discarded, and the others go on.
///
/// # Errors
/// What the store answers to a write, and a model that cannot be used.
pub fn weigh_shards(weighing: Weighing<'_>) -> Result<Weighed> {
    let mut current = None;
    let weighed = weigh_each(weighing, &mut current);
    if let Some(writer) = current {
        weighing.runtime.block_on(writer.abort());
    }
    weighed
}

/// Leaves the writer of the shard under way in `current` when it ends with an error.
fn weigh_each(weighing: Weighing<'_>, current: &mut Option<SidecarWriter>) -> Result<Weighed> {
    let Weighing { model, encoder, shards, output, options, runtime, progress } = weighing;
    let weigher = model.transport.weigher()?;
    let ids = Arc::new(model.card.reference_ids());
    let columns: Arc<[String]> = model.card.window_columns().into();
    let requests = shards.iter().map(|shard| ShardRequest { shard: shard.clone(), rows: None }).collect();
    let mut ahead = read_ahead(requests, options.clone(), runtime.clone());
    let (mut weighed, mut done) = (Weighed::default(), 0u64);
    let mut uploads = Uploads::new(shards.len(), runtime);
    let mut schemas = SchemaWriter::default();
    while let Some((index, event)) = ahead.next_blocking() {
        let shard = &shards[index];
        let outcome = match event {
            ShardEvent::Opened(layout) => {
                let identity = identity(shard, model);
                let schema = runtime.block_on(schemas.put(layout.schema(), output))?;
                let writer = SidecarWriter::try_new(output, identity, layout.rows_per_group(), Arc::clone(&ids), Arc::clone(&columns))?;
                *current = Some(writer.with_schema(schema));
                Ok(())
            }
            ShardEvent::Rows(chunk, _permit) => {
                let writer = current.as_mut().ok_or_else(|| Error::Internal(format!("{}: rows before its footer", shard.name)))?;
                let first = done;
                done += chunk.batch.num_rows() as u64;
                weigh_batch(&weigher, encoder, &shard.name, &chunk.batch).and_then(|rows| {
                    weighed.extremes.see(shard, writer.rows(), &rows, &chunk.batch, &ids);
                    runtime.block_on(writer.write(&rows))?;
                    progress.advance(first + rows.len() as u64);
                    Ok(())
                })
            }
            ShardEvent::Done(pages) => {
                let mut writer = current.take().ok_or_else(|| Error::Internal(format!("{}: done before its footer", shard.name)))?;
                writer.note_pages(&pages)?;
                uploads.add(index, writer)?
            }
            ShardEvent::Failed(error) => Err(error),
        };
        match outcome {
            Ok(()) => {}
            Err(error @ (Error::Shard { .. } | Error::Column { .. })) => {
                ahead.skip_shard();
                if let Some(writer) = current.take() {
                    runtime.block_on(writer.abort());
                }
                tracing::warn!(shard = %shard.name, error = %super::report::with_causes(&error), "quarantined");
                weighed.extremes.forget(&shard.name);
                weighed.quarantined.push(Quarantined::new(shard, &error));
                weighed.first_error.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    weighed.receipts = uploads.finish()?;
    Ok(weighed)
}

/// What the sidecar of a shard is the sidecar of.
pub(super) fn identity(shard: &Shard, model: &StoredModel) -> SidecarIdentity {
    SidecarIdentity { shard: shard.name.clone(), shard_version: shard.version(), shard_size: shard.meta.size, model: model.digest.clone() }
}

/// Vectors of another length than the model's belong to another embedder.
pub(super) fn check_dimensions(shard: &str, encoder: &RowEncoder, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let column = encoder.columns().views().first().cloned().unwrap_or_default();
    Err(Error::Column { object: shard.to_owned(), column, reason: format!("has vectors of {found} dimensions, expected {expected}") })
}

/// The most and the least weighted rows seen.
#[derive(Debug, Default)]
pub struct Extremes {
    /// Highest weight first.
    pub most: Vec<WeighedRow>,
    /// Lowest weight first.
    pub least: Vec<WeighedRow>,
}

impl Extremes {
    fn forget(&mut self, shard: &str) {
        self.most.retain(|row| row.shard != shard);
        self.least.retain(|row| row.shard != shard);
    }

    fn see(&mut self, shard: &Shard, first: u64, rows: &[Option<SidecarRow>], batch: &RecordBatch, ids: &ReferenceIds) {
        for (offset, row) in rows.iter().enumerate() {
            let Some(SidecarRow { weight: row, window }) = row else { continue };
            let shown = || WeighedRow {
                shard: shard.name.clone(),
                row: first + offset as u64,
                weight: row.weight,
                safe_ref: ids.safe.get(row.safe_ref as usize).cloned().unwrap_or_default(),
                harm_ref: ids.harm.get(row.harm_ref as usize).cloned().unwrap_or_default(),
                excerpt: excerpt(batch, offset, *window),
            };
            // The earlier row keeps its place among equals, so that the result does not depend on chunks.
            insert(&mut self.most, |other| row.weight > other.weight, shown);
            insert(&mut self.least, |other| row.weight < other.weight, shown);
        }
    }
}

fn insert(list: &mut Vec<WeighedRow>, before: impl Fn(&WeighedRow) -> bool, shown: impl Fn() -> WeighedRow) {
    let place = list.iter().position(before).unwrap_or(list.len());
    if place < SHOWN {
        list.insert(place, shown());
        list.truncate(SHOWN);
    }
}

/// The beginning of a row's first text, or of the window that gave its weight, on one line.
fn excerpt(batch: &RecordBatch, row: usize, window: Option<WindowPlace>) -> String {
    let options = FormatOptions::default();
    // A window at the very beginning may stand for the whole row, which is known best by its first text.
    let window = window.filter(|window| window.offset > 0);
    let column = match window {
        Some(window) => batch.columns().get(window.column),
        None => batch.columns().iter().find(|column| column.is_valid(row)),
    };
    let text = column.and_then(|column| {
        let formatter = ArrayFormatter::try_new(column.as_ref(), &options).ok()?;
        Some(formatter.value(row).to_string())
    });
    let text: String = text.unwrap_or_default().chars().skip(window.map_or(0, |window| window.offset)).collect();
    let text = text.replace(|c: char| c.is_control(), " ");
    let mut line: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(EXCERPT + 1).collect();
    if line.chars().count() > EXCERPT {
        line.pop();
        line.push('…');
    }
    line
}
