-- Which rows are the best 80 % of the corpus by weight?
--
-- Of n rows that have a weight, exactly floor(0.8 * n) are returned, those with the highest weights; rows of equal weight are
-- taken in the order of shard and row, so the answer is the same each time. Rows without a weight (no text) are not counted and
-- not returned. For another share, change the 80 below.
--
-- The place of the cut is found from the weights alone; the corpus is then read once, without sorting its texts.
-- Columns: all of the corpus, then the weight columns. shard, row: where the row is; weight: its safety weight, 1 on average.

with ranked as (
    select
        shard,
        row,
        weight,
        row_number() over (order by weight desc, shard, row) as place,
        count(*) over () as weighed
    from corpus
    where weight is not null
),

last_kept as (
    select shard, row, weight
    from ranked
    where place = weighed * 80 / 100
)

select corpus.*
from corpus
cross join last_kept
where
    corpus.weight > last_kept.weight
    or (
        corpus.weight = last_kept.weight
        and (
            corpus.shard < last_kept.shard
            or (corpus.shard = last_kept.shard and corpus.row <= last_kept.row)
        )
    )
