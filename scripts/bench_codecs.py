#!/usr/bin/env python3
"""Our quantizers beside ggml's on one core, on the same values: million values per second, and relative squared error.

    pip install gguf numpy llama-cpp-python
    cargo build --release --example codec_speed
    python scripts/bench_codecs.py target/release/examples/codec_speed
"""
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from make_codec_vectors import TYPES, dequantize, quantize

RUNS = 3


def best(run):
    """Processor seconds of the fastest run, so that a busy machine tells the truth."""
    times = []
    for _ in range(RUNS):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return min(times)


def main():
    os.sched_setaffinity(0, {0})
    values = np.random.default_rng(1).normal(0, 0.02, (512, 2048)).astype(np.float32)
    with tempfile.NamedTemporaryFile(suffix=".f32") as file:
        values.tofile(file.name)
        lines = subprocess.run([sys.argv[1], file.name, str(RUNS)], check=True, capture_output=True, text=True).stdout
    millions = values.size / 1e6
    print("| type | encode, Mval/s: ours | ggml | decode: ours | ggml | error: ours | ggml |\n|---|---|---|---|---|---|---|")
    for line in lines.splitlines():
        ours = json.loads(line)
        name = ours["type"]
        if name not in TYPES:
            continue
        encode = best(lambda: quantize(name, values))
        data = quantize(name, values)
        decode = best(lambda: dequantize(name, data))
        off = ((dequantize(name, data).astype(np.float64) - values.reshape(-1)) ** 2).sum()
        error = off / (values.astype(np.float64) ** 2).sum()
        print(f"| {name} | {millions / ours['encode_s']:.1f} | {millions / encode:.1f} | {millions / ours['decode_s']:.0f} "
              f"| {millions / decode:.0f} | {ours['error']:.6f} | {error:.6f} |")


if __name__ == "__main__":
    main()
