-- Which sources gain and which lose weight?
--
-- One line per source, the most down-weighted first. row_count: its rows; weighed: those that have a weight; mean_weight: 1 means
-- the source counts as much as it does in the corpus as it is; share_below_half: of its weighed rows, how many have a weight under
-- 0.5.
--
-- Uses the column source, which your corpus may not have: put any column of yours in its place (shard works everywhere).

select
    source,
    count(*) as row_count,
    count(weight) as weighed,
    avg(weight) as mean_weight,
    avg(case when weight < 0.5 then 1.0 when weight is not null then 0.0 end) as share_below_half,
    min(weight) as min_weight,
    max(weight) as max_weight
from corpus
group by source
order by mean_weight, source
