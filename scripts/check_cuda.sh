#!/usr/bin/env bash
# Type-checks the `cuda` feature on a machine without a CUDA toolkit, driver or GPU.
#
#   scripts/check_cuda.sh [--lint] [CARGO ARGUMENTS ...]       --lint: clippy, warnings refused, instead of a plain check
#
# candle's build scripts want nvcc even for a check: scripts/cuda/nvcc-stand-in answers for it, in a target folder of
# its own, since nothing built with it may ever be linked. From nothing: one to two minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
unset CUDA_HOME CUDA_PATH CUDA_ROOT CUDA_TOOLKIT_ROOT_DIR
export NVCC=$PWD/scripts/cuda/nvcc-stand-in CUDA_COMPUTE_CAP=90 CUDARC_CUDA_VERSION=13000
export CARGO_TARGET_DIR=${CUDA_CHECK_TARGET_DIR:-$PWD/target-cuda-check}
if [ "${1:-}" = --lint ]; then
    shift
    cargo clippy --features cuda --all-targets "$@" -- -D warnings
else
    cargo check --features cuda --all-targets "$@"
fi
echo "the cuda feature type-checks"
