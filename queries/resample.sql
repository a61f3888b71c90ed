-- How often does each row stand in the corpus if it is drawn anew by weight?
--
-- For a trainer that knows no weights: every row is copied as often as it weighs, on average over seeds exactly so. A row of weight
-- 2.3 has 2 or 3 copies, one of weight 0.1 has 1 in a tenth of the seeds; rows without a copy are not returned. The whole corpus keeps
-- about its number of rows. The same seed gives the same copies each time; the seed is the 0 in resample_count. For a corpus of half
-- the size write resample_count(0.5 * weight, 0, shard, row).
--
-- One pass, nothing is sorted. copies: how often to repeat the row; then all columns of the corpus.

with resampled as (
    select resample_count(weight, 0, shard, row) as copies, corpus.*
    from corpus
    where weight > 0
)

select *
from resampled
where copies > 0
