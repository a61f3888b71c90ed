-- What is a sample of n rows in which a row's chance grows with its weight?
--
-- 50 rows, drawn one after another without putting any back, each with a chance in proportion to its weight among those left. The same
-- seed gives the same rows each time, whatever the threads; another seed gives others. For another size change the 50, for another seed
-- the first 0 in sample_key. Rows without a weight and rows of weight 0 are never drawn.
--
-- draw: 1 is the row that was drawn first, so the first m lines are a sample of m rows. Which rows are drawn is found from weights alone.
--
-- Uses the columns prompt and response, which your corpus may not have: put your own text columns in their place.

with drawn as (
    select shard, row, sample_key(weight, 0, shard, row) as draw_key
    from corpus
    where weight > 0
    order by draw_key desc, shard, row
    limit 50
)

select
    row_number() over (order by drawn.draw_key desc, drawn.shard, drawn.row) as draw,
    corpus.shard,
    corpus.row,
    corpus.weight,
    corpus.prompt,
    corpus.response
from drawn
join corpus
    on corpus.shard = drawn.shard and corpus.row = drawn.row
order by draw
