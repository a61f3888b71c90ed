//! Which ranges of which object each kind of query reads, in words that a person can review: `snapshots/*.txt`, one file a query.
//! `PUSHPULL_UPDATE_SNAPSHOTS=1` writes them anew.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};

use super::recording::RecordingStore;
use super::shards::{add_parquet, ipc_file, paged, rows, split, unindexed, weights};
use super::{Lake, lines};

/// The kinds of queries: a name, which is the snapshot's, and the SQL.
const QUERIES: [(&str, &str); 27] = [
    ("all_columns", "select * from corpus"),
    ("weight_alone", "select weight from corpus"),
    ("weight_filtered", "select weight, harm_ref from corpus where weight > 0.9"),
    ("text_of_few_rows", "select text from corpus where weight > 0.985 and shard = 'region=web/indexed.parquet'"),
    ("text_of_half_the_rows", "select text from corpus where weight > 0.5"),
    ("weight_impossible", "select * from corpus where weight > 2"),
    ("count", "select count(*) from corpus"),
    ("count_of_weights", "select count(weight) from corpus"),
    ("bounds_of_the_weight", "select min(weight), max(weight) from corpus"),
    ("mean_weight", "select avg(weight) from corpus"),
    ("bounds_of_a_base_column", "select min(id), max(id) from corpus where shard like '%.parquet'"),
    ("limit", "select id, weight from corpus limit 10"),
    ("heaviest", "select id, weight from corpus order by weight desc limit 10"),
    ("by_folder_key", "select region, count(*) from corpus group by region"),
    ("weight_by_folder_key", "select region, avg(weight) from corpus group by region"),
    ("one_folder", "select id, weight from corpus where region = 'book'"),
    ("one_shard", "select id, text, weight from corpus where shard = 'region=web/indexed.parquet' and row < 100"),
    ("base_alone", "select text from corpus where region = 'web' and id between 5000 and 5010"),
    ("base_and_weight_filters", "select id from corpus where weight > 0.9 and id < 300"),
    ("arrow_text", "select text from corpus where shard = 'region=book/rows.arrow'"),
    ("arrow_with_weight", "select id, weight from corpus where shard = 'region=book/rows.arrow' and weight > 0.99"),
    ("no_page_index", "select text from corpus where shard = 'region=web/plain.parquet' and weight > 0.96"),
    ("not_weighed", "select id, weight from corpus where region = 'new' and shard like '%unweighed%'"),
    ("not_weighed_weight_alone", "select weight, pull from corpus where shard like '%unweighed%'"),
    ("missing_column", "select id from corpus where n > 990 and shard like '%drifted%'"),
    ("join_with_references", "select c.id, r.category from corpus c join refs r on c.harm_ref = r.id where c.weight > 0.995"),
    ("model_and_version", "select distinct shard, shard_version, model from corpus"),
];

async fn lake() -> Lake {
    let mut lake = Lake::new();
    lake.logged = true;
    let usual = ["id", "text", "n"];
    add_parquet(&mut lake, "region=web/indexed.parquet", rows(0..12_000, &usual), 0..12_000, &[8_000, 4_000], paged(), true).await;
    add_parquet(&mut lake, "region=web/plain.parquet", rows(12_000..18_000, &usual), 12_000..18_000, &[3_000, 3_000], unindexed(), true)
        .await;
    let drifted = rows(18_000..21_000, &["text", "id"]);
    add_parquet(&mut lake, "region=book/drifted.parquet", drifted, 18_000..21_000, &[3_000], paged(), true).await;
    let data = rows(21_000..23_000, &["id", "text"]);
    let sidecar = (weights("x", 21_000..23_000), vec![1_000, 1_000]);
    lake.add("region=book/rows.arrow", ipc_file(&split(&data, &[1_000, 1_000])), vec![data], Some(sidecar)).await;
    add_parquet(&mut lake, "region=new/tiny.parquet", rows(23_000..23_020, &usual), 23_000..23_020, &[20], paged(), true).await;
    add_parquet(&mut lake, "region=new/unweighed.parquet", rows(24_000..26_000, &usual), 24_000..26_000, &[2_000], paged(), false).await;
    lake
}

fn references() -> RecordBatch {
    let text = |of: fn(usize) -> String| -> ArrayRef { Arc::new(StringArray::from_iter_values((0..4).map(of))) };
    RecordBatch::try_from_iter([("id", text(|i| format!("harm{i}"))), ("category", text(|i| format!("kind {i}")))]).unwrap()
}

#[tokio::test]
async fn every_kind_of_query_reads_what_its_snapshot_says() {
    let lake = lake().await;
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/sql/tests/snapshots");
    let update = std::env::var_os("PUSHPULL_UPDATE_SNAPSHOTS").is_some();
    let mut wrong = vec![];
    for (name, sql) in QUERIES {
        let session = lake.session(1).await.unwrap();
        let refs = references();
        session.register_batches("refs", refs.schema(), vec![refs]).unwrap();
        assert_eq!((lake.corpus.reads(""), lake.output.reads("")), (vec![], vec![]), "opening the table reads nothing");
        let count = lines(&session, sql).await.unwrap().len();
        let mut told = format!("{sql}\n{count} rows\n");
        for shard in &lake.shards {
            let name = &shard.listed.name;
            told += &objects(&lake.corpus, "base", &shard.listed.meta.location, name).await;
            if let Some(sidecar) = &shard.listed.sidecar {
                told += &objects(&lake.output, "sidecar", &sidecar.meta.location, name).await;
            }
        }
        let file = folder.join(name).with_extension("txt");
        if update {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&file, &told).unwrap();
        }
        let expected = std::fs::read_to_string(&file).unwrap_or_default();
        if expected != told {
            wrong.push(format!("--- {name}: expected\n{expected}--- found\n{told}"));
        }
    }
    assert!(wrong.is_empty(), "set PUSHPULL_UPDATE_SNAPSHOTS=1 and review\n{}", wrong.join("\n"));
}

/// What was read of one object, if anything.
async fn objects(store: &RecordingStore, role: &str, location: &Path, shard: &str) -> String {
    let reads = store.reads(location.as_ref());
    if reads.is_empty() {
        return String::new();
    }
    // Not recorded: the reads are taken already, and forgotten before the next query.
    let bytes = store.get(location).await.unwrap().bytes().await.unwrap();
    let size = bytes.len() as u64;
    let read: u64 = reads.iter().map(|r| r.end - r.start).sum();
    let requests = if reads.len() == 1 { "1 request".to_owned() } else { format!("{} requests", reads.len()) };
    let mut told = format!("\n{role} of {shard}: {requests}, {} of {size} bytes\n", read);
    if let [only] = reads.as_slice()
        && *only == (0..size)
    {
        told += "  all of it\n";
        return told;
    }
    match ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional).parse_and_finish(&bytes) {
        Ok(footer) => told += &parquet_parts(&footer, &bytes, &reads),
        Err(_) => {
            for range in reads {
                let place = if range.end == size { "its end, with the footer" } else { "messages" };
                writeln!(told, "  {place}: {} bytes", range.end - range.start).unwrap();
            }
        }
    }
    told
}

fn parquet_parts(footer: &ParquetMetaData, bytes: &Bytes, reads: &[Range<u64>]) -> String {
    let size = bytes.len() as u64;
    let mut told = String::new();
    for range in reads {
        let covers = |part: &Range<u64>| part.start < range.end && range.start < part.end;
        if range.end == size {
            writeln!(told, "  the last {} bytes, with the footer", range.end - range.start).unwrap();
            continue;
        }
        let mut parts: Vec<String> = vec![];
        for (g, group) in footer.row_groups().iter().enumerate() {
            for (c, chunk) in group.columns().iter().enumerate() {
                let name = chunk.column_path().string();
                let (start, length) = chunk.byte_range();
                if covers(&(start..start + length)) {
                    parts.push(format!("row group {g}, {name}: {}", pages(footer, g, c, start..start + length, range)));
                }
            }
        }
        let mut indexes: BTreeMap<&str, usize> = BTreeMap::new();
        for chunk in footer.row_groups().iter().flat_map(|group| group.columns()) {
            let (column, offset) = (
                chunk.column_index_offset().zip(chunk.column_index_length()),
                chunk.offset_index_offset().zip(chunk.offset_index_length()),
            );
            for (kind, place) in [("column indexes", column), ("offset indexes", offset)] {
                if place.is_some_and(|(start, length)| covers(&(start as u64..start as u64 + length as u64))) {
                    *indexes.entry(kind).or_default() += 1;
                }
            }
        }
        parts.extend(indexes.iter().map(|(kind, count)| format!("{count} {kind}")));
        writeln!(told, "  {} bytes: {}", range.end - range.start, parts.join("; ")).unwrap();
    }
    told
}

/// Which pages of a chunk a range covers.
fn pages(footer: &ParquetMetaData, group: usize, column: usize, chunk: Range<u64>, range: &Range<u64>) -> String {
    let Some(index) = footer.offset_index().and_then(|index| index.get(group)?.get(column)) else {
        return if range.start <= chunk.start && chunk.end <= range.end {
            "the whole chunk".to_owned()
        } else {
            "a part of the chunk".to_owned()
        };
    };
    let places = index.page_locations();
    let covered: Vec<usize> = (0..places.len())
        .filter(|&page| {
            let start = places[page].offset as u64;
            start < range.end && range.start < start + places[page].compressed_page_size as u64
        })
        .collect();
    let dictionary = places
        .first()
        .is_some_and(|first| chunk.start < first.offset as u64 && range.start < first.offset as u64 && chunk.start < range.end);
    let mut parts = vec![];
    if dictionary {
        parts.push("dictionary".to_owned());
    }
    match (covered.first(), covered.last()) {
        (Some(first), Some(last)) if first == last => parts.push(format!("page {} of {}", first + 1, places.len())),
        (Some(first), Some(last)) => parts.push(format!("pages {}-{} of {}", first + 1, last + 1, places.len())),
        _ => {}
    }
    parts.join(", ")
}
