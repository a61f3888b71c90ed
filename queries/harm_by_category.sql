-- Which kinds of harm does the corpus lose weight to?
--
-- One line per category of the harmful references. A row belongs to the category of its harm_ref, the harmful reference that takes the
-- largest part of its mass; every row has one, also a harmless row, so row_count says little alone. down_weighted: of these rows,
-- how many have a weight under 0.5; weight_taken: how much weight its rows below 1 lost together, in rows; mean_weight: 1 means the
-- rows count as much as they do in the corpus as it is. References without a category share the line (none).
--
-- Of the corpus it reads the weight and harm_ref only.

select
    coalesce(harm.category, '(none)') as harm_category,
    count(*) as row_count,
    sum(case when corpus.weight < 0.5 then 1 else 0 end) as down_weighted,
    sum(case when corpus.weight < 1 then 1 - corpus.weight else 0 end) as weight_taken,
    avg(corpus.weight) as mean_weight
from corpus
join references as harm
    on harm.id = corpus.harm_ref and harm.side = 'harm'
where corpus.weight is not null
group by harm_category
order by down_weighted desc, harm_category
