//! Reference attention over chosen rows (FAC), for tests and tiny targets. Kept tokens keep their positions: keys are
//! already rotated, so nothing about a row depends on which others are read.

use crate::error::{Result, expect_length};
use crate::importance::dot;
use crate::rows::Rows;

/// `softmax(q.K / √d) V` over the rows `positions` (all rows for `None`), in one pass with a running maximum.
///
/// `query` is `[d]`, `keys` `[n, d]`, `values` `[n, d_v]`, `out` `[d_v]`. No positions give zeros.
/// Time O(positions * (d + d_v)), no memory beside `out`.
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) if the shapes disagree.
///
/// # Panics
/// If a position is not a row, like slice indexing.
pub fn attend(
    query: &[f32],
    keys: Rows<'_>,
    values: Rows<'_>,
    positions: Option<&[u32]>,
    out: &mut [f32],
) -> Result<()> {
    expect_length("query", query.len(), keys.dim())?;
    expect_length("values", values.len(), keys.len())?;
    expect_length("out", out.len(), values.dim())?;
    let scale = 1.0 / libm::sqrtf(query.len() as f32);
    out.fill(0.0);
    let (mut max, mut total) = (f32::NEG_INFINITY, 0.0f32);
    let mut read = |t: usize| {
        let score = dot(query, keys.row(t)) * scale;
        if score > max {
            let shrink = libm::expf(max - score);
            out.iter_mut().for_each(|o| *o *= shrink);
            total *= shrink;
            max = score;
        }
        let weight = libm::expf(score - max);
        total += weight;
        for (o, v) in out.iter_mut().zip(values.row(t)) {
            *o += weight * v;
        }
    };
    match positions {
        None => (0..keys.len()).for_each(&mut read),
        Some(positions) => positions.iter().for_each(|&t| read(t as usize)),
    }
    if total > 0.0 {
        out.iter_mut().for_each(|o| *o /= total);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn equals_the_definition(
            n in 1usize..30, dim in 1usize..9, numbers in prop::collection::vec(-3.0f32..3.0, 600), keep in 1usize..5,
        ) {
            let query = &numbers[..dim];
            let keys = Rows::contiguous(&numbers[8..8 + n * dim], dim).expect("divides");
            let values = Rows::strided(&numbers[280..], n, 3, 7).expect("fits");
            let positions: Vec<u32> = (0..n as u32).filter(|t| (*t as usize).is_multiple_of(keep)).collect();
            let mut out = [0.0; 3];
            attend(query, keys, values, Some(&positions), &mut out).expect("shapes");
            let weight = |t: &u32| {
                let s: f64 = query.iter().zip(keys.row(*t as usize)).map(|(q, k)| f64::from(q * k)).sum();
                (s / (dim as f64).sqrt()).exp()
            };
            let total: f64 = positions.iter().map(weight).sum();
            for (d, o) in out.iter().enumerate() {
                let want: f64 = positions.iter().map(|t| weight(t) * f64::from(values.row(*t as usize)[d])).sum::<f64>() / total;
                prop_assert!((f64::from(*o) - want).abs() < 1e-5);
            }
            let (mut whole, all) = ([0.0; 3], (0..n as u32).collect::<Vec<_>>());
            attend(query, keys, values, None, &mut whole).expect("shapes");
            attend(query, keys, values, Some(&all), &mut out).expect("shapes");
            prop_assert_eq!(out, whole);
        }
    }

    #[test]
    fn nothing_to_read_gives_zeros() {
        let keys = Rows::contiguous(&[1.0, 2.0], 2).expect("divides");
        let mut out = [7.0; 2];
        attend(&[1.0, 1.0], keys, keys, Some(&[]), &mut out).expect("shapes");
        assert_eq!(out, [0.0; 2]);
        assert!(attend(&[1.0], keys, keys, None, &mut out).is_err());
    }
}
