import collections, os, tempfile
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(dir=".")
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
everything = expected()
wanted = {values[0]: values for values in everything.values()}
if spliced:
    files = DeltaTable("spliced").file_uris()
else:
    # Joined by position, one file a shard: what splice makes, written by pyarrow.
    files, parts = [], collections.defaultdict(list)
    for shard, base, weight in recipe_pyarrow.rows("corpus", "output"):
        columns = {c: pa.array(base.column(c).to_pylist(), pa.string()) for c in COLUMNS[2:-1]}
        parts[shard].append(pa.table({**columns, "weight": weight}))
    for at, tables in enumerate(parts.values()):
        files.append(os.path.abspath(f"joined-{at}.parquet"))
        pq.write_table(pa.concat_tables(tables), files[-1])
sample = recipe_datasets.sample(files, 20_000)
assert sample.num_rows == 20_000
whole = recipe_datasets.load_dataset("parquet", data_files=files, split="train")
rows = zip(*(whole[c] for c in COLUMNS[2:]))
same({row[0]: tuple(row) for row in rows}, wanted, "datasets")
times = collections.Counter(sample["id"])
total = sum(values[-1] or 0 for values in wanted.values())
for id_, values in wanted.items():
    mean = 20_000 * (values[-1] or 0) / total
    assert abs(times[id_] - mean) <= 6 * mean**0.5 + 1, f"{id_} was drawn {times[id_]} times, not {mean:.1f}"
best = whole.filter(lambda weight: weight is not None and weight >= 1, input_columns="weight")
assert set(best["id"]) == {values[0] for values in wanted.values() if (values[-1] or 0) >= 1}
again = recipe_datasets.sample(files, 20_000)
assert again["id"] == sample["id"], "the same seed draws the same rows"
