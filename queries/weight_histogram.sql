-- How are the weights distributed?
--
-- One line for each doubling of the weight from 1/256 to 8; the first line holds everything lower, the last everything higher. The
-- average weight is 1: rows in lines before at_least = 1 count less than they do in the corpus as it is. Reads weights only.
--
-- at_least: the line's lowest weight (its highest is the next doubling); row_count: its rows; share: of all rows that have a
-- weight; share_so_far: the same for this line and those before it.

with binned as (
    select
        case
            when weight < 0.00390625 then 0.0
            when weight < 0.0078125 then 0.00390625
            when weight < 0.015625 then 0.0078125
            when weight < 0.03125 then 0.015625
            when weight < 0.0625 then 0.03125
            when weight < 0.125 then 0.0625
            when weight < 0.25 then 0.125
            when weight < 0.5 then 0.25
            when weight < 1.0 then 0.5
            when weight < 2.0 then 1.0
            when weight < 4.0 then 2.0
            when weight < 8.0 then 4.0
            else 8.0
        end as at_least
    from corpus
    where weight is not null
),

counted as (
    select at_least, cast(count(*) as double) as rows_in_line
    from binned
    group by at_least
)

select
    at_least,
    cast(rows_in_line as bigint) as row_count,
    rows_in_line / sum(rows_in_line) over () as share,
    sum(rows_in_line) over (order by at_least) / sum(rows_in_line) over () as share_so_far
from counted
order by at_least
