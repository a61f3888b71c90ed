-- What does a threshold on the weight cost?
--
-- One line for each threshold asked for below: what is left of the corpus if rows of a lower weight are dropped. rows_kept and
-- row_share; characters_kept and character_share: of the texts; tokens_kept: characters / 4, a rule of thumb for English;
-- weight_share: how much of the corpus's weight is left, which is what a weighted fine-tuning run loses. Rows without a weight are not counted.
--
-- Uses the columns prompt and response, which your corpus may not have: put your own text columns in their place.

with asked (threshold) as (
    values (0.0), (0.05), (0.1), (0.25), (0.5), (0.75), (1.0), (2.0)
),

measured as (
    select
        cast(weight as double) as weight,
        coalesce(character_length(prompt), 0) + coalesce(character_length(response), 0) as characters
    from corpus
    where weight is not null
),

whole as (
    select count(*) as row_count, sum(characters) as characters, sum(weight) as weight
    from measured
),

kept as (
    select asked.threshold, count(*) as row_count, sum(measured.characters) as characters, sum(measured.weight) as weight
    from asked
    join measured
        on measured.weight >= asked.threshold
    group by asked.threshold
)

select
    asked.threshold,
    coalesce(kept.row_count, 0) as rows_kept,
    cast(coalesce(kept.row_count, 0) as double) / whole.row_count as row_share,
    coalesce(kept.characters, 0) as characters_kept,
    cast(coalesce(kept.characters, 0) as double) / whole.characters as character_share,
    coalesce(kept.characters, 0) / 4 as tokens_kept,
    coalesce(kept.weight, 0) / whole.weight as weight_share
from asked
left join kept
    on kept.threshold = asked.threshold
cross join whole
order by asked.threshold
