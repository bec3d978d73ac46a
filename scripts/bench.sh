#!/usr/bin/env bash
# Measures, in one run on one machine: quantization, perplexity, expert pruning against cp, and what the line costs.
#
#   scripts/bench.sh [--model DIR] [--text FILE] [--only quantize,perplexity,prune,line] [...]   (--help: all options)
#   LLAMA_PYTHON=venv/bin/python scripts/bench.sh ...           also runs llama.cpp on the same work (llama_peer.py)
#
# Builds the release binaries first; needs python3 with numpy for the synthetic model of the prune figure.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cargo build --release --bins --manifest-path "$here/../Cargo.toml"
exec python3 "$here/bench.py" "$@"
