#!/usr/bin/env python3
"""Packed directories as transformers loads them, against this engine: the table in docs/VERIFICATION.md.

    pip install torch transformers safetensors numpy compressed-tensors loguru psutil
    cargo build --bin foreman --example logits
    python scripts/ct_check.py [--bin target/debug] MODEL[:TYPE[:GROUP]] ...

Every model is quantized by a recipe through a line (`foreman run`) to TYPE (W4A16) in groups of GROUP (64), with
`algorithm: rtn`; then its artifact is loaded by transformers from the directory alone. No tensor may be missing, left
over or of another shape. Printed: the bits per weight of the whole file, the largest difference of a logit from this
engine's (both in f32 arithmetic on what the directory decodes to), the spread of the logits, and the largest difference
of the packed model's logits from the original's. The last line says whether every difference is below 1e-3.
"""
import argparse
import json
import os
import pathlib
import subprocess
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "2")
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
LENGTH = 24


def quantize(foreman, model, kind, group, root):
    config = json.loads((model / "config.json").read_text())
    stage = {"type": "quant", "format": "safetensors", "quantTypes": [kind], "groupSize": group}
    recipe = {"name": "packed", "version": "1.0.0", "stages": [stage],
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
    (scratch / "ids.json").write_text(json.dumps(ids.tolist()))
    subprocess.run([program, model, scratch / "ids.json", scratch / "logits.f32"], check=True)
    return np.fromfile(scratch / "logits.f32", "<f4").reshape(*ids.shape, -1)


def theirs(directory, ids, kind):
    # transformers 5.23 with compressed-tensors 0.20 makes room for zero points that are not packed: those it reads only
    # where it decodes while it loads.
    how = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)} if "ASYM" in kind else {}
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.bfloat16, attn_implementation="eager", output_loading_info=True, **how)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], (kind, sorted(info[kind])[:4])
    model.eval()
    compressor = getattr(getattr(model, "hf_quantizer", None), "compressor", None)
    with torch.no_grad():
        if compressor is not None and not how:
            compressor.decompress_model(model)
        # transformers refuses to cast what was quantized; by now every layer is plain.
        return torch.nn.Module.float(model)(input_ids=ids).logits.numpy()


def check(arguments, named):
    path, kind, group = [*named.split(":"), "W4A16", "64"][:3] if ":" not in named else [*named.split(":"), "64"][:3]
    model = pathlib.Path(path)
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        directory, result = quantize(arguments.bin / "foreman", model, kind, int(group), root)
        vocab = json.loads((model / "config.json").read_text())["vocab_size"]
        ids = torch.randint(3, vocab, (2, LENGTH), generator=torch.Generator().manual_seed(7))
        program = arguments.bin / "examples" / "logits"
        here, before = ours(program, directory, ids, root), ours(program, model, ids, root)
        there = theirs(directory, ids, kind)
    apart = float(np.abs(here - there).max())
    bits = result["artifacts"][0]["bits_per_weight"]
    print(f"| {model.name} | {result['artifacts'][0]['type']} | {bits:.3f} | {apart:.1e} | {there.std():.2f} | "
          f"{np.abs(here - before).max():.2f} |", flush=True)
    return apart


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("target/debug"))
    parser.add_argument("models", nargs="+")
    arguments = parser.parse_args()
    print("| model | type | bits per weight | differs from transformers by | logit spread | from the original |")
    print("|---|---|---|---|---|---|")
    worst = max(check(arguments, named) for named in arguments.models)
    print("all below 1e-3" if worst < 1e-3 else f"NOT below 1e-3: {worst}")
