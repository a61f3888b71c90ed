-- Which rows are near no reference at all?
--
-- The 20 rows for which the nearer of the two sides is the farthest: sorted by the better of their two ranks, by pull (cost to the safe
-- references) and by push (cost to the harmful ones). pull_rank and push_rank: the share of rows that are nearer, 1 is the farthest row of
-- all. Their weights rest on references about something else; if there are many of a kind, add references like them on the side where they
-- belong.
--
-- Uses the columns prompt and response, which your corpus may not have: put your own text columns in their place.

with ranked as (
    select
        shard,
        row,
        weight,
        percent_rank() over (order by pull) as pull_rank,
        percent_rank() over (order by push) as push_rank
    from corpus
    where weight is not null
),

farthest as (
    select *
    from ranked
    order by least(pull_rank, push_rank) desc, shard, row
    limit 20
)

select
    farthest.shard,
    farthest.row,
    farthest.weight,
    farthest.pull_rank,
    farthest.push_rank,
    corpus.prompt,
    corpus.response
from farthest
join corpus
    on corpus.shard = farthest.shard and corpus.row = farthest.row
order by least(farthest.pull_rank, farthest.push_rank) desc, farthest.shard, farthest.row
