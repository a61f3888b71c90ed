-- Which rows gained the most weight?
--
-- The 20 rows with the highest weights. weight: 1 on average; pull and push: the costs to the safe and to the harmful references;
-- safe_ref: the safe reference that takes the largest part of the row's mass.
--
-- Uses the columns prompt and response, which your corpus may not have: put your own text columns in their place.

select weight, shard, row, pull, push, safe_ref, prompt, response
from corpus
where weight is not null
order by weight desc, shard, row
limit 20
