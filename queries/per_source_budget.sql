-- Which rows do I take if each source may give only so many?
--
-- Of every source the 10 rows with the highest weights, or all it has if these are fewer; for another budget change the 10 below. Sources
-- without such a bound crowd out the others where their rows are near the safe references.
--
-- source; place: 1 is the source's heaviest row; available: how many rows of the source have a weight; then the row.
--
-- Uses the columns source, prompt and response, which your corpus may not have: put any columns of yours in their place.

with asked as (
    select 10 as rows_a_source
),

ranked as (
    select
        source,
        shard,
        row,
        row_number() over (partition by source order by weight desc, shard, row) as place,
        count(*) over (partition by source) as available
    from corpus
    where weight is not null
),

taken as (
    select ranked.*
    from ranked
    cross join asked
    where ranked.place <= asked.rows_a_source
)

select
    taken.source,
    taken.place,
    taken.available,
    corpus.shard,
    corpus.row,
    corpus.weight,
    corpus.prompt,
    corpus.response
from taken
join corpus
    on corpus.shard = taken.shard and corpus.row = taken.row
order by taken.source, taken.place
