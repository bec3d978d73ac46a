#!/usr/bin/env bash
# Makes a CUDA 13.0 toolkit in a folder from PyPI wheels (about 270 MB): no installer, no root, no GPU.
#
#   scripts/cuda/toolkit.sh FOLDER        then:  . FOLDER/env.sh && cargo build --release --features cuda
#
# Reads: CUDA_WHEELS (13.0.2; 13.0.x is what driver 580 and later can load), CUDA_COMPUTE_CAP (90: H100, H200).
# Needs: python3 with pip, gcc, g++, and the sources of the dependencies (`cargo fetch`).
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: scripts/cuda/toolkit.sh FOLDER" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)
root=$folder/toolkit

# Every wheel of CUDA 13 unpacks into the same tree, nvidia/cu13, which has the shape of a toolkit.
if ! [ -x "$root/bin/nvcc" ]; then
    wheels=$(mktemp -d "$folder/wheels.XXXXXX")
    trap 'rm -rf "$wheels"' EXIT
    python3 -m pip install --quiet --disable-pip-version-check --no-compile --target "$wheels" \
        "cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]==${CUDA_WHEELS:-13.0.2}"
    rm -rf "$root"
    mv "$wheels/nvidia/cu13" "$root"
fi

# What the wheels leave out: nvcc links with lib64, and the linker looks for names without a version.
ln -sfn lib "$root/lib64"
# The static runtime under the name that -lcudart finds: the binary then needs no libcudart.so.
ln -sfn libcudart_static.a "$root/lib/libcudart.a"
rm -f "$root"/lib/lib{cuda,cublas,cublasLt,curand,nvrtc,cudart}.so

manifest=$(cd "$here/../.." && cargo metadata --format-version 1 --features cuda | python3 -c '
import json, sys
print(*(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "cudarc"))')
[ -n "$manifest" ] || { echo "cudarc is not among the dependencies: run this in the project's checkout" >&2; exit 1; }
python3 "$here/lazy_libs.py" "$(dirname "$manifest")" "$root/lib"

cat >"$folder/env.sh" <<END
export CUDA_HOME=$root CUDA_PATH=$root CUDA_ROOT=$root
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90} CUDARC_CUDA_VERSION=13000
export PATH=$root/bin:\$PATH
END
"$root/bin/nvcc" --version | grep release
echo "ready: . $folder/env.sh"
