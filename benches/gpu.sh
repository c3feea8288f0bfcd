#!/bin/bash
# Attention of one decode step on the first CUDA device: dense, FASA and PyTorch's scaled_dot_product_attention in one run.
#
#   benches/gpu.sh            builds and runs; needs the driver, libnvrtc and CUDA's headers, but no CUDA toolkit to build
#   benches/gpu.sh --build    builds only, and says where the program is: it needs nothing else of this repository
#   benches/gpu.sh PROGRAM    runs what was built elsewhere
#
# FASA_SIZES="1x65536 8x4096" runs these batches and contexts only; FASA_STAGES=1 adds up the launches of a step of several.
# PyTorch is left out where `python3` has none.
#
# Columns, in microseconds for one layer: `device` is the device's own time, launches replayed from a CUDA graph; `replayed`
# and `launched` are what the host sees, from a graph and launch by launch; `bound` is the bytes that must be read over the
# bandwidth of a copy, and `share` the part of `device` that it makes up; `x SDPA` is PyTorch's best over `device`. Medians
# after a warm-up.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

build() {
    cd "$here/.."
    cargo build --release --package fasa-cube --features cuda --example step
    cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1\/release\/examples\/step/'
}

case "${1:-}" in
--build) build; exit ;;
"") program=$(build | tail -1) ;;
*) program=$1 ;;
esac

# NVRTC and the headers: where the loader looks, a toolkit, or the packages that came with PyTorch.
if [ -z "${CUDA_PATH:-}" ]; then
    site=$(python3 -c 'import nvidia; print(list(nvidia.__path__)[0])' 2>/dev/null || true)
    for root in /usr/local/cuda /usr/local/cuda-* ${site:+"$site"/cu13 "$site"/cuda_runtime}; do
        if [ -e "$root/include/cuda_runtime.h" ]; then
            export CUDA_PATH=$root
            break
        fi
    done
    for folder in /usr/local/cuda/lib64 /usr/local/cuda-*/lib64 ${site:+"$site"/cu13/lib "$site"/cuda_nvrtc/lib}; do
        if compgen -G "$folder/libnvrtc.so*" >/dev/null; then
            export LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
            break
        fi
    done
fi
echo "CUDA_PATH=${CUDA_PATH:-} LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}" >&2
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || true

FASA_SDPA=$(mktemp)
export FASA_SDPA
trap 'rm -f "$FASA_SDPA"' EXIT
read -ra sizes <<<"${FASA_SIZES:-1x4096 1x8192 1x16384 1x32768 1x65536 1x131072 8x4096 8x16384 8x65536}"
if python3 -c 'import torch' 2>/dev/null; then
    python3 "$here/gpu_sdpa.py" "${sizes[@]}" >"$FASA_SDPA"
else
    echo "python3 has no torch: PyTorch is left out" >&2
fi
"$program"
