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
    let ([new, heads, dim], kv_heads) = (q.shape().dims(), k.shape()[0]);
    let (per_head, position) = (heads / kv_heads * new, len - new);
    let scaled = CubeBackend::float_mul_scalar(q, (1.0 / (dim as f32).sqrt()).into());
    let queries = cast(into_contiguous(CubeBackend::float_swap_dims(scaled, 0, 1)), k.dtype());
    let queries = CubeBackend::float_reshape(queries, Shape::new([kv_heads, per_head, dim]));
    let mut state: Option<(Softmax, CubeTensor)> = None;
    let tiles = (0..position).step_by(TILE).map(|from| (from, TILE.min(position - from)));
    for (from, count) in tiles.chain([(position, new)]) {
        let keys = composed::narrow::<CubeBackend>(k.clone(), 1, from, count);
        let values = composed::narrow::<CubeBackend>(v.clone(), 1, from, count);
        let scores = into_contiguous(product(queries.clone(), CubeBackend::float_transpose(keys)));
        // The last tile is the new tokens themselves; every other one lies before all of them.
        let seen_before = if from == position { 0 } else { count };
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
