//! The reader DataFusion's Parquet scan uses: in goes a file of the scan with its [`ShardView`], out come metadata and bytes of the
//! base, of the sidecar, or of both as one file.

use std::ops::Range;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use bytes::Bytes;
use datafusion::common::{DataFusionError, Result as DfResult, ScalarValue};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::{ParquetFileMetrics, ParquetFileReaderFactory};
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder};
use futures::FutureExt;
use futures::future::BoxFuture;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::arrow::parquet_to_arrow_schema;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::ParquetMetaData;
use tokio::sync::{Mutex, OnceCell};

use super::columns::ServedNames;
use super::footers::{Cached, Kind};
use super::ipc::IpcShard;
use super::merge::{BasePart, Pair, check_alignment, compose};
use super::object::{StoredObject, metadata};
use super::prefetch::Prefetch;
use super::{CorpusShard, ShardFormat};
use crate::error::{Error, Result};
use crate::writeback::{BASE_SIZE_KEY, BASE_VERSION_KEY};

/// A shard with its objects and what is known of it without opening them.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) listed: CorpusShard,
    pub(super) base: StoredObject,
    pub(super) sidecar: Option<StoredObject>,
    /// Columns of the base.
    pub(super) schema: SchemaRef,
    /// Rows of the base, if they are known without opening it.
    pub(super) rows: Option<u64>,
    /// The columns that are the same in every row, in the order of the table's.
    pub(super) constants: Vec<ScalarValue>,
    ipc: OnceCell<IpcShard>,
    composing: [Mutex<()>; 2],
}

impl Shard {
    /// The objects of a listed shard; its columns and constants are to be filled in.
    pub(super) fn new(listed: CorpusShard, base: StoredObject, sidecar: Option<StoredObject>) -> Self {
        let rows = match &listed.sidecar {
            Some(sidecar) => Some(sidecar.rows),
            None => listed.rows,
        };
        let schema = listed.schema.clone().unwrap_or_else(|| Arc::new(Schema::empty()));
        Self { listed, base, sidecar, schema, rows, constants: vec![], ipc: OnceCell::new(), composing: Default::default() }
    }

    pub(super) fn name(&self) -> &str {
        &self.listed.name
    }

    pub(super) fn is_parquet(&self) -> bool {
        self.listed.format == ShardFormat::Parquet
    }

    pub(super) fn weights(&self) -> Result<&StoredObject> {
        self.sidecar.as_ref().ok_or_else(|| Error::Internal(format!("shard {} has no sidecar", self.name())))
    }

    /// The header of an Arrow shard.
    pub(super) async fn ipc(&self) -> Result<&IpcShard> {
        self.ipc.get_or_try_init(|| IpcShard::open(&self.base)).await
    }

    /// Reads the columns of the base from the object itself, and its rows where that is said in the same place.
    pub(super) async fn read_schema(&mut self) -> Result<()> {
        self.schema = match self.listed.format {
            ShardFormat::Parquet => {
                let footer = self.base.footer().await?;
                let file = footer.file_metadata();
                self.rows = self.rows.or(u64::try_from(file.num_rows()).ok());
                let schema = parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata())
                    .map_err(|e| self.base.error("its schema cannot be used", Some(Box::new(e))))?;
                Arc::new(schema)
            }
            ShardFormat::Arrow => Arc::clone(&self.ipc().await?.schema),
        };
        Ok(())
    }

    /// Whether the base is another object than the one that was weighed.
    pub(super) fn is_stale(&self) -> bool {
        self.listed.sidecar.as_ref().is_some_and(|s| s.base_size != self.listed.meta.size || s.base_version != self.listed.version)
    }

    /// How the base differs from the one that was weighed, for messages.
    pub(super) fn staleness(&self) -> String {
        let Some(sidecar) = &self.listed.sidecar else { return String::new() };
        let (now, meta) = (&self.listed.version, &self.listed.meta);
        format!(
            "base {} is now version {now} ({} bytes), sidecar {} was made for version {} ({} bytes)",
            meta.location, meta.size, sidecar.meta.location, sidecar.base_version, sidecar.base_size
        )
    }

    /// Reads the sidecar's footer and checks that it was made for this base: by its own word, by the rows that were published, and
    /// where the base's footer is in memory by the row counts of its row groups.
    async fn sidecar_footer(&self) -> Result<Arc<ParquetMetaData>> {
        let sidecar = self.weights()?.footer().await?;
        self.check_identity(&sidecar)?;
        if let Some(base) = self.base.known_footer().filter(|_| self.is_parquet()) {
            check_alignment(self.pair()?, &base, &sidecar)?;
        }
        Ok(sidecar)
    }

    fn check_identity(&self, sidecar: &ParquetMetaData) -> Result<()> {
        let Some(listed) = &self.listed.sidecar else { return Ok(()) };
        let base = &self.listed.meta.location;
        let expected = [(BASE_SIZE_KEY, &listed.base_size.to_string()), (BASE_VERSION_KEY, &listed.base_version)];
        for entry in sidecar.file_metadata().key_value_metadata().into_iter().flatten() {
            let Some((_, expected)) = expected.iter().find(|(key, _)| *key == entry.key) else { continue };
            if entry.value.as_ref() != Some(*expected) {
                let found = entry.value.as_deref().unwrap_or_default();
                return Err(self.weights()?.error(format!("its {} is {found}, that of base {base} is {expected}", entry.key), None));
            }
        }
        let rows = sidecar.file_metadata().num_rows();
        if u64::try_from(rows) != Ok(listed.rows) {
            let reason = format!("it has {rows} rows, published for base {base} were {}", listed.rows);
            return Err(self.weights()?.error(reason, None));
        }
        Ok(())
    }

    /// The names of both objects, for messages.
    pub(super) fn pair(&self) -> Result<Pair<'_>> {
        let (base, sidecar) = (self.base.meta().location.as_ref(), self.weights()?.meta().location.as_ref());
        Ok(Pair { shard: self.name(), base, sidecar })
    }

    /// Metadata of base and sidecar as one file.
    async fn merged(&self, names: &ServedNames) -> Result<Arc<ParquetMetaData>> {
        let weights = self.weights()?;
        let key = weights.key(Kind::Composed { base: Some(self.base.identity()), names: names.joined() });
        let load = || async {
            self.sidecar_footer().await?;
            let (base, sidecar) = tokio::try_join!(self.base.read_indexed(), weights.read_indexed())?;
            let base = BasePart { metadata: &base, size: self.base.size() };
            Ok(Cached::Metadata(Arc::new(compose(self.pair()?, Some(base), &sidecar, names)?)))
        };
        metadata(weights.cache().get_or_load(key, &self.composing[0], load).await?)
    }

    /// Metadata of the sidecar alone, its columns under their served names.
    async fn alone(&self, names: &ServedNames) -> Result<Arc<ParquetMetaData>> {
        let weights = self.weights()?;
        let key = weights.key(Kind::Composed { base: None, names: names.joined() });
        let load = || async {
            self.sidecar_footer().await?;
            Ok(Cached::Metadata(Arc::new(compose(self.pair()?, None, &weights.read_indexed().await?, names)?)))
        };
        metadata(weights.cache().get_or_load(key, &self.composing[1], load).await?)
    }
}

/// What a scanned file shows of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The base alone.
    Base {
        /// Whether the scan has a predicate on base columns, for which the page index is worth reading.
        pruned: bool,
    },
    /// The sidecar alone.
    Sidecar,
    /// Both as one file.
    Merged,
}

/// Attached to each file of a scan; it stays with the file when that is cut into byte ranges.
#[derive(Debug, Clone)]
pub(super) struct ShardView {
    pub(super) shard: Arc<Shard>,
    pub(super) names: Arc<ServedNames>,
    pub(super) part: Part,
}

impl ShardView {
    /// The object whose size and name stand for the file in the scan.
    pub(super) fn object(&self) -> Result<&StoredObject> {
        match self.part {
            Part::Base { .. } | Part::Merged => Ok(&self.shard.base),
            Part::Sidecar => self.shard.weights(),
        }
    }

    pub(super) async fn metadata(&self) -> Result<Arc<ParquetMetaData>> {
        match self.part {
            Part::Base { pruned: true } => self.shard.base.indexed().await,
            Part::Base { pruned: false } => self.shard.base.footer().await,
            Part::Sidecar => self.shard.alone(&self.names).await,
            Part::Merged => self.shard.merged(&self.names).await,
        }
    }

    /// Where the sidecar's bytes begin in the file's address space.
    fn border(&self) -> u64 {
        match self.part {
            Part::Base { .. } => u64::MAX,
            Part::Sidecar => 0,
            Part::Merged => self.shard.base.size(),
        }
    }
}

/// Makes a [`ShardReader`] for each file of a scan that carries a [`ShardView`].
#[derive(Debug)]
pub(super) struct ShardReaderFactory {
    pub(super) prefetch: Arc<Prefetch>,
}

impl ParquetFileReaderFactory for ShardReaderFactory {
    fn create_reader(
        &self,
        partition: usize,
        file: PartitionedFile,
        _metadata_size_hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> DfResult<Box<dyn AsyncFileReader + Send>> {
        let location = &file.object_meta.location;
        let view = file
            .extension::<ShardView>()
            .cloned()
            .ok_or_else(|| external(Error::Internal(format!("{location} is scanned without its shard"))))?;
        let size = view.object().map_err(external)?.size();
        if file.object_meta.size < size {
            let sizes = format!("{location} is scanned with size {}, its size is {size}", file.object_meta.size);
            return Err(external(Error::Internal(sizes)));
        }
        let counter = |name| MetricBuilder::new(metrics).counter(name, partition);
        Ok(Box::new(ShardReader {
            scanned: ParquetFileMetrics::new(partition, location.as_ref(), metrics).bytes_scanned,
            base_bytes: counter("base_bytes"),
            sidecar_bytes: counter("sidecar_bytes"),
            prefetch: Some(Arc::clone(&self.prefetch)),
            view,
        }))
    }
}

/// Reads one file of a scan.
pub(super) struct ShardReader {
    view: ShardView,
    scanned: Count,
    base_bytes: Count,
    sidecar_bytes: Count,
    prefetch: Option<Arc<Prefetch>>,
}

impl ShardReader {
    /// A reader outside of a Parquet scan.
    pub(super) fn uncounted(view: ShardView) -> Self {
        Self { view, scanned: Count::new(), base_bytes: Count::new(), sidecar_bytes: Count::new(), prefetch: None }
    }

    /// Fetches what lies before the border from the base and the rest from the sidecar. Parquet readers ask for chunks and pages,
    /// none of which spans the border; a range that does is put together from both.
    async fn read(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let border = self.view.border();
        let (mut base, mut sidecar) = (vec![], vec![]);
        for range in ranges {
            base.push(range.start.min(border)..range.end.min(border));
            sidecar.push(range.start.max(border) - border..range.end.max(border) - border);
        }
        let count = |part: &[Range<u64>]| part.iter().map(|r| r.end - r.start).sum::<u64>() as usize;
        let (from_base, from_sidecar) = (count(&base), count(&sidecar));
        self.scanned.add(from_base + from_sidecar);
        self.base_bytes.add(from_base);
        self.sidecar_bytes.add(from_sidecar);
        let sidecar_object = || self.view.shard.weights();
        let (base, sidecar) = tokio::try_join!(
            async { if from_base > 0 { fetch(&self.view.shard.base, &base).await } else { Ok(vec![Bytes::new(); base.len()]) } },
            async { if from_sidecar > 0 { fetch(sidecar_object()?, &sidecar).await } else { Ok(vec![Bytes::new(); sidecar.len()]) } }
        )?;
        Ok(base.into_iter().zip(sidecar).map(|(base, sidecar)| joined(base, sidecar)).collect())
    }
}

/// The bytes of `ranges`, empty ones without a request.
async fn fetch(object: &StoredObject, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
    let wanted: Vec<_> = ranges.iter().filter(|r| !r.is_empty()).cloned().collect();
    let mut found = object.ranges(&wanted).await?.into_iter();
    Ok(ranges.iter().map(|r| if r.is_empty() { Bytes::new() } else { found.next().unwrap_or_default() }).collect())
}

fn joined(first: Bytes, second: Bytes) -> Bytes {
    match (first.is_empty(), second.is_empty()) {
        (_, true) => first,
        (true, _) => second,
        _ => [first, second].concat().into(),
    }
}

impl AsyncFileReader for ShardReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        async move {
            let bytes = self.read(std::slice::from_ref(&range)).await.map_err(in_parquet)?;
            bytes.into_iter().next().ok_or_else(|| in_parquet(Error::Internal(format!("no bytes for {range:?}"))))
        }
        .boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        async move { self.read(&ranges).await.map_err(in_parquet) }.boxed()
    }

    fn get_metadata<'a>(&'a mut self, _options: Option<&'a ArrowReaderOptions>) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        // Page indexes come along even where the scan asks to skip them: loaded by the scan itself, the sidecar's page locations
        // would not be moved behind the base.
        async move {
            if let Some(prefetch) = &self.prefetch {
                prefetch.reached(&self.view.shard);
            }
            self.view.metadata().await.map_err(in_parquet)
        }
        .boxed()
    }
}

/// Our error inside DataFusion's, from where `SqlSession` takes it out again.
pub(super) fn external(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

fn in_parquet(error: Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}
