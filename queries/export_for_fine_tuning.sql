-- What do I give to a fine-tuning run: which rows, and how much does each count?
--
-- The best 80 % of the rows by weight, rows that tie with the last one included. Their weights are divided by the mean of those kept: 1 on
-- average, so that a learning rate means what it meant without weights. For another share change the 0.8; for all rows put 1.0.
--
-- shard, row: where the row is; loss_weight: what its loss is multiplied by. Write it to a file with --format parquet (or json), or from
-- within by putting it into copy (...) to 's3://lake/train.parquet' and adding --allow-write. The texts are read once and not sorted.
--
-- Uses the columns prompt and response, which your corpus may not have: put your own text columns in their place, the job's text_fallback among
-- them.

with kept as (
    select *
    from corpus
    where weight >= weight_cutoff(0.8)
),

average as (
    select avg(weight) as mean_weight
    from kept
)

select
    kept.shard,
    kept.row,
    kept.prompt,
    kept.response,
    kept.weight / average.mean_weight as loss_weight
from kept
cross join average
