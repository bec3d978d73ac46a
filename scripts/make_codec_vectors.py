#!/usr/bin/env python3
"""Writes tests/fixtures/codec: what gguf and ggml make of values and blocks, to hold our codecs against.

    pip install gguf numpy llama-cpp-python
    python scripts/make_codec_vectors.py

values.*          rows of 32, and the bytes ggml's reference quantizers write for them (to hold encoders to the byte)
ternary.*         blocks that are ternary already, and ggml's bytes for them
blocks.<type>     blocks of random bytes with edge cases among the scales; blocks.<type>.f32 is their decoding, on which the
                  gguf package and ggml agree to the bit (gguf 0.19 has no Q2_0: ggml alone)
rows.f32          super-blocks of several distributions; importance.f32 is a weight per column
errors.json       squared errors ggml's quantizers leave on rows.f32: what our searches must not exceed
"""
import ctypes
import json
import pathlib

import gguf
import llama_cpp
import numpy as np

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "codec"
Q2_0 = 42
KINDS = gguf.GGMLQuantizationType
# type: number, elements and bytes of a block, where its f16 numbers lie
TYPES = {
    "q4_0": (KINDS.Q4_0, 32, 18, [0]), "q4_1": (KINDS.Q4_1, 32, 20, [0, 2]), "q5_0": (KINDS.Q5_0, 32, 22, [0]),
    "q5_1": (KINDS.Q5_1, 32, 24, [0, 2]), "q8_0": (KINDS.Q8_0, 32, 34, [0]), "q2_k": (KINDS.Q2_K, 256, 84, [80, 82]),
    "q3_k": (KINDS.Q3_K, 256, 110, [108]), "q4_k": (KINDS.Q4_K, 256, 144, [0, 2]),
    "q5_k": (KINDS.Q5_K, 256, 176, [0, 2]), "q6_k": (KINDS.Q6_K, 256, 210, [208]),
    "iq4_nl": (KINDS.IQ4_NL, 32, 18, [0]), "iq4_xs": (KINDS.IQ4_XS, 256, 136, [0]),
    "tq1_0": (KINDS.TQ1_0, 256, 54, [52]), "tq2_0": (KINDS.TQ2_0, 256, 66, [64]),
    "mxfp4": (KINDS.MXFP4, 32, 17, []), "q2_0": (Q2_0, 64, 18, [0]),
}
EXACT = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "mxfp4"]
SEARCHED = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "q2_0", "tq1_0", "tq2_0"]
WEIGHTED = ["q4_0", "q4_1", "q5_0", "q5_1"]

ggml = ctypes.CDLL(str(pathlib.Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
FLOATS = ctypes.POINTER(ctypes.c_float)


def floats(array):
    return array.ctypes.data_as(FLOATS)


def quantize(name, rows, importance=None):
    """ggml's bytes for rows [n, columns]."""
    kind, elems, size, _ = TYPES[name]
    rows = np.ascontiguousarray(rows, np.float32)
    out = np.zeros((rows.shape[0], rows.shape[1] // elems * size), np.uint8)
    weights = None if importance is None else floats(np.ascontiguousarray(importance, np.float32))
    written = ggml.ggml_quantize_chunk(ctypes.c_int(int(kind)), floats(rows), ctypes.c_void_p(out.ctypes.data),
                                       ctypes.c_int64(0), ctypes.c_int64(rows.shape[0]), ctypes.c_int64(rows.shape[1]),
                                       weights)
    assert written == out.size, (name, written, out.size)
    return out


def dequantize(name, data):
    """ggml's values of blocks."""
    elems, size = TYPES[name][1:3]
    data = np.ascontiguousarray(data)
    out = np.empty(data.size // size * elems, np.float32)
    decode = getattr(ggml, "dequantize_row_" + (name[:-1] + "K" if name.endswith("_k") else name))
    decode(ctypes.c_void_p(data.ctypes.data), floats(out), ctypes.c_int64(out.size))
    return out


def values():
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


def blocks(name):
    """Random bytes; the f16 numbers are finite and go through zero, both signs and both ends of their range."""
    kind, elems, size, halves = TYPES[name]
    rng = np.random.default_rng(int(kind))
    data = rng.integers(0, 256, (max(8, 2048 // elems), size), np.uint8)
    edges = np.array([0.0, -0.0, 65504.0, -65504.0, 6e-8, -6e-8, 6.1e-5, 1.0, -0.013], np.float16)
    for at in halves:
        numbers = rng.normal(0, 0.02, len(data)).astype(np.float16)
        numbers[:7] = rng.permutation(edges)[:7]
        data[:, at:at + 2] = numbers.view(np.uint8).reshape(-1, 2)
    if name == "mxfp4":
        data[:, 0] = np.minimum(data[:, 0], 252)
        data[:8, 0] = [0, 1, 2, 127, 128, 126, 250, 252]
    return data


def rows():
    """48 super-blocks: what weights look like, and what they should not."""
    rng = np.random.default_rng(7)
    outliers = rng.normal(0, 0.02, (6, 256))
    outliers[:, ::37] *= 12
    uneven = rng.normal(0, 1, (6, 256)) * np.repeat(np.exp(rng.normal(0, 1, (6, 16))), 16, 1) * 0.02
    kinds = [rng.normal(0, 0.02, (18, 256)), rng.laplace(0, 0.02, (6, 256)), rng.standard_t(4, (6, 256)) * 0.02,
             rng.uniform(-0.05, 0.05, (4, 256)), outliers, uneven, np.abs(rng.normal(0, 0.02, (2, 256)))]
    values = np.concatenate(kinds).astype(np.float32)
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)


def square_errors(name, data, importance):
    """Per super-block Σ w (x − x')² / Σ w x², for w = 1 and for w = importance."""
    bytes_ = quantize(name, data, importance)
    off = (dequantize(name, bytes_).reshape(data.shape).astype(np.float64) - data) ** 2
    weight = np.ones(data.shape[1]) if importance is None else importance.astype(np.float64)
    return ((off * weight).sum(1) / (data.astype(np.float64) ** 2 * weight).sum(1)).tolist()


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(11)
    plain = values()
    (OUT / "values.f32").write_bytes(plain.tobytes())
    for name in EXACT:
        data = quantize(name, plain)
        assert (data == gguf.quantize(plain, TYPES[name][0])).all() or name == "mxfp4", name
        (OUT / f"values.{name}").write_bytes(data.tobytes())
    for name, kind in (("f16", KINDS.F16), ("bf16", KINDS.BF16)):
        (OUT / f"values.{name}").write_bytes(gguf.quantize(plain, kind).tobytes())
    ternary = (rng.integers(-1, 2, (4, 256)) * np.array([[1.0], [0.0137], [3e-5], [700.0]])).astype(np.float32)
    (OUT / "ternary.f32").write_bytes(ternary.tobytes())
    for name in ("tq1_0", "tq2_0", "q2_0"):
        (OUT / f"ternary.{name}").write_bytes(quantize(name, ternary).tobytes())
    for name in TYPES:
        raw = blocks(name)
        decoded = dequantize(name, raw)
        if name != "q2_0":
            theirs = gguf.dequantize(raw, TYPES[name][0]).astype(np.float32).reshape(-1)
            assert (theirs.view(np.uint32) == decoded.view(np.uint32)).all(), name
        assert np.isfinite(decoded).all(), name
        (OUT / f"blocks.{name}").write_bytes(raw.tobytes())
        (OUT / f"blocks.{name}.f32").write_bytes(decoded.tobytes())
    data, importance = rows(), np.exp(rng.normal(0, 1, 256)).astype(np.float32)
    (OUT / "rows.f32").write_bytes(data.tobytes())
    (OUT / "importance.f32").write_bytes(importance.tobytes())
    errors = {name: {"plain": square_errors(name, data, None)} for name in SEARCHED}
    for name in SEARCHED + WEIGHTED:
        errors.setdefault(name, {})["importance"] = square_errors(name, data, importance)
    text = json.dumps(errors, separators=(",", ":"))
    (OUT / "errors.json").write_text(json.dumps(json.loads(text, parse_float=lambda x: float(f"{float(x):.6g}"))) + "\n")
    print({path.name: path.stat().st_size for path in sorted(OUT.iterdir())})


if __name__ == "__main__":
    main()
