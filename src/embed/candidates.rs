//! The text columns of a row in, the row as it reads in its windows out: as one vector, or as one vector for each window.
//!
//! Windows are those of [`Windows::cut`]; every distinct one is encoded once, as a text of its own.
//!
//! * **Mean**: a text's vector is the mean of its windows' unit vectors, scaled to unit length; rows are then joined as
//!   [`embed_views`](super::embed_views) does.
//! * **Candidates**: for each view and each of its windows, the row with this view read in this window alone and every other view by
//!   its mean. A row in which each view is one window has one candidate, itself.
//!
//! A text of one window has the vector that it has without windows, to the bit; but not where a static table with `max_length` would cut it by
//! its characters, as a window is read whole. A row's candidates depend on the row and the
//! encoder alone: not on the other rows, on how they are grouped here or on the number of threads.
//!
//! Memory: token offsets and windows of all texts given (some 16 bytes a token for the text under way, 40 bytes a window); vectors
//! of some [`WINDOWS_AT_ONCE`] windows or of one row, whichever is more; [`CANDIDATES_AT_ONCE`] candidates.

use std::collections::HashMap;
use std::ops::Range;

use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut1, s};
use rayon::prelude::*;

use super::views::{Place, RowTexts, RowVectors, join_views};
use super::window::Windows;
use super::{Encoder, unit};
use crate::error::{Error, Result};

/// Windows that are encoded together: enough to share among many threads.
const WINDOWS_AT_ONCE: usize = 4096;
/// Candidates that are handed on together; 8 MiB for two views of 256 dimensions.
const CANDIDATES_AT_ONCE: usize = 4096;

/// Where a window is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowPlace {
    /// The column it is in: the number of the view, or the number of views where the fallback was taken.
    pub column: usize,
    /// Where it begins in its text, in characters (Unicode scalar values) from 0.
    pub offset: usize,
}

/// One reading of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The row, counted from 0 in what was given.
    pub row: usize,
    /// The window that stands for its text. For a row of one candidate the beginning of its last view that has a text.
    pub window: WindowPlace,
}

/// Some candidates: those of a row follow one another, first by view, then by place.
#[derive(Debug, Clone, Copy)]
pub struct Candidates<'a> {
    /// One row a candidate, of unit length or zero.
    pub vectors: ArrayView2<'a, f32>,
    /// What they are, as many as `vectors` has rows.
    pub of: &'a [Candidate],
}

/// One vector a row, its texts read as the means of their windows. Everything else is as in [`embed_views`](super::embed_views).
///
/// # Errors
/// What [`Encoder::spans`] and [`Encoder::encode_windows`] return; [`Error::Internal`] where the columns differ in length or there is no view.
pub fn embed_windows(
    encoder: &dyn Encoder,
    views: &[Vec<Option<&str>>],
    fallback: Option<&[Option<&str>]>,
    windows: Windows,
) -> Result<RowVectors> {
    let (dims, width) = (encoder.dims(), encoder.dims() * views.len());
    let mut vectors = Array2::zeros((views.first().map_or(0, Vec::len), width));
    let present = visit_rows(encoder, views, fallback, windows, &mut |places, read| {
        for place in places {
            let mean = read.mean(place.text)?;
            vectors.slice_mut(s![place.row, place.view * dims..(place.view + 1) * dims]).assign(&mean);
        }
        places.first().map_or(Ok(()), |place| join_views(vectors.row_mut(place.row)))
    })?;
    Ok(RowVectors { vectors, present })
}

/// Hands every candidate of every row to `visit`, in the order of the rows and at most 4,096 at once, and tells which rows have any text
/// and so at least one candidate.
///
/// # Errors
/// As [`embed_windows`], and what `visit` returns.
pub fn embed_candidates(
    encoder: &dyn Encoder,
    views: &[Vec<Option<&str>>],
    fallback: Option<&[Option<&str>]>,
    windows: Windows,
    visit: &mut dyn FnMut(Candidates<'_>) -> Result<()>,
) -> Result<Vec<bool>> {
    let mut block = Block { vectors: Array2::zeros((CANDIDATES_AT_ONCE, encoder.dims() * views.len())), of: Vec::new() };
    let present = visit_rows(encoder, views, fallback, windows, &mut |places, read| {
        if places.iter().all(|place| read.windows(place.text).len() == 1) {
            let Some(last) = places.last() else { return Ok(()) };
            return block.push(places, read, last, None, visit);
        }
        places.iter().try_for_each(|place| {
            (0..read.windows(place.text).len()).try_for_each(|window| block.push(places, read, place, Some(window), visit))
        })
    })?;
    block.flush(visit)?;
    Ok(present)
}

/// Candidates on their way.
struct Block {
    vectors: Array2<f32>,
    of: Vec<Candidate>,
}

impl Block {
    /// The row of `places` with the text at `chosen` read in one window, or in whole.
    fn push(
        &mut self,
        places: &[Place],
        read: &Read<'_>,
        chosen: &Place,
        window: Option<usize>,
        visit: &mut dyn FnMut(Candidates<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut row: ArrayViewMut1<'_, f32> = self.vectors.row_mut(self.of.len());
        row.fill(0.0);
        for place in places {
            let vector = match window {
                Some(window) if place.view == chosen.view => read.window(place.text, window)?,
                _ => read.mean(place.text)?,
            };
            row.slice_mut(s![place.view * vector.len()..(place.view + 1) * vector.len()]).assign(&vector);
        }
        join_views(row)?;
        let offset = read.windows(chosen.text)[window.unwrap_or(0)].characters;
        self.of.push(Candidate { row: chosen.row, window: WindowPlace { column: chosen.column, offset } });
        if self.of.len() == CANDIDATES_AT_ONCE { self.flush(visit) } else { Ok(()) }
    }

    fn flush(&mut self, visit: &mut dyn FnMut(Candidates<'_>) -> Result<()>) -> Result<()> {
        if !self.of.is_empty() {
            visit(Candidates { vectors: self.vectors.slice(s![..self.of.len(), ..]), of: &self.of })?;
            self.of.clear();
        }
        Ok(())
    }
}

/// A window of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Window {
    bytes: Range<usize>,
    /// Where it begins, in characters.
    characters: usize,
}

fn cut(encoder: &dyn Encoder, text: &str, windows: Windows) -> Result<Vec<Window>> {
    let (mut at, mut characters) = (0, 0);
    let located = windows.cut(&encoder.spans(text)?, text.len()).into_iter().map(|bytes| {
        characters += text[at..bytes.start].chars().count();
        at = bytes.start;
        Window { bytes, characters }
    });
    Ok(located.collect())
}

/// The texts of some rows, read.
struct Read<'a> {
    windows: &'a [Vec<Window>],
    /// One row a distinct window.
    encoded: Array2<f32>,
    /// By text: which row of `encoded` each window has, and the mean's row in `means` where there are several.
    of_text: HashMap<usize, (Vec<usize>, Option<usize>)>,
    means: Vec<Vec<f32>>,
}

impl Read<'_> {
    fn windows(&self, text: usize) -> &[Window] {
        &self.windows[text]
    }

    fn of(&self, text: usize) -> Result<&(Vec<usize>, Option<usize>)> {
        self.of_text.get(&text).ok_or_else(|| Error::Internal(format!("text {text} was not read")))
    }

    fn window(&self, text: usize, window: usize) -> Result<ArrayView1<'_, f32>> {
        Ok(self.encoded.row(self.of(text)?.0[window]))
    }

    fn mean(&self, text: usize) -> Result<ArrayView1<'_, f32>> {
        match self.of(text)? {
            (_, Some(mean)) => Ok(ArrayView1::from(&self.means[*mean])),
            (rows, None) => Ok(self.encoded.row(rows[0])),
        }
    }
}

/// Reads rows a few at a time and hands each one that has text to `visit`, with its places.
fn visit_rows(
    encoder: &dyn Encoder,
    views: &[Vec<Option<&str>>],
    fallback: Option<&[Option<&str>]>,
    windows: Windows,
    visit: &mut dyn FnMut(&[Place], &Read<'_>) -> Result<()>,
) -> Result<Vec<bool>> {
    let RowTexts { texts, places, present } = RowTexts::of(views, fallback)?;
    let windows = texts.par_iter().map(|text| cut(encoder, text, windows)).collect::<Result<Vec<_>>>()?;
    let rows: Vec<&[Place]> = places.chunk_by(|a, b| a.row == b.row).collect();
    let mut rest = rows.as_slice();
    while !rest.is_empty() {
        let mut total = 0;
        let fits = rest.iter().take_while(|row| {
            total += row.iter().map(|place| windows[place.text].len()).sum::<usize>();
            total <= WINDOWS_AT_ONCE
        });
        let (now, later) = rest.split_at(fits.count().max(1));
        let read = read(encoder, &texts, &windows, now)?;
        now.iter().try_for_each(|row| visit(row, &read))?;
        rest = later;
    }
    Ok(present)
}

fn read<'a>(encoder: &dyn Encoder, texts: &[&str], windows: &'a [Vec<Window>], rows: &[&[Place]]) -> Result<Read<'a>> {
    let mut distinct: Vec<&str> = Vec::new();
    let mut known: HashMap<&str, usize> = HashMap::new();
    let mut of_text: HashMap<usize, (Vec<usize>, Option<usize>)> = HashMap::new();
    let mut long = Vec::new();
    for place in rows.iter().copied().flatten() {
        if of_text.contains_key(&place.text) {
            continue;
        }
        let row_of = |window: &Window| {
            let part = &texts[place.text][window.bytes.clone()];
            *known.entry(part).or_insert_with(|| {
                distinct.push(part);
                distinct.len() - 1
            })
        };
        let rows: Vec<usize> = windows[place.text].iter().map(row_of).collect();
        let mean = (rows.len() > 1).then(|| {
            long.push(rows.clone());
            long.len() - 1
        });
        of_text.insert(place.text, (rows, mean));
    }
    let encoded = encoder.encode_windows(&distinct)?;
    let means = long.par_iter().map(|rows| mean(&encoded, rows)).collect::<Result<Vec<_>>>()?;
    Ok(Read { windows, encoded, of_text, means })
}

/// The mean direction of some rows, or zero where they cancel out.
fn mean(encoded: &Array2<f32>, rows: &[usize]) -> Result<Vec<f32>> {
    let mut sum = vec![0.0_f64; encoded.ncols()];
    for &row in rows {
        sum.iter_mut().zip(encoded.row(row)).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    let count = rows.len() as f64;
    #[expect(clippy::cast_possible_truncation, reason = "a mean of f32 numbers")]
    let mut mean: Vec<f32> = sum.into_iter().map(|x| (x / count) as f32).collect();
    if unit::normalise(&mut mean) { Ok(mean) } else { Err(Error::Internal("an encoder gave a vector that is not finite".to_owned())) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Pool, builtin, embed_views};
    use super::*;

    const WINDOWS: Windows = Windows { window: 8, stride: 4, pool: Pool::Worst };

    type Column = Vec<Option<String>>;

    fn borrowed(column: &Column) -> Vec<Option<&str>> {
        column.iter().map(Option::as_deref).collect()
    }

    fn candidates(views: &[Vec<Option<&str>>], fallback: Option<&[Option<&str>]>) -> (Vec<(Candidate, Vec<f32>)>, Vec<bool>) {
        let mut found = vec![];
        let present = embed_candidates(builtin().unwrap().as_ref(), views, fallback, WINDOWS, &mut |block| {
            assert_eq!(block.vectors.nrows(), block.of.len());
            found.extend(block.of.iter().zip(block.vectors.rows()).map(|(of, row)| (*of, row.to_vec())));
            Ok(())
        });
        (found, present.unwrap())
    }

    /// The definition, one row at a time with nothing shared.
    fn naive(row: &[Option<&str>], fallback: Option<&str>) -> (Vec<(WindowPlace, Vec<f32>)>, Vec<f32>) {
        let encoder = builtin().unwrap();
        let dims = encoder.dims();
        let mut texts: Vec<(usize, usize, &str)> = row.iter().enumerate().filter_map(|(v, text)| Some((v, v, (*text)?))).collect();
        if texts.is_empty()
            && let Some(text) = fallback
        {
            texts.push((row.len() - 1, row.len(), text));
        }
        let parts = |text: &str| WINDOWS.cut(&encoder.spans(text).unwrap(), text.len());
        let vector = |text: &str| encoder.encode(&[text]).unwrap().row(0).to_vec();
        let mean = |text: &str| -> Vec<f32> {
            let parts = parts(text);
            if parts.len() == 1 {
                return vector(text);
            }
            let vectors: Vec<Vec<f32>> = parts.iter().map(|part| vector(&text[part.clone()])).collect();
            let mut sum: Vec<f32> =
                (0..dims).map(|d| (vectors.iter().map(|v| f64::from(v[d])).sum::<f64>() / vectors.len() as f64) as f32).collect();
            assert!(unit::normalise(&mut sum));
            sum
        };
        let join = |chosen: Option<(usize, Vec<f32>)>| {
            let mut joined = vec![0.0; dims * row.len()];
            for &(view, _, text) in &texts {
                let part = chosen.as_ref().filter(|(v, _)| *v == view).map_or_else(|| mean(text), |(_, vector)| vector.clone());
                joined[view * dims..(view + 1) * dims].copy_from_slice(&part);
            }
            assert!(unit::normalise(&mut joined));
            joined
        };
        if texts.iter().all(|(_, _, text)| parts(text).len() == 1) {
            let one = texts.last().map(|&(_, column, _)| (WindowPlace { column, offset: 0 }, join(None)));
            return (one.into_iter().collect(), join(None));
        }
        let mut found = vec![];
        for &(view, column, text) in &texts {
            for part in parts(text) {
                let offset = text[..part.start].chars().count();
                found.push((WindowPlace { column, offset }, join(Some((view, vector(&text[part]))))));
            }
        }
        (found, join(None))
    }

    fn check(prompts: &Column, responses: &Column, texts: &Column) {
        let views = [borrowed(prompts), borrowed(responses)];
        let fallback = borrowed(texts);
        let (found, present) = candidates(&views, Some(&fallback));
        let means = embed_windows(builtin().unwrap().as_ref(), &views, Some(&fallback), WINDOWS).unwrap();
        assert_eq!(means.present, present);
        let mut rest = found.as_slice();
        for row in 0..prompts.len() {
            let (expected, mean) = naive(&[views[0][row], views[1][row]], fallback[row]);
            let (own, others) = rest.split_at(rest.iter().take_while(|(of, _)| of.row == row).count());
            rest = others;
            let own: Vec<(WindowPlace, Vec<f32>)> = own.iter().map(|(of, vector)| (of.window, vector.clone())).collect();
            assert!(own == expected, "row {row}");
            assert_eq!(present[row], !expected.is_empty());
            assert_eq!(means.vectors.row(row).to_vec(), mean, "row {row}");
        }
        assert!(rest.is_empty());
    }

    fn words() -> impl Strategy<Value = Option<String>> {
        prop::option::weighted(0.7, "([a-zé]{1,7} ){0,30}")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn as_the_definition_says_row_by_row(rows in prop::collection::vec(prop::array::uniform3(words()), 1..6)) {
            let column = |of: usize| rows.iter().map(|row| row[of].clone()).collect();
            check(&column(0), &column(1), &column(2));
        }
    }

    #[test]
    fn short_texts_are_what_they_are_without_windows() {
        let views = [vec![Some("Where is the train?"), None, Some("")], vec![Some("On time."), Some("No view before."), None]];
        let encoder = builtin().unwrap();
        let plain = embed_views(encoder.as_ref(), &views, None).unwrap();
        assert_eq!(embed_windows(encoder.as_ref(), &views, None, WINDOWS).unwrap(), plain);
        let (found, present) = candidates(&views, None);
        assert_eq!(present, plain.present);
        let places: Vec<(usize, usize, usize)> = found.iter().map(|(of, _)| (of.row, of.window.column, of.window.offset)).collect();
        assert_eq!(places, [(0, 1, 0), (1, 1, 0), (2, 0, 0)]);
        for (of, vector) in &found {
            assert_eq!(vector, &plain.vectors.row(of.row).to_vec());
        }
    }

    #[test]
    fn neither_neighbours_nor_blocks_nor_threads_change_a_bit() {
        let text = |i: usize, n: usize| -> String { (0..n).map(|k| format!("word{} and {} ", (i * 31 + k) % 97, k % 13)).collect() };
        // One row of more windows than are read or handed on at once, among short ones.
        let prompts: Column = (0..40).map(|i| (i % 5 != 0).then(|| text(i, 3))).collect();
        let responses: Column = (0..40).map(|i| Some(text(i, if i == 17 { 4000 } else { 10 * (i % 9) }))).collect();
        let views = [borrowed(&prompts), borrowed(&responses)];
        let (all, _) = candidates(&views, None);
        assert!(all.iter().filter(|(of, _)| of.row == 17).count() > CANDIDATES_AT_ONCE);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let alone = (0..40).flat_map(|row| {
            let views = [vec![views[0][row]], vec![views[1][row]]];
            let (found, _) = pool.install(|| candidates(&views, None));
            found.into_iter().map(move |(of, vector)| (Candidate { row, ..of }, vector))
        });
        let alone: Vec<_> = alone.collect();
        assert!(all == alone);
    }

    #[test]
    fn an_error_of_the_visitor_ends_the_visit() {
        let stop = |_: Candidates<'_>| Err(Error::Internal("enough".to_owned()));
        let result = embed_candidates(builtin().unwrap().as_ref(), &[vec![Some("a text")]], None, WINDOWS, &mut { stop });
        assert!(result.unwrap_err().to_string().contains("enough"));
    }
}
