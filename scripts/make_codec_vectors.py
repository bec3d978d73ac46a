#!/usr/bin/env python3
"""Writes tests/fixtures/codec: values, and what gguf's own quantizers make of them, to hold our codecs to the byte.

    pip install gguf numpy
    python scripts/make_codec_vectors.py
"""
from pathlib import Path

import gguf
import numpy as np

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "codec"
TYPES = {
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
}


def blocks() -> np.ndarray:
    rng = np.random.default_rng(20240607)
    rows = [rng.normal(0, scale, (16, 32)) for scale in (1e-6, 1e-3, 0.02, 1.0, 300.0)]
    rows.append(np.zeros((1, 32)))
    # Equal magnitudes of both signs: the first one decides Q4_0's scale.
    tie = rng.choice([-1.0, 1.0], (4, 32)) * 0.75
    rows.append(tie)
    # Quotients that fall exactly between two steps.
    halves = (np.arange(32) - 16.0) / 2
    rows += [np.where(np.arange(32) == 31, 127.0, halves)[None], np.where(np.arange(32) == 0, -8.0, halves / 2)[None]]
    # Scales that are subnormal or zero in f16.
    rows.append(rng.normal(0, 1e-7, (2, 32)))
    rows.append(rng.normal(0, 1e-9, (2, 32)))
    # One outlier per block.
    spike = rng.normal(0, 0.01, (4, 32))
    spike[np.arange(4), [0, 7, 16, 31]] = [9.0, -9.0, 5.0, -5.0]
    rows.append(spike)
    # Values that are exact in bf16, as weights are.
    weights = rng.normal(0, 0.05, (16, 32)).astype(np.float32)
    rows.append((weights.view(np.uint32) & 0xFFFF0000).view(np.float32))
    return np.concatenate(rows).astype(np.float32)


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    values = blocks()
    (OUT / "values.f32").write_bytes(values.tobytes())
    for name, kind in TYPES.items():
        data = gguf.quantize(values, kind)
        (OUT / f"values.{name}").write_bytes(data.tobytes())
        if name.startswith("q"):
            back = gguf.dequantize(data, kind).astype(np.float32)
            (OUT / f"values.{name}.back.f32").write_bytes(back.tobytes())
    print({path.name: path.stat().st_size for path in sorted(OUT.iterdir())})


if __name__ == "__main__":
    main()
