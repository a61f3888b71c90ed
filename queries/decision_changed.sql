-- Which rows are kept now and were not before, or the other way round?
--
-- A row is kept if its weight is at least 0.5: change the number below to your own threshold. Compares the version before the newest
-- with the newest one; for another one change weights_at(-1), as in weights_at(12). Only shards that are the same in both are compared, so
-- that the weight is what changed and not the row. The largest changes come first.
--
-- decision: what became of the row; shard, row: where it is; weight_before, weight_now; harm_ref: the harmful reference that takes the
-- largest part of its mass now; then its texts.
--
-- Uses the columns prompt and response, which your corpus may not have: put your own text columns in their place.

with asked as (
    select cast(0.5 as real) as threshold
),

changed as (
    select
        now.shard,
        now.row,
        before.weight as weight_before,
        now.weight as weight_now,
        now.harm_ref,
        now.weight >= asked.threshold as is_kept
    from weights as now
    join weights_at(-1) as before
        on
            before.shard = now.shard
            and before.shard_version = now.shard_version
            and before.row = now.row
    cross join asked
    where (now.weight >= asked.threshold) <> (before.weight >= asked.threshold)
)

select
    case when changed.is_kept then 'kept now' else 'dropped now' end as decision,
    changed.shard,
    changed.row,
    changed.weight_before,
    changed.weight_now,
    changed.harm_ref,
    corpus.prompt,
    corpus.response
from changed
join corpus
    on corpus.shard = changed.shard and corpus.row = changed.row
order by abs(changed.weight_now - changed.weight_before) desc, changed.shard, changed.row
