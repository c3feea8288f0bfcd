//! Causal attention of many tokens in tiles of keys: products for the matrix units, and softmaxes merged tile by tile, so
//! that no matrix grows with the square of the context.

use super::{cast, gpu, product, refused, tensor};
use crate::ops::composed;
use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::Shape;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use fasa_core::Result;
use fasa_cube::rows::Softmax;

/// Keys of a tile.
const TILE: usize = 2048;

/// See [`FasaOps::causal_attention`](crate::ops::FasaOps::causal_attention).
pub(super) fn causal_attention(q: CubeTensor, k: CubeTensor, v: CubeTensor, len: usize) -> Result<CubeTensor> {
    let new = q.shape()[0];
    let position = len - new;
    let rows = |from, count| [&k, &v].map(|rows| composed::narrow::<CubeBackend>(rows.clone(), 1, from, count));
    let before = (0..position).step_by(TILE).map(|from| Ok(rows(from, TILE.min(position - from))));
    over_tiles(q, before, rows(position, new))
}

/// Attention of new tokens, `q` `[new, Hq, d]`, to tiles of keys and values that lie before all of them, `[Hkv, count, d]` each, and
/// causally to their `own`.
pub(super) fn over_tiles<E: From<fasa_core::Error>>(
    q: CubeTensor,
    before: impl Iterator<Item = Result<[CubeTensor; 2], E>>,
    own: [CubeTensor; 2],
) -> Result<CubeTensor, E> {
    let ([new, heads, dim], kv_heads) = (q.shape().dims(), own[0].shape()[0]);
    let per_head = heads / kv_heads * new;
    let scaled = CubeBackend::float_mul_scalar(q, (1.0 / (dim as f32).sqrt()).into());
    let queries = cast(into_contiguous(CubeBackend::float_swap_dims(scaled, 0, 1)), own[0].dtype());
    let queries = CubeBackend::float_reshape(queries, Shape::new([kv_heads, per_head, dim]));
    let mut state: Option<(Softmax, CubeTensor)> = None;
    for (tile, is_own) in before.map(|tile| (tile, false)).chain([(Ok(own), true)]) {
        let [keys, values] = tile?;
        let count = keys.shape()[1];
        let scores = into_contiguous(product(queries.clone(), CubeBackend::float_transpose(keys)));
        let seen_before = if is_own { 0 } else { count };
        let shape = [heads * new, count];
        let before = state.as_ref().map(|(softmax, _)| softmax);
        let softmax = Softmax::tile(&gpu(&scores), before, &scores.handle, shape, new, seen_before).map_err(refused)?;
        let mut sum = product(cast(scores, values.dtype()), values);
        if let Some((_, earlier)) = state {
            let shrink = tensor(&sum, softmax.shrink.clone(), [kv_heads, per_head, 1]);
            sum = CubeBackend::float_add(sum, CubeBackend::float_mul(earlier, shrink));
        }
        state = Some((softmax, sum));
    }
    let Some((softmax, sum)) = state else { unreachable!("the new tokens are a tile") };
    let total = tensor(&sum, softmax.total, [kv_heads, per_head, 1]);
    let out = CubeBackend::float_reshape(CubeBackend::float_div(sum, total), Shape::new([heads, new, dim]));
    Ok(CubeBackend::float_swap_dims(out, 0, 1))
}
