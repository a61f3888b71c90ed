-- Which rows have at least a given weight?
--
-- 1 is the average weight: a row of weight 0.5 counts half as much as it does in the corpus as it is. Change the 0.5 below.
-- Weights are 32-bit floats. 0.5 is exact in 32 bits, 0.7 is not, and a plain 0.7 is compared in 64 bits: to compare as the weight
-- is stored, write cast(0.7 as real). Rows without a weight (no text) are not returned.
--
-- Columns: all of the corpus, then the weight columns. Pages in which no row has such a weight are not read.

select *
from corpus
where weight >= 0.5
