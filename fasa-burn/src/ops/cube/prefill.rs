//! Causal attention of many tokens in tiles of keys: products for the matrix units, and softmaxes merged tile by tile, so
//! that no matrix grows with the square of the context.

use super::{cast, gpu, product, refused, tensor};
use crate::ops::composed;
use burn::backend::TensorMetadata;
use burn::backend::ops::{AttentionModuleOptions, FloatTensorOps};
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::attention::flash_attention;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubek::attention::forward::launch::{BlueprintStrategy, Strategy};
use cubek::attention::forward::routines::blackbox_accelerated::BlackboxAcceleratedStrategy;
use fasa_core::Result;
use fasa_cube::rows::Softmax;

/// Keys of a tile.
const TILE: usize = 2048;

/// See [`FasaOps::causal_attention`](crate::ops::FasaOps::causal_attention).
pub(super) fn causal_attention(q: CubeTensor, k: CubeTensor, v: CubeTensor, len: usize) -> Result<CubeTensor> {
    if std::env::var("FASA_FLASH").is_ok()
        && let Some(out) = flash(&q, &k, &v, len)
    {
        return Ok(out);
    }
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

/// In one launch, where the library has a kernel for it: whole blocks of queries, in 16 bits. The group is a dimension that keys and
/// values are repeated along without being copied.
fn flash(q: &CubeTensor, k: &CubeTensor, v: &CubeTensor, len: usize) -> Option<CubeTensor> {
    let ([new, heads, dim], kv_heads) = (q.shape().dims::<3>(), k.shape()[0]);
    if !new.is_multiple_of(128) || k.dtype() == DType::F32 || !matches!(k.device, cubecl::Device::Cuda(_)) {
        return None;
    }
    let group = heads / kv_heads;
    let queries = into_contiguous(CubeBackend::float_swap_dims(cast(q.clone(), k.dtype()), 0, 1));
    let queries = CubeBackend::float_reshape(queries, Shape::new([kv_heads, group, new, dim]));
    let repeated = |rows: &CubeTensor| {
        let rows = composed::narrow::<CubeBackend>(rows.clone(), 1, 0, len);
        CubeBackend::float_expand(
            CubeBackend::float_swap_dims(CubeBackend::float_reshape(rows, Shape::new([1, kv_heads, len, dim])), 0, 1),
            Shape::new([kv_heads, group, len, dim]),
        )
    };
    let options = AttentionModuleOptions { is_causal: true, ..Default::default() };
    let num_planes = std::env::var("FASA_FLASH").ok()?.parse().ok()?;
    let strategy = BlackboxAcceleratedStrategy { num_planes, seq_q: 1, seq_kv: 1 };
    let strategy = Strategy::BlackboxAccelerated(BlueprintStrategy::Inferred(strategy));
    let out = flash_attention(queries, repeated(k), repeated(v), None, None, options, strategy);
    let out = out.map_err(|error| eprintln!("flash: {error:?}")).ok()?;
    let out = CubeBackend::float_reshape(cast(out, DType::F32), Shape::new([heads, new, dim]));
    Some(CubeBackend::float_swap_dims(out, 0, 1))
}
