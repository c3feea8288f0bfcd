//! A borrowed matrix of `f32` rows: the one shape in which queries, keys and values come in.

use crate::error::{Error, Result};

/// `len` rows of `dim` numbers; row `r` starts at `r * stride` of the slice.
///
/// Engines keep caches as `[n, heads, d]` or `[heads, n, d]`; the stride lets both be read in place.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    data: &'a [f32],
    len: usize,
    dim: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// Rows that follow one another without gaps; `data.len()` must be a multiple of `dim`.
    ///
    /// # Errors
    /// [`Error::Range`] for `dim == 0`, [`Error::Length`] if the last row is cut.
    pub fn contiguous(data: &'a [f32], dim: usize) -> Result<Self> {
        if dim == 0 {
            return Err(Error::Range { what: "dim", problem: "a row needs at least one number" });
        }
        if !data.len().is_multiple_of(dim) {
            return Err(Error::Length { what: "rows", want: data.len().div_ceil(dim) * dim, got: data.len() });
        }
        Ok(Self { data, len: data.len() / dim, dim, stride: dim })
    }

    /// `len` rows of `dim` numbers, `stride` apart (`stride >= dim`).
    ///
    /// # Errors
    /// [`Error::Range`] for `dim == 0` or `stride < dim`, [`Error::Length`] if `data` ends before the last row does.
    pub fn strided(data: &'a [f32], len: usize, dim: usize, stride: usize) -> Result<Self> {
        if dim == 0 || stride < dim {
            return Err(Error::Range { what: "stride", problem: "rows would be empty or overlap" });
        }
        let want = match len.checked_sub(1) {
            None => 0,
            Some(last) => last
                .checked_mul(stride)
                .and_then(|start| start.checked_add(dim))
                .ok_or(Error::Range { what: "len", problem: "the matrix exceeds the address space" })?,
        };
        if data.len() < want {
            return Err(Error::Length { what: "rows", want, got: data.len() });
        }
        Ok(Self { data, len, dim, stride })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Numbers per row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Row `r`.
    ///
    /// # Panics
    /// If `r >= self.len()`, like slice indexing.
    pub fn row(&self, r: usize) -> &'a [f32] {
        assert!(r < self.len, "row {r} of {}", self.len);
        &self.data[r * self.stride..r * self.stride + self.dim]
    }

    /// All rows in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [f32]> + '_ {
        let (data, dim, stride) = (self.data, self.dim, self.stride);
        (0..self.len).map(move |r| &data[r * stride..r * stride + dim])
    }

    /// The first `len` rows (all, if there are fewer).
    pub fn first(&self, len: usize) -> Self {
        Self { len: self.len.min(len), ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_cache_layouts() {
        let data: [f32; 12] = core::array::from_fn(|i| i as f32);
        let head_major = Rows::contiguous(&data, 3).expect("divides");
        assert_eq!((head_major.len(), head_major.row(2)), (4, &[6.0, 7.0, 8.0][..]));
        let token_major = Rows::strided(&data[3..], 2, 3, 6).expect("fits");
        assert_eq!(token_major.row(1), &[9.0, 10.0, 11.0]);
        assert_eq!(token_major.iter().len(), 2);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let data = [0.0; 8];
        assert!(matches!(Rows::contiguous(&data, 3), Err(Error::Length { want: 9, got: 8, .. })));
        assert!(Rows::contiguous(&data, 0).is_err());
        assert!(Rows::strided(&data, 3, 3, 3).is_err());
        assert!(Rows::strided(&data, usize::MAX, 3, 3).is_err());
        assert!(Rows::strided(&data, 2, 3, 2).is_err());
        assert!(Rows::strided(&[], 0, 3, 3).is_ok());
    }
}
