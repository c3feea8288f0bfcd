//! Matrix products of many rows.
//!
//! Burn's own choice would try a dozen kernels for every size: minutes of compiling before a first token, on any device.

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::{ElemType, FloatKind};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::launch_ref;
use cubek::matmul::multi_level::Strategy::{SimpleCyclicCmma, SimpleCyclicMma, SimpleUnit};
use cubek::matmul::strategy::Strategy;
use cubek::std::InputBinding;

/// `lhs rhs` in f32, whatever the two are both kept as: `[.., m, k]` and `[.., k, n]`. Matrix units take numbers of 16 bits only;
/// those for single precision would round it.
pub(super) fn product(lhs: CubeTensor, rhs: CubeTensor) -> CubeTensor {
    let (mut shape, of_rhs) = (lhs.shape(), rhs.shape());
    let rank = shape.num_dims();
    shape[rank - 1] = of_rhs[rank - 1];
    let numbers = super::gpu(&lhs).words(shape.num_elements());
    let out = super::tensor(&lhs, numbers, Shape::from(shape.to_vec()));
    let of = storage(lhs.dtype);
    // The fastest that the device has of those that were seen to be right: docs/performance.md, "GPU".
    let mut units = vec![SimpleUnit(Default::default())];
    if lhs.dtype != DType::F32 {
        units.splice(0..0, [SimpleCyclicMma(Default::default()), SimpleCyclicCmma(Default::default())]);
    }
    let mut refused = None;
    for strategy in units {
        let mut types = MatmulElems::from_globals(&MatmulGlobalElems { lhs: of, rhs: of, out: storage(DType::F32) });
        let inputs = [&lhs, &rhs].map(|tensor| InputBinding::new(tensor.clone().binding(), of));
        let [lhs, rhs] = inputs;
        let strategy = Strategy::MultiLevel(strategy);
        match launch_ref(&strategy, &out.client, lhs, rhs, out.clone().binding(), &mut types) {
            Ok(()) => return out,
            Err(error) => refused = Some(error),
        }
    }
    panic!("the device has no kernel for a matrix product: {refused:?}")
}

fn storage(dtype: DType) -> ElemType {
    ElemType::Float(match dtype {
        DType::F16 => FloatKind::F16,
        DType::BF16 => FloatKind::BF16,
        _ => FloatKind::F32,
    })
}
