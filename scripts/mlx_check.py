#!/usr/bin/env python3
"""Directories of format `mlx` as mlx_lm loads them, against this engine: the table in docs/VERIFICATION.md.

    pip install "mlx[cpu]" mlx-lm numpy
    cargo build --bin foreman --example logits
    python scripts/mlx_check.py [--bin target/debug] MODEL[:TYPE[:GROUP[:ALGORITHM]]] ...

Every model is quantized by a recipe through a line (`foreman run`) to TYPE (MLX4) in groups of GROUP (64) by ALGORITHM
(rtn), and its artifact is loaded by `mlx_lm.utils.load_model` from the directory alone, strictly: no tensor may be missing
or left over. Printed: bits per weight of the whole file; the largest difference of a logit from this engine's, with the
weights that mlx dequantizes and everything in f32; the same with mlx's own quantized products in the type of the directory,
whose activations are rounded; greedy tokens that agree (16 after each of two prompts, f32). The last line says whether all
f32 differences are below 1e-3.
"""
import argparse
import json
import pathlib
import subprocess
import tempfile

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map, tree_unflatten
from mlx_lm.utils import load_model

LENGTH, GREEDY = 24, 16
mx.set_default_device(mx.cpu)


def quantize(foreman, model, stage, root):
    config = json.loads((model / "config.json").read_text())
    recipe = {"name": "packed", "version": "1.0.0", "stages": [{"type": "quant", "format": "mlx", **stage}],
              "source": {"baseModel": str(model.resolve()), "architecture": config["model_type"]}}
    path = root / "packed.alloy.json"
    path.write_text(json.dumps(recipe))
    for words in (["init"], ["enqueue", path], ["run", "--once"]):
        done = subprocess.run([foreman, *words, "--root", root], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{model.name}: {done.stdout}{done.stderr}")
    result = json.loads((root / "work" / "packed" / "result.json").read_text())
    return root / "work" / "packed" / "artifact", result


def ours(program, model, ids, scratch):
    (scratch / "ids.json").write_text(json.dumps(np.asarray(ids).tolist()))
    subprocess.run([program, model, scratch / "ids.json", scratch / "logits.f32"], check=True)
    return np.fromfile(scratch / "logits.f32", "<f4").reshape(*np.shape(ids), -1)


def plain(model):
    """Every packed layer as a plain one of the values mlx gives it, in f32."""
    changed = []
    for name, layer in model.named_modules():
        if not hasattr(layer, "scales"):
            continue
        scales, biases = layer.scales.astype(mx.float32), layer.biases.astype(mx.float32)
        values = mx.dequantize(layer.weight, scales, biases, layer.group_size, layer.bits)
        if isinstance(layer, nn.QuantizedEmbedding):
            new = nn.Embedding(*values.shape)
        elif isinstance(layer, nn.QuantizedLinear):
            new = nn.Linear(values.shape[1], values.shape[0], bias="bias" in layer)
        else:
            experts, rows, cols = values.shape
            module = __import__("mlx_lm.models.switch_layers", fromlist=["SwitchLinear"])
            new = module.SwitchLinear(cols, rows, experts, bias="bias" in layer)
        new.weight = values
        if "bias" in layer:
            new.bias = layer.bias
        changed.append((name, new))
    model.update_modules(tree_unflatten(changed))
    model.update(tree_map(lambda a: a.astype(mx.float32) if mx.issubdtype(a.dtype, mx.floating) else a, model.parameters()))
    return model


def check(arguments, named):
    path, kind, group, algorithm = (named.split(":") + ["MLX4", "64", "rtn"][named.count(":"):])[:4]
    model = pathlib.Path(path)
    stage = {"quantTypes": [kind], "groupSize": int(group), "algorithm": algorithm}
    if algorithm == "gptq":
        stage |= {"calibrationTokens": arguments.tokens}
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        directory, result = quantize(arguments.bin / "foreman", model, stage, root)
        vocab = json.loads((model / "config.json").read_text())["vocab_size"]
        ids = np.random.default_rng(7).integers(3, vocab, (2, LENGTH))
        program = arguments.bin / "examples" / "logits"
        here = ours(program, directory, ids, root)
        loaded, _ = load_model(directory, lazy=False, strict=True)
        quick = np.array(loaded(mx.array(ids)).astype(mx.float32))
        exact = plain(loaded)
        there = np.array(exact(mx.array(ids)))
        texts = [list(row[:8]) for row in ids.tolist()]
        for _ in range(GREEDY):
            texts = [text + [int(np.array(exact(mx.array([text])))[0, -1].argmax())] for text in texts]
        same, first = 0, len(texts[0]) - GREEDY
        logits = ours(program, directory, texts, root)
        for text, rows in zip(texts, logits):
            same += sum(int(rows[at - 1].argmax()) == text[at] for at in range(first, len(text)))
    apart, rounded = float(np.abs(here - there).max()), float(np.abs(here - quick).max())
    bits = result["artifacts"][0]["bits_per_weight"]
    print(f"| {model.name} | {result['artifacts'][0]['type']}, {algorithm} | {bits:.3f} | {apart:.1e} | {rounded:.1e} | "
          f"{there.std():.2f} | {same} of {2 * GREEDY} |", flush=True)
    return apart


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("target/debug"))
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("models", nargs="+")
    arguments = parser.parse_args()
    print("| model | type | bits per weight | differs from mlx by | from mlx's rounded products | logit spread | greedy |")
    print("|---|---|---|---|---|---|---|")
    worst = max(check(arguments, named) for named in arguments.models)
    print("all below 1e-3" if worst < 1e-3 else f"NOT below 1e-3: {worst}")
