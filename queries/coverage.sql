-- Which references does the corpus use, and which not at all?
--
-- One line per reference, the least used first. A row belongs to the safe and to the harmful reference that take the largest part of its
-- mass. mass_share: what the reference has of its side's mass; row_count: rows that belong to it; row_share: of all rows with a
-- weight; use: row_share / mass_share, 1 where it takes as many rows as its mass asks for; mean_weight: of its rows.
--
-- Unused safe references stand for something the corpus lacks; one that takes very many rows stands for too much, and more like it would tell
-- them apart. Unused harmful references are good news. Rows that are near no reference: far_from_references.sql. Reads weights only.

with used as (
    select 'safe' as side, safe_ref as id, count(*) as row_count, avg(weight) as mean_weight
    from corpus
    where weight is not null
    group by safe_ref
    union all
    select 'harm' as side, harm_ref as id, count(*) as row_count, avg(weight) as mean_weight
    from corpus
    where weight is not null
    group by harm_ref
),

shared as (
    select
        ref.side,
        ref.id,
        ref.category,
        ref.mass / sum(ref.mass) over (partition by ref.side) as mass_share,
        coalesce(used.row_count, 0) as row_count,
        cast(coalesce(used.row_count, 0) as double) / sum(used.row_count) over (partition by ref.side) as row_share,
        used.mean_weight
    from references as ref
    left join used
        on used.side = ref.side and used.id = ref.id
)

select
    side,
    id,
    category,
    mass_share,
    row_count,
    row_share,
    row_share / mass_share as use,
    mean_weight
from shared
order by use, side, id
