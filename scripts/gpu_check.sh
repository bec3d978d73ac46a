#!/usr/bin/env bash
# Builds the `cuda` feature and, where there is a GPU, runs on it: the reference fixtures, the demo, and timings.
#
#   scripts/gpu_check.sh [build|run|all]
#     build   toolkit from PyPI wheels (scripts/cuda/toolkit.sh) and release binaries; no GPU needed, 5 to 20 minutes
#     run     what was built, on this machine's GPU; needs no Rust, so a built checkout can be carried to the machine
#     all     both (the default)
#
# Exit status: 0 all passed; 3 built, but there is no GPU here to run on; anything else: a step failed.
# Reads: CUDA_TOOLKIT_FOLDER (target-cuda/toolkit), CUDA_TARGET_DIR (target-cuda), GPU_CHECK_TEXT and GPU_CHECK_MODEL (a
# text and a Hugging Face model folder for the perplexity timing; the demo's when not given), GPU_CHECK_KEEP (the
# folder for the demo's line; a temporary one when not given).
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-all}
target=${CUDA_TARGET_DIR:-$PWD/target-cuda}
toolkit=${CUDA_TOOLKIT_FOLDER:-$target/toolkit}
ready=$target/gpu-check
NO_GPU=3

build() {
    scripts/cuda/toolkit.sh "$toolkit"
    # shellcheck disable=SC1091
    . "$toolkit/env.sh"
    export CARGO_TARGET_DIR=$target
    cargo build --release --features cuda --bins --example gpu_timing
    mkdir -p "$ready"
    cp "$target/release/foreman" "$target/release/factoryd" "$target/release/examples/gpu_timing" "$ready/"
    cargo test --release --features cuda --test it --no-run --message-format=json 2>/dev/null |
        python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "it":
        print(message["executable"])' | tail -1 | xargs -I{} cp {} "$ready/it"
    if ldd "$ready/foreman" | grep -E 'libcu|libnv'; then
        echo "the binary needs CUDA libraries to start: the stand-ins were not linked" >&2
        exit 1
    fi
    "$ready/foreman" --version # it must start without any CUDA library
}

gpu() {
    command -v nvidia-smi >/dev/null &&
        nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null
}

run() {
    gpu || { echo "no NVIDIA GPU on this machine (nvidia-smi finds none): built, nothing run"; exit $NO_GPU; }
    LD_LIBRARY_PATH=$(python3 scripts/cuda/library_path.py)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export LD_LIBRARY_PATH CUDA_LAZY_DEBUG=1

    echo "== fixtures: the engine on the GPU against float32 reference logits"
    "$ready/it" --ignored --nocapture on_the_gpu

    echo "== matmul"
    "$ready/gpu_timing"

    echo "== perplexity, GPU and CPU (the first GPU run also compiles the kernels)"
    local model=${GPU_CHECK_MODEL:-recipes/demo/model} text=${GPU_CHECK_TEXT:-recipes/demo/heldout.txt}
    for device in cuda:0 cuda:0 cpu; do
        "$ready/foreman" assay "$model" --runner perplexity --data "$text" --context 512 --convention llama.cpp \
            --device $device --json | python3 -c "import json, sys
r = json.load(sys.stdin); r = r.get('result', r)
print(f\"$device: perplexity {r['perplexity']:.4f}, {r['tokens'] / r['seconds']:,.0f} tokens/s, {r['seconds']:.2f} s\")"
    done

    echo "== the demo"
    local line=${GPU_CHECK_KEEP:-$(mktemp -d)}
    "$ready/foreman" demo --root "$line/demo"
}

case $what in
    build) build ;;
    run) run ;;
    all) build && run ;;
    *) echo "usage: scripts/gpu_check.sh [build|run|all]" >&2 && exit 2 ;;
esac
