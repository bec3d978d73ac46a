#!/usr/bin/env python3
"""Matrices and tiny models packed by the formats' own packages, for the tests: tests/fixtures/packed/.

    pip install torch transformers safetensors numpy compressed-tensors loguru psutil 'mlx[cpu]'
    python scripts/make_packed_fixtures.py

`compressed-tensors/` and `mlx/` hold matrices of several widths and groups, each beside what its package decodes it to
(`expected.safetensors`). `llama-w4-w3`, `qwen3_moe-w4` (compressed-tensors) and `llama-mlx` are tiny models of
tests/fixtures/models, packed, with logits that transformers computed in float32 from the decoded weights
(`reference.safetensors`, as in make_fixtures.py). Same versions of the packages, same bytes.
"""
import json
import os
import pathlib
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")
import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor  # noqa: E402
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme  # noqa: E402
from compressed_tensors.quantization.utils import calculate_qparams  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures"
ROOT = FIXTURES / "packed"

# name: rows, columns, bits, columns of a group (None: the whole row), symmetric, type of the scales
MATRICES = {
    "w2_g32": (24, 96, 2, 32, True, torch.bfloat16), "w3_g32": (24, 96, 3, 32, True, torch.bfloat16),
    "w3_g32_asym": (37, 96, 3, 32, False, torch.bfloat16), "w4_g32": (24, 96, 4, 32, True, torch.bfloat16),
    "w4_g64_f16": (24, 128, 4, 64, True, torch.float16), "w4_g32_asym": (37, 96, 4, 32, False, torch.bfloat16),
    "w5_channel": (24, 100, 5, None, True, torch.bfloat16), "w6_g32_asym": (20, 64, 6, 32, False, torch.float16),
    "w7_channel_asym": (21, 50, 7, None, False, torch.bfloat16), "w8_g32": (24, 96, 8, 32, True, torch.float32),
    "w8_channel_asym": (9, 70, 8, None, False, torch.bfloat16),
}


def args_of(bits, group, symmetric):
    strategy = dict(strategy="channel") if group is None else dict(strategy="group", group_size=group)
    return QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, **strategy)


def scheme_of(bits, group, symmetric):
    return QuantizationScheme(targets=["Linear"], weights=args_of(bits, group, symmetric))


def pack(weight, bits, group, symmetric, dtype):
    """The parts compressed-tensors makes of a matrix, and the matrix it makes of the parts."""
    scheme = scheme_of(bits, group, symmetric)
    grouped = weight.float().reshape(weight.shape[0], -1, group or weight.shape[1])
    scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), scheme.weights)
    state = {"weight": weight.to(dtype), "weight_scale": scale.to(dtype)}
    if not symmetric:
        state["weight_zero_point"] = zero.to(torch.int8)
    packed = PackedQuantizationCompressor.compress(state, scheme)
    decoded = PackedQuantizationCompressor.decompress(dict(packed), scheme)["weight"]
    return packed, decoded


def quantization_config(groups, ignore):
    def group(args):
        weights = args.model_dump()
        return {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None,
                "format": "pack-quantized"}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
            "config_groups": {f"group_{i}": group(args) for i, args in enumerate(groups)}, "ignore": ignore,
            "kv_cache_scheme": None, "global_compression_ratio": None}


def draw(name, rows, columns):
    seed = int.from_bytes(name.encode(), "little") % 2**31
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05 + 0.01


def fresh(name):
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def put(folder, name, tensors):
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / name, metadata={"format": "pt"})
    (folder / name).chmod(0o644)  # safetensors writes 0600


def put_config(folder, config):
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")


def compressed_matrices():
    folder, tensors, expected = fresh("compressed-tensors"), {}, {}
    for name, (rows, columns, bits, group, symmetric, dtype) in MATRICES.items():
        packed, expected[f"{name}.weight"] = pack(draw(name, rows, columns), bits, group, symmetric, dtype)
        tensors.update({f"{name}.{part}": t for part, t in packed.items()})
    put(folder, "model.safetensors", tensors)
    put(folder, "expected.safetensors", expected)
    groups = [args_of(bits, group, symmetric) for _, _, bits, group, symmetric, _ in MATRICES.values()]
    put_config(folder, {"quantization_config": quantization_config(groups, [])})


def mlx_pack(weight, bits, group, dtype=mx.float32):
    """The parts MLX makes of a matrix, and what they stand for: in float32, where nothing is rounded on the way."""
    codes, scales, biases = mx.quantize(mx.array(weight.float().numpy()).astype(dtype), group_size=group, bits=bits)
    wide = [scales.astype(mx.float32), biases.astype(mx.float32)]
    decoded = mx.dequantize(codes, *wide, group_size=group, bits=bits)
    as_torch = lambda a: torch.from_numpy(np.array(a))  # noqa: E731
    narrow = torch.bfloat16 if dtype == mx.bfloat16 else torch.float32
    parts = {"weight": torch.from_numpy(np.array(codes)), "scales": as_torch(wide[0]).to(narrow),
             "biases": as_torch(wide[1]).to(narrow)}
    return parts, as_torch(decoded)


def mlx_matrices():
    folder, tensors, expected, own = fresh("mlx"), {}, {}, {}
    for bits in [2, 3, 4, 5, 6, 8]:
        for group in [32, 64]:
            name = f"b{bits}_g{group}"
            parts, expected[f"{name}.weight"] = mlx_pack(draw(name, 24, 128), bits, group)
            tensors.update({f"{name}.{part}": t for part, t in parts.items()})
            own[name] = {"group_size": group, "bits": bits}
    experts = [mlx_pack(draw(f"expert{e}", 16, 64), 4, 64) for e in range(3)]
    stack = {part: torch.stack([parts[part] for parts, _ in experts]) for part in experts[0][0]}
    tensors.update({f"mlp.switch_mlp.up_proj.{part}": t for part, t in stack.items()})
    expected.update({f"mlp.experts.{e}.up_proj.weight": decoded for e, (_, decoded) in enumerate(experts)})
    put(folder, "model.safetensors", tensors)
    put(folder, "expected.safetensors", expected)
    put_config(folder, {"quantization": {"group_size": 64, "bits": 4, **own}})


def write_reference(folder, base, decoded):
    """Logits of the model with these weights, in float32."""
    scratch = fresh("scratch")
    shutil.copy(FIXTURES / "models" / base / "config.json", scratch / "config.json")
    put(scratch, "model.safetensors", {n: t.float() for n, t in decoded.items()})
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        scratch, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    reference = load_file(FIXTURES / "models" / base / "reference.safetensors")
    ids = reference["input_ids"]
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits.float()
    moved = (logits - reference["logits"]).abs().max().item()
    assert moved > 0.01, "packing changed nothing"
    put(folder, "reference.safetensors", {"input_ids": ids, "logits": logits})
    shutil.rmtree(scratch)
    print(f"{folder.name}: packing moves the logits by {moved:.3f}")


def is_linear(name):
    return name.endswith("_proj.weight")


def compressed_model(name, base, settings):
    """`settings(tensor name)`: bits, group, symmetric."""
    folder, tensors, decoded, groups = fresh(name), {}, {}, []
    for key, weight in load_file(FIXTURES / "models" / base / "model.safetensors").items():
        if not is_linear(key):
            tensors[key] = decoded[key] = weight
            continue
        chosen = settings(key)
        packed, decoded[key] = pack(weight, *chosen, torch.bfloat16)
        tensors.update({f"{key.removesuffix('.weight')}.{part}": t for part, t in packed.items()})
        if args_of(*chosen) not in groups:
            groups.append(args_of(*chosen))
    put(folder, "model.safetensors", tensors)
    config = json.loads((FIXTURES / "models" / base / "config.json").read_text())
    put_config(folder, {**config, "quantization_config": quantization_config(groups, ["lm_head"])})
    write_reference(folder, base, decoded)


def mlx_model(name, base):
    folder, tensors, decoded = fresh(name), {}, {}
    for key, weight in load_file(FIXTURES / "models" / base / "model.safetensors").items():
        if weight.ndim < 2:
            tensors[key] = decoded[key] = weight
            continue
        parts, decoded[key] = mlx_pack(weight, 4, 32, mx.bfloat16)
        tensors.update({f"{key.removesuffix('.weight')}.{part}": t for part, t in parts.items()})
    put(folder, "model.safetensors", tensors)
    config = json.loads((FIXTURES / "models" / base / "config.json").read_text())
    settings = {"group_size": 32, "bits": 4, "mode": "affine"}
    put_config(folder, {**config, "quantization": settings, "quantization_config": settings})
    write_reference(folder, base, decoded)


if __name__ == "__main__":
    compressed_matrices()
    mlx_matrices()
    compressed_model("llama-w4-w3", "llama", lambda n: (3, 32, False) if ".mlp." in n else (4, 32, True))
    compressed_model("qwen3_moe-w4", "qwen3_moe", lambda n: (4, 32, True))
    mlx_model("llama-mlx", "llama")
