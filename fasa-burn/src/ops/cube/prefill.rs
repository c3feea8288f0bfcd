//! Causal attention of many tokens in tiles of keys: products for the matrix units, and softmaxes merged tile by tile, so
//! that no matrix grows with the square of the context.

use super::{cast, product};
use crate::ops::composed;
use burn::backend::TensorMetadata;
use burn::backend::ops::{FloatTensorOps, IntTensorOps};
use burn::tensor::{BoolStore, DType, IntDType, Shape};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};

/// Keys of a tile.
const TILE: usize = 2048;

/// Subtracted from the scores of keys that a query must not see.
const HIDDEN: f32 = -1.0e30;

/// What has been attended to so far, `[kv_heads, group * new, ..]`: the largest score, the sum of weights relative to it, the
/// weighted sum of values.
struct Partial {
    largest: CubeTensor,
    total: CubeTensor,
    sum: CubeTensor,
}

/// See [`FasaOps::causal_attention`](crate::ops::FasaOps::causal_attention).
pub(super) fn causal_attention(q: CubeTensor, k: CubeTensor, v: CubeTensor, len: usize) -> CubeTensor {
    let ([new, heads, dim], kv_heads) = (q.shape().dims(), k.shape()[0]);
    let (rows, position) = (heads / kv_heads * new, len - new);
    let scaled = CubeBackend::float_mul_scalar(q, (1.0 / (dim as f32).sqrt()).into());
    let queries = cast(CubeBackend::float_swap_dims(scaled, 0, 1), k.dtype());
    let queries = CubeBackend::float_reshape(queries, Shape::new([kv_heads, rows, dim]));
    let mut partial = None;
    let tiles = (0..position).step_by(TILE).map(|from| (from, TILE.min(position - from)));
    for (from, count) in tiles.chain([(position, new)]) {
        let keys = composed::narrow::<CubeBackend>(k.clone(), 1, from, count);
        let values = composed::narrow::<CubeBackend>(v.clone(), 1, from, count);
        let mut scores = product(queries.clone(), CubeBackend::float_transpose(keys));
        if from == position {
            let by_query = CubeBackend::float_reshape(scores, Shape::new([kv_heads * heads / kv_heads, new, new]));
            let masked = CubeBackend::float_add(by_query, future(&k, new));
            scores = CubeBackend::float_reshape(masked, Shape::new([kv_heads, rows, new]));
        }
        partial = Some(merge(partial, scores, values));
    }
    let Some(Partial { total, sum, .. }) = partial else { unreachable!("the new tokens are a tile") };
    let out = CubeBackend::float_reshape(CubeBackend::float_div(sum, total), Shape::new([heads, new, dim]));
    CubeBackend::float_swap_dims(out, 0, 1)
}

/// Adds a tile of scores `[kv_heads, rows, count]` and values `[kv_heads, count, dim]`.
fn merge(before: Option<Partial>, scores: CubeTensor, values: CubeTensor) -> Partial {
    let tile = CubeBackend::float_max_dim(scores.clone(), 2);
    let largest = match &before {
        None => tile,
        Some(before) => {
            let higher = CubeBackend::float_greater(tile.clone(), before.largest.clone(), BoolStore::Native.into());
            CubeBackend::float_mask_where(before.largest.clone(), higher, tile)
        }
    };
    let weights = CubeBackend::float_exp(CubeBackend::float_sub(scores, largest.clone()));
    let mut total = CubeBackend::float_sum_dim(weights.clone(), 2);
    let mut sum = product(cast(weights, values.dtype()), values);
    if let Some(before) = before {
        let shrink = CubeBackend::float_exp(CubeBackend::float_sub(before.largest, largest.clone()));
        total = CubeBackend::float_add(total, CubeBackend::float_mul(before.total, shrink.clone()));
        sum = CubeBackend::float_add(sum, CubeBackend::float_mul(before.sum, shrink));
    }
    Partial { largest, total, sum }
}

/// `[1, new, new]`: [`HIDDEN`] where the key comes after the query, else 0.
fn future(beside: &CubeTensor, new: usize) -> CubeTensor {
    let places = CubeBackend::int_arange(0..new as i64, &beside.device, IntDType::I32);
    let rows = CubeBackend::int_reshape(places.clone(), Shape::new([1, new, 1]));
    let columns = CubeBackend::int_reshape(places, Shape::new([1, 1, new]));
    let after = CubeBackend::int_sub(
        CubeBackend::int_expand(columns, Shape::new([1, new, new])),
        CubeBackend::int_expand(rows, Shape::new([1, new, new])),
    );
    // 1 for every later key, 0 for the others.
    let hidden = CubeBackend::int_clamp(after, 0.into(), 1.into());
    let hidden = CubeBackend::int_into_float(hidden, burn::tensor::FloatDType::F32);
    debug_assert_eq!(hidden.dtype(), DType::F32);
    CubeBackend::float_mul_scalar(hidden, HIDDEN.into())
}
