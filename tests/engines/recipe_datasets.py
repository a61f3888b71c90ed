# Hugging Face datasets: a sample of the corpus in which a row is as likely as its weight says, for any trainer.
from datasets import load_dataset
import numpy as np

def sample(files, n, seed=0, column="weight"):
    rows = load_dataset("parquet", data_files=files, split="train")  # spliced shards: DeltaTable("spliced").file_uris()
    weight = np.nan_to_num(np.array(rows[column], dtype=float))  # a row without text has no weight, and is never drawn
    drawn = np.random.default_rng(seed).choice(len(rows), size=n, p=weight / weight.sum())
    return rows.select(drawn)
