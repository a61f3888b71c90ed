-- Which rows lost the most weight, and which harmful reference are they close to?
--
-- The 20 rows with the lowest weights (1 is the average). pull is the row's cost to the safe references and prior the learned
-- evidence of harm: the higher, the lower the weight. push is the cost to the harmful references: the lower, the lower the weight.
-- harm_ref is the harmful reference that takes the largest part of the row's mass; harm_category and harm_text are that reference's.
--
-- Uses the columns prompt and response, which your corpus may not have: put your own text columns in their place.

with lowest as (
    select shard, row, weight, pull, push, prior, harm_ref, prompt, response
    from corpus
    where weight is not null
    order by weight, shard, row
    limit 20
)

select
    lowest.weight,
    lowest.shard,
    lowest.row,
    lowest.pull,
    lowest.push,
    lowest.prior,
    lowest.harm_ref,
    harm.category as harm_category,
    harm.text as harm_text,
    lowest.prompt,
    lowest.response
from lowest
left join references as harm
    on harm.id = lowest.harm_ref and harm.side = 'harm'
order by lowest.weight, lowest.shard, lowest.row
