//! What a cache in the host's memory asks of the device: steps that end where the host must go on.

use super::{Prepared, cache, gpu, length, note_positions, prefill, prepared, refused, sketch, tables, tensor};
use crate::cache::SketchTensors;
use crate::device::failure;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::ops::{AttentionOptions, FasaStep};
use crate::rope::Angles;
use burn::backend::{DispatchDevice, TensorMetadata};
use burn::tensor::{DType, Device, Int, Shape, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::bytes::Bytes;
use cubecl::server::Handle;
use fasa_core::policy::OwnedPlan;
use fasa_cube::append::{Tokens, append_before};
use fasa_cube::attend::{Cache, Rows, attend};
use fasa_cube::step::choose;
use fasa_cube::tier::{BLOCK, Book, HostRows, Mapped};
use fasa_cube::{Gpu, write};
use std::ops::Range;
use std::sync::Arc;

/// The device as kernels see it.
///
/// # Errors
/// [`Error::Request`] for the processor.
pub(crate) fn open(device: &Device) -> Result<Gpu> {
    let DispatchDevice::Cube(device) = device.as_dispatch() else {
        return Err(Error::request("device", "has no memory of its own", "use a GPU"));
    };
    Gpu::new(device.client()).map_err(|error| failure(&error.to_string()))
}

/// Waits until the device has done what it was asked to.
pub(crate) fn wait(gpu: &Gpu) -> Result<()> {
    cubecl::future::block_on(gpu.client.sync()).map_err(|error| failure(&error.to_string()))
}

fn float<const D: usize>(tensor: Tensor<D>) -> CubeTensor {
    match tensor.try_into_primitive::<CubeBackend>() {
        Ok(tensor) => into_contiguous(tensor),
        Err(_) => unreachable!("the cache lies on this device, and so does what is asked of it"),
    }
}

fn int(tensor: Tensor<3, Int>) -> CubeTensor {
    match tensor.try_into_primitive::<CubeBackend>() {
        Ok(tensor) => into_contiguous(tensor),
        Err(_) => unreachable!("sketches lie on the device of their cache"),
    }
}

fn back<const D: usize>(tensor: CubeTensor) -> Tensor<D> {
    Tensor::from_primitive::<CubeBackend>(tensor)
}

fn stored(dtype: Dtype) -> DType {
    dtype.float().into()
}

/// A tensor of `shape` whose numbers lie behind `handle`.
fn over(handle: Handle, like: &CubeTensor, shape: [usize; 3], dtype: DType) -> CubeTensor {
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), Shape::new(shape), handle, dtype)
}

/// Queries of new tokens, `[new, query_heads, head_dim]`, and their keys and values, `[kv_heads, new, head_dim]` each, out of
/// `qkv`: see [`FasaOps::append`](crate::ops::FasaOps::append).
pub(crate) fn append(
    qkv: Tensor<2>,
    angles: &Angles,
    kv_heads: usize,
    dim: usize,
    dtype: Dtype,
) -> (Tensor<3>, [Tensor<3>; 2]) {
    let (qkv, cos, sin) = (float(qkv), float(angles.cos()), float(angles.sin()));
    let [new, width] = qkv.shape().dims();
    let shape = [kv_heads, new, dim];
    let [k, v] = [0, 1].map(|_| {
        let handle = qkv.client.empty(shape.iter().product::<usize>() * dtype.bytes());
        over(handle, &qkv, shape, stored(dtype))
    });
    let (query_heads, turning) = (width / dim - 2 * kv_heads, 2 * cos.shape()[2]);
    let tokens = Tokens { qkv: &qkv.handle, cos: &cos.handle, sin: &sin.handle, turning, new };
    // Not the length that a recorded step takes from the device: these rows begin with the new tokens.
    match append_before(&gpu(&qkv), tokens, query_heads, &cache(&k, &v), &new.into()) {
        Ok(queries) => (back(tensor(&qkv, queries, [new, query_heads, dim])), [back(k), back(v)]),
        Err(error) => unreachable!("there is room for as many tokens as there are: {error}"),
    }
}

/// Attention of new tokens, `[new, query_heads, head_dim]`, to the first `before` rows of a layer, which come to the device block
/// by block, and to their own keys and values.
pub(crate) fn causal_attention(
    queries: Tensor<3>,
    rows: &HostRows,
    layer: usize,
    before: usize,
    own: [Tensor<3>; 2],
    options: AttentionOptions,
) -> Result<Tensor<3>> {
    options.expect_plain()?;
    let (queries, own) = (float(queries), own.map(float));
    let ([heads, _, dim], dtype) = (own[0].shape().dims(), own[0].dtype);
    let like = own[0].clone();
    let tiles = (0..before).step_by(BLOCK).enumerate().map(|(index, from)| {
        let handles = rows.upload(&like.client, layer, index).map_err(refused)?;
        let count = BLOCK.min(before - from);
        Ok::<_, Error>(handles.map(|handle| {
            let block = over(handle, &like, [heads, BLOCK, dim], dtype);
            crate::ops::composed::narrow::<CubeBackend>(block, 1, 0, count)
        }))
    });
    Ok(back(prefill::over_tiles(queries, tiles, own)?))
}

/// Writes sketch rows of tokens in one block of the host's.
pub(crate) fn write_sketch(
    host: &HostRows,
    index: usize,
    tables: SketchTensors,
    plan: &Arc<OwnedPlan>,
    layer: usize,
    rows: Range<usize>,
) -> Result<()> {
    let (codes, scales) = (int(tables.codes), int(tables.scales));
    let (channels, sketch) = (tables::channels(&codes, plan, layer)?, sketch(plan, &codes, &scales)?);
    let shape = host.shape();
    let keys = host.upload_keys(&codes.client, layer, index).map_err(refused)?;
    let block =
        Cache { format: shape.format, values: keys.clone(), keys, heads: shape.heads, capacity: BLOCK, dim: shape.dim };
    write::write_from(&gpu(&codes), &block, index * BLOCK, &sketch, &channels, rows).map_err(refused)?;
    Ok(())
}

/// Writes the sketch row of the last of `len` tokens, whose key `new` is.
pub(crate) fn write_sketch_row(
    new: Tensor<3>,
    tables: SketchTensors,
    plan: &Arc<OwnedPlan>,
    layer: usize,
    len: usize,
) -> Result<()> {
    let (new, codes, scales) = (float(new), int(tables.codes), int(tables.scales));
    let (channels, sketch) = (tables::channels(&codes, plan, layer)?, sketch(plan, &codes, &scales)?);
    write::write_alone(&gpu(&codes), &cache(&new, &new), &sketch, &channels, &length(len)).map_err(refused)?;
    Ok(())
}

/// What a step chose.
pub(crate) struct Chosen {
    /// Positions, list after list, on the device: `[lists, budget]`.
    positions: Handle,
    /// Lists, all of them.
    pub lists: usize,
    pub budget: usize,
    /// Bytes of what choosing takes beside the sketch.
    pub scratch: u64,
}

/// Scores the sketch and chooses.
pub(crate) fn choose_rows(
    queries: Tensor<3>,
    kv_heads: usize,
    tables: SketchTensors,
    step: &FasaStep,
) -> Result<Chosen> {
    let queries = float(queries);
    let (dim, codes, scales, gpu) = (queries.shape()[2], int(tables.codes), int(tables.scales), gpu(&queries));
    let Prepared { channels, sketch, scratch, lists, choice } = prepared(&queries, kv_heads, [&codes, &scales], step)?;
    choose(&gpu, &queries.handle, [kv_heads, dim], &sketch, &channels, &scratch).map_err(refused)?;
    let (bytes, all) = (4 * (lists * choice.budget) as u64, scratch.positions.size_in_used());
    let positions = scratch.positions.clone().offset_end(all - bytes);
    Ok(Chosen { positions, lists, budget: choice.budget, scratch: scratch.bytes() })
}

/// Waits for the choice, and for the new token's key and value, `[kv_heads, 1, dim]` each.
pub(crate) fn read_choice(
    gpu: &Gpu,
    chosen: &Chosen,
    new: [Tensor<3>; 2],
    step: &FasaStep,
) -> Result<(Vec<u32>, [Bytes; 2])> {
    let [keys, values] = new.map(|rows| float(rows).handle);
    let wanted = vec![chosen.positions.clone(), keys, values];
    let read = gpu.client.read(wanted).map_err(|error| failure(&error.to_string()))?;
    let Ok([positions, keys, values]) = <[Bytes; 3]>::try_from(read) else {
        return Err(failure("it returned less than it was asked for"));
    };
    let positions: Vec<u32> = bytemuck::pod_collect_to_vec(&positions);
    if step.recorder.is_some() {
        note_positions(step, positions.clone());
    }
    Ok((positions, [keys, values]))
}

/// Rows of the host's memory that the device reads by itself, for a step of one layer.
pub(crate) struct Reach<'a> {
    pub rows: &'a Mapped,
    /// Rows that stay on the device and the book of them; none: every chosen row is read.
    pub kept: Option<(&'a Cache, &'a Book)>,
}

/// Sends the new token's row to the host, brings the rows that were chosen and attends to them.
pub(crate) fn attend_reached(
    queries: Tensor<3>,
    reach: Reach<'_>,
    chosen: &Chosen,
    new: [Tensor<3>; 2],
    step: &FasaStep,
) -> Result<Tensor<3>> {
    let (queries, [keys, values]) = (float(queries), new.map(float));
    let (gpu, new, len) = (gpu(&queries), cache(&keys, &values), length(step.len));
    let (shape, positions) = (queries.shape(), &chosen.positions);
    let (lists, budget) = (chosen.lists, chosen.budget);
    reach.rows.store(&gpu, &new, &len).map_err(refused)?;
    let attended = || match reach.kept {
        Some((kept, book)) => {
            let per_head = lists / new.heads * budget;
            let assigned = book.assign(&gpu, positions, per_head, &len)?;
            reach.rows.bring(&gpu, &assigned, per_head, &new, &len, kept)?;
            let rows = Rows::Chosen { positions: &assigned.slots, count: budget, lists: lists / new.heads };
            attend(&gpu, &queries.handle, shape[1], kept, rows)
        }
        None => {
            let words = lists * budget * new.dim / new.format.per_word();
            let (keys, values) = (gpu.words(words), gpu.words(words));
            let brought = Cache { format: new.format, keys, values, heads: lists, capacity: budget, dim: new.dim };
            reach.rows.fetch(&gpu, positions, budget, &new, &len, &brought)?;
            attend(&gpu, &queries.handle, shape[1], &brought, Rows::First(budget))
        }
    };
    let out = attended().map_err(refused)?;
    if step.recorder.is_some() {
        let read = gpu.client.read_one(positions.clone()).map_err(|error| failure(&error.to_string()))?;
        note_positions(step, bytemuck::pod_collect_to_vec(&read));
    }
    Ok(back(tensor(&queries, out, shape)))
}

/// Attention to rows of `kept`, whose capacity is slots, by the slots of the chosen rows, `[lists, budget]`.
pub(crate) fn attend_slots(
    queries: Tensor<3>,
    kept: &Cache,
    slots: &Handle,
    budget: usize,
    lists: usize,
) -> Result<Tensor<3>> {
    let queries = float(queries);
    let shape = queries.shape();
    let rows = Rows::Chosen { positions: slots, count: budget, lists: lists / kept.heads };
    let out = attend(&gpu(&queries), &queries.handle, shape[1], kept, rows).map_err(refused)?;
    Ok(back(tensor(&queries, out, shape)))
}

/// Numbers as the device has them.
pub(crate) fn bytes(tensors: [Tensor<3>; 2]) -> Result<[Bytes; 2]> {
    let [a, b] = tensors.map(float);
    let read = a.client.read(vec![a.handle, b.handle]).map_err(|error| failure(&error.to_string()))?;
    <[Bytes; 2]>::try_from(read).map_err(|_| failure("it returned less than it was asked for"))
}
