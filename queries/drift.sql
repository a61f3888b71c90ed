-- How did the weights move between two versions of the weights table?
--
-- Compares the version before the newest with the newest one. For other versions change weights_at(-1) below, as in weights_at(12), and
-- weights; the table runs has their numbers. Earlier versions can be read until they are vacuumed.
--
-- One line for each doubling of the weight from 1/256 to 8; the first line holds everything lower, the last everything higher.
-- rows_before, rows_now: rows in the line; share_before, share_now: of all rows with a weight; psi: the line's part of the population
-- stability index, (share_now - share_before) * ln(share_now / share_before), with half a row added to each line; psi_total: their
-- sum. As a rule of thumb, under 0.1 little has moved and over 0.25 so much that a threshold chosen before needs a second look. Which rows
-- moved: decision_changed.sql. Reads weights only.

with before as (
    select weight
    from weights_at(-1)
    where weight is not null
),

now as (
    select weight
    from weights
    where weight is not null
),

placed as (
    select floor(greatest(least(log2(greatest(cast(weight as double), 1e-30)), 3), -9)) as doubling, 1 as before, 0 as now
    from before
    union all
    select floor(greatest(least(log2(greatest(cast(weight as double), 1e-30)), 3), -9)) as doubling, 0 as before, 1 as now
    from now
),

counted as (
    select doubling, sum(before) as rows_before, sum(now) as rows_now
    from placed
    group by doubling
),

shares as (
    select
        *,
        (rows_before + 0.5) / (sum(rows_before) over () + 0.5 * count(*) over ()) as smooth_before,
        (rows_now + 0.5) / (sum(rows_now) over () + 0.5 * count(*) over ()) as smooth_now
    from counted
)

select
    case when doubling < -8 then 0 else power(2.0, doubling) end as at_least,
    rows_before,
    rows_now,
    cast(rows_before as double) / sum(rows_before) over () as share_before,
    cast(rows_now as double) / sum(rows_now) over () as share_now,
    (smooth_now - smooth_before) * ln(smooth_now / smooth_before) as psi,
    sum((smooth_now - smooth_before) * ln(smooth_now / smooth_before)) over () as psi_total
from shares
order by doubling
