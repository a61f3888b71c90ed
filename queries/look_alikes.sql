-- Which rows are near both the safe and the harmful references?
--
-- The 20 rows for which the farther of the two sides is the nearest: sorted by the worse of their two ranks, by pull (cost to the safe
-- references) and by push (cost to the harmful ones). pull_rank and push_rank: the share of rows that are nearer, 0 is the nearest row
-- of all. They are refusals, warnings and innocent questions in harmful words, and harm in innocent words: where a score is most likely
-- to be wrong, and what to look at before a threshold is chosen. safe_* and harm_* are the references that take the largest part of the row.
--
-- Uses the columns prompt and response, which your corpus may not have: put your own text columns in their place.

with ranked as (
    select
        shard,
        row,
        weight,
        safe_ref,
        harm_ref,
        percent_rank() over (order by pull) as pull_rank,
        percent_rank() over (order by push) as push_rank
    from corpus
    where weight is not null
),

nearest as (
    select *
    from ranked
    order by greatest(pull_rank, push_rank), shard, row
    limit 20
)

select
    nearest.shard,
    nearest.row,
    nearest.weight,
    nearest.pull_rank,
    nearest.push_rank,
    nearest.safe_ref,
    safe.category as safe_category,
    nearest.harm_ref,
    harm.category as harm_category,
    corpus.prompt,
    corpus.response
from nearest
join corpus
    on corpus.shard = nearest.shard and corpus.row = nearest.row
left join references as safe
    on safe.id = nearest.safe_ref and safe.side = 'safe'
left join references as harm
    on harm.id = nearest.harm_ref and harm.side = 'harm'
order by greatest(nearest.pull_rank, nearest.push_rank), nearest.shard, nearest.row
