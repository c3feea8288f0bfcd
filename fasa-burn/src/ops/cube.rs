//! The operations on GPU tensors: the kernels of `fasa-cube` over the buffers behind them. Nothing here waits for the device.

pub(crate) mod hosted;
mod prefill;
mod product;
mod tables;

use super::step::note;
use super::{AttentionOptions, FasaOps, FasaStep, PolicyStep, SketchStep, Status, composed};
use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, FloatDType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::server::Handle;
use fasa_core::Error;
use fasa_cpu::Selected;
use fasa_cube::append::{Tokens, append_before};
use fasa_cube::attend::{Cache, Rows, attend};
use fasa_cube::linear::{Finish, Norm, Weight, linear};
use fasa_cube::rows::rms_norm;
use fasa_cube::step::{Choice, Scratch, step as decode};
use fasa_cube::tape::overwrite;
use fasa_cube::tip::{Channels, Sketch};
use fasa_cube::{Format, Gpu, Length, write};
use product::product;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Up to so many tokens are better served by reading weights once per token than by a matrix product.
const FEW_TOKENS: usize = 8;

/// What the numbers of a feed-forward block are divided by before they are rounded to half precision, which some models'
/// would overflow; the product is multiplied again. Powers of two lose nothing.
const HEADROOM: f32 = 64.0;

fn gpu(tensor: &CubeTensor) -> Gpu {
    match Gpu::new(tensor.client.clone()) {
        Ok(gpu) => gpu,
        Err(error) => panic!("{error}; `DeviceName::open` refuses such a device"),
    }
}

fn format(tensor: &CubeTensor) -> Format {
    match tensor.dtype {
        DType::F16 => Format::F16,
        DType::BF16 => Format::Bf16,
        _ => Format::F32,
    }
}

/// A tensor of f32 beside `like`.
fn tensor(like: &CubeTensor, handle: Handle, shape: impl Into<Shape>) -> CubeTensor {
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape.into(), handle, DType::F32)
}

/// The tensor to write to; copied first if another handle reads it.
fn own(tensor: CubeTensor) -> CubeTensor {
    let tensor = into_contiguous(tensor);
    if tensor.can_mut() {
        return tensor;
    }
    COPIES.fetch_add(1, Ordering::Relaxed);
    tensor.copy()
}

static COPIES: AtomicU64 = AtomicU64::new(0);

/// Tensors that were copied before they were written: caches lie elsewhere afterwards.
pub(crate) fn copies() -> u64 {
    COPIES.load(Ordering::Relaxed)
}

thread_local! {
    /// The number of rows in use, where it is kept on the device.
    static LENGTH: RefCell<Option<Length>> = const { RefCell::new(None) };
}

/// The rows in use: `len`, or what the device knows.
fn length(len: usize) -> Length {
    LENGTH.with_borrow(|kept| kept.clone()).unwrap_or(len.into())
}

/// Rows in use are those that steps say again.
pub(crate) fn forget_length() {
    LENGTH.set(None);
}

fn few(x: &CubeTensor) -> bool {
    x.shape()[0] <= FEW_TOKENS
}

/// What a kernel refused, as the core says it.
pub(crate) fn refused(error: fasa_cube::Error) -> Error {
    match error {
        fasa_cube::Error::Shape { what, problem } => Error::Range { what, problem },
        fasa_cube::Error::Device(problem) => Error::Range { what: "device", problem },
    }
}

/// A projection of few tokens.
fn project(x: CubeTensor, norm: Option<(CubeTensor, f64)>, weight: CubeTensor, finish: Finish) -> CubeTensor {
    let [x, weight] = [x, weight].map(into_contiguous);
    let (tokens, [outputs, inputs]) = (x.shape()[0], weight.shape().dims());
    let norm = norm.map(|(norm, eps)| Norm { weight: into_contiguous(norm).handle, eps: eps as f32 });
    let written = if matches!(finish, Finish::Gate) { outputs / 2 } else { outputs };
    let numbers = Weight { format: format(&weight), numbers: weight.handle.clone(), outputs, inputs };
    match linear(&gpu(&x), &x.handle, tokens, &numbers, norm.as_ref(), &finish) {
        Ok(out) => tensor(&x, out, [tokens, written]),
        Err(error) => unreachable!("weights have the shapes that were checked when they were read: {error}"),
    }
}

/// See [`composed::rms_norm`].
fn normed(x: CubeTensor, weight: CubeTensor, eps: f64) -> CubeTensor {
    let [x, weight] = [x, weight].map(into_contiguous);
    let [rows, width] = x.shape().dims();
    match rms_norm(&gpu(&x), &x.handle, &weight.handle, rows, width, eps as f32) {
        Ok(out) => tensor(&x, out, [rows, width]),
        Err(error) => unreachable!("there is a token, and it has numbers: {error}"),
    }
}

/// `x weightᵀ` of many tokens.
fn wide(x: CubeTensor, weight: CubeTensor) -> CubeTensor {
    let x = CubeBackend::float_cast(x, weight.dtype().into());
    product(x, CubeBackend::float_transpose(weight))
}

fn cache(k: &CubeTensor, v: &CubeTensor) -> Cache {
    let [heads, capacity, dim] = k.shape().dims();
    Cache { format: format(k), keys: k.handle.clone(), values: v.handle.clone(), heads, capacity, dim }
}

impl FasaOps for CubeBackend {
    fn linear(x: CubeTensor, weight: CubeTensor) -> CubeTensor {
        if few(&x) { project(x, None, weight, Finish::Plain) } else { wide(x, weight) }
    }

    fn linear_add(x: CubeTensor, weight: CubeTensor, residual: CubeTensor) -> CubeTensor {
        match few(&x) {
            true => project(x, None, weight, Finish::Add(into_contiguous(residual).handle)),
            false => Self::float_add(residual, wide(x, weight)),
        }
    }

    fn norm_linear(x: CubeTensor, norm: CubeTensor, eps: f64, weight: CubeTensor) -> CubeTensor {
        match few(&x) {
            true => project(x, Some((norm, eps)), weight, Finish::Plain),
            false => wide(normed(x, norm, eps), weight),
        }
    }

    fn mlp(x: CubeTensor, norm: CubeTensor, eps: f64, gate_up: CubeTensor, down: CubeTensor) -> CubeTensor {
        if few(&x) {
            let between = project(x.clone(), Some((norm, eps)), gate_up, Finish::Gate);
            return project(between, None, down, Finish::Add(into_contiguous(x).handle));
        }
        let between = composed::swiglu::<Self>(Self::norm_linear(x.clone(), norm, eps, gate_up));
        if down.dtype() == DType::F32 {
            return Self::linear_add(between, down, x);
        }
        let out = wide(Self::float_mul_scalar(between, (1.0 / HEADROOM).into()), down);
        Self::float_add(x, Self::float_mul_scalar(out, HEADROOM.into()))
    }

    fn append(
        qkv: CubeTensor,
        cos: CubeTensor,
        sin: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        position: usize,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let ([qkv, cos, sin], [k, v]) = ([qkv, cos, sin].map(into_contiguous), [k, v].map(own));
        let ([new, width], [kv_heads, _, dim]) = (qkv.shape().dims(), k.shape().dims());
        let (query_heads, turning) = (width / dim - 2 * kv_heads, 2 * cos.shape()[2]);
        let tokens = Tokens { qkv: &qkv.handle, cos: &cos.handle, sin: &sin.handle, turning, new };
        match append_before(&gpu(&qkv), tokens, query_heads, &cache(&k, &v), &length(position + new)) {
            Ok(queries) => (tensor(&qkv, queries, [new, query_heads, dim]), k, v),
            Err(error) => unreachable!("the cache was grown for these tokens: {error}"),
        }
    }

    fn causal_attention(
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        len: usize,
        options: AttentionOptions,
        status: Status,
    ) -> CubeTensor {
        let out = options.expect_plain().and_then(|()| prefill::causal_attention(q.clone(), k, v, len));
        status.record(out).unwrap_or(q)
    }

    fn dense_decode(
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        len: usize,
        options: AttentionOptions,
        status: Status,
    ) -> CubeTensor {
        let [q, k, v] = [q, k, v].map(into_contiguous);
        let rows = length(len);
        let attended = || attend(&gpu(&q), &q.handle, q.shape()[1], &cache(&k, &v), Rows::Kept(&rows)).map_err(refused);
        let out = options.expect_plain().and_then(|()| attended());
        let shape = q.shape();
        status.record(out).map_or(q.clone(), |out| tensor(&q, out, shape))
    }

    fn write_sketch(
        k: CubeTensor,
        codes: CubeTensor,
        scales: CubeTensor,
        step: SketchStep,
    ) -> (CubeTensor, CubeTensor) {
        let (k, [codes, scales]) = (into_contiguous(k), [codes, scales].map(own));
        let written = || {
            let channels = tables::channels(&k, &step.plan, step.layer)?;
            let sketch = sketch(&step.plan, &codes, &scales)?;
            let end = length(step.rows.end);
            let written = match end.is_on_device() {
                true => write::write_last(&gpu(&k), &cache(&k, &k), &sketch, &channels, &end),
                false => write::write(&gpu(&k), &cache(&k, &k), &sketch, &channels, step.rows.clone()),
            };
            written.map_err(refused)
        };
        step.status.record(written());
        (codes, scales)
    }

    fn fasa_decode(
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        codes: CubeTensor,
        scales: CubeTensor,
        step: FasaStep,
    ) -> CubeTensor {
        let [q, k, v, codes, scales] = [q, k, v, codes, scales].map(into_contiguous);
        let shape = q.shape();
        let out = fasa(&q, &cache(&k, &v), [&codes, &scales], &step);
        step.status.record(out).map_or(q.clone(), |out| tensor(&q, out, shape))
    }

    fn overwrite(x: CubeTensor, numbers: Vec<u32>) -> CubeTensor {
        overwrite(&x.client, &x.handle, numbers);
        x
    }

    fn overwrite_int(x: CubeTensor, numbers: Vec<u32>) -> CubeTensor {
        overwrite(&x.client, &x.handle, numbers);
        x
    }

    fn take_length(len: CubeTensor, most: usize) -> CubeTensor {
        LENGTH.set(Some(Length::on_device(len.handle.clone(), most)));
        len
    }

    fn policy_decode(q: CubeTensor, _k: CubeTensor, _v: CubeTensor, step: PolicyStep) -> CubeTensor {
        let problem = "this one decides on the host; decode with FASA or dense attention, or on the processor";
        step.status.record::<()>(Err(Error::Range { what: "policy", problem }));
        q
    }
}

fn sketch(plan: &fasa_core::policy::OwnedPlan, codes: &CubeTensor, scales: &CubeTensor) -> fasa_core::Result<Sketch> {
    let plan = plan.view();
    let [heads, capacity, _] = codes.shape().dims();
    let (precision, chunks) = (plan.config().precision, plan.chunks());
    Sketch::new(precision, chunks, heads, capacity, codes.handle.clone(), scales.handle.clone()).map_err(refused)
}

/// What a step of one layer reads and writes beside keys and values.
struct Prepared {
    channels: Channels,
    sketch: Sketch,
    scratch: Scratch,
    /// Lists of tokens to choose.
    lists: usize,
    choice: Choice,
}

fn prepared(
    q: &CubeTensor,
    kv_heads: usize,
    [codes, scales]: [&CubeTensor; 2],
    step: &FasaStep,
) -> fasa_core::Result<Prepared> {
    AttentionOptions { window: None, softcap: step.softcap }.expect_plain()?;
    let (query_heads, plan) = (q.shape()[1], step.plan.view());
    let lists = plan.config().token_scope.rows(query_heads, kv_heads);
    let (sinks, recent_from) = plan.config().guarantees.forced(step.len, step.budget);
    let choice = Choice { budget: step.budget, lists: lists / kv_heads, sinks, recent: step.len - recent_from };
    let channels = tables::channels(q, &step.plan, step.layer)?;
    let sketch = sketch(&step.plan, codes, scales)?;
    let scratch = tables::scratch(q, &step.plan, [query_heads, sketch.heads, kv_heads, sketch.capacity], choice)?;
    let scratch = scratch.with(length(step.len), choice).map_err(refused)?;
    Ok(Prepared { channels, sketch, scratch, lists, choice })
}

fn fasa(q: &CubeTensor, cache: &Cache, tables: [&CubeTensor; 2], step: &FasaStep) -> fasa_core::Result<Handle> {
    let (gpu, [_, query_heads, dim]) = (gpu(q), q.shape().dims());
    let Prepared { channels, sketch, scratch, lists, .. } = prepared(q, cache.heads, tables, step)?;
    let out = gpu.words(query_heads * dim);
    decode(&gpu, &q.handle, cache, &sketch, &channels, &scratch, &out).map_err(refused)?;
    if step.recorder.is_some() {
        let failed = Error::Range { what: "positions", problem: "the device failed to return them" };
        let bytes = gpu.client.read_one(scratch.positions).map_err(|_| failed)?;
        let mut numbers: Vec<u32> = bytemuck::pod_collect_to_vec(&bytes);
        numbers.truncate(lists * step.budget);
        note_positions(step, numbers);
    }
    Ok(out)
}

/// Notes the tokens that a step chose, list after list.
fn note_positions(step: &FasaStep, mut positions: Vec<u32>) {
    positions.chunks_exact_mut(step.budget).for_each(<[u32]>::sort_unstable);
    note(&step.recorder, step.layer, Selected::of_equal_lists(positions, step.budget));
}

/// `x` in another number format.
fn cast(x: CubeTensor, dtype: DType) -> CubeTensor {
    CubeBackend::float_cast(x, FloatDType::from(dtype))
}
