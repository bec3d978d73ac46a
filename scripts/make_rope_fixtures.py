#!/usr/bin/env python3
"""What transformers computes when a context is extended: tests/fixtures/rope/<method>/.

    pip install torch transformers safetensors numpy
    python scripts/make_rope_fixtures.py

The model is tests/fixtures/models/llama (scripts/make_fixtures.py), whose 128 positions become 1024 by each method of the
`context-extend` stage. A folder holds `config.json` (keys of transformers 4) and `reference.safetensors`: ids of a
sequence shorter than the original context and of one longer, and the float32 logits of the last 12 positions of each.
Every sequence goes through a model of its own, because a dynamic rule remembers the longest it has seen. The same
settings under `rope_parameters`, as transformers 5 writes them, must give the same logits, or the script stops.
"""
import json
import shutil
import tempfile
import pathlib

import torch
from safetensors.torch import save_file

from make_fixtures import ROOT, open_reference

OUT = ROOT.parent / "rope"
BASE = json.loads((ROOT / "llama" / "config.json").read_text())
ORIGINAL, TARGET = BASE["max_position_embeddings"], 1024
FACTOR = TARGET / ORIGINAL
HEAD = BASE["hidden_size"] // BASE["num_attention_heads"]
LENGTHS, KEPT = {"short": 96, "long": 200}, 12

METHODS = {
    # A scaled base frequency; readers need to know nothing else.
    "ntk": dict(max_position_embeddings=TARGET, rope_theta=BASE["rope_theta"] * FACTOR ** (HEAD / (HEAD - 2))),
    "linear": dict(max_position_embeddings=TARGET, rope_scaling=dict(rope_type="linear", factor=FACTOR)),
    "yarn": dict(max_position_embeddings=TARGET, rope_scaling=dict(
        rope_type="yarn", factor=FACTOR, original_max_position_embeddings=ORIGINAL)),
    # transformers takes max_position_embeddings for the original context here.
    "dynamic-ntk": dict(rope_scaling=dict(rope_type="dynamic", factor=FACTOR)),
}


def as_transformers_5(config):
    new = {k: v for k, v in config.items() if k not in ("rope_theta", "rope_scaling")}
    rope = dict(rope_theta=config["rope_theta"], rope_type="default")
    rope.update(config["rope_scaling"] or {})
    return {**new, "rope_parameters": rope}


def logits(config, ids):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        shutil.copy(ROOT / "llama" / "model.safetensors", folder)
        (folder / "config.json").write_text(json.dumps(config))
        with torch.no_grad():
            return open_reference(folder)(input_ids=ids).logits.float()[:, -KEPT:].contiguous()


for method, changes in METHODS.items():
    config = {**BASE, **changes}
    folder = OUT / method
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {}
    for kind, length in LENGTHS.items():
        ids = torch.randint(3, BASE["vocab_size"], (1, length), generator=torch.Generator().manual_seed(length))
        out = logits(config, ids)
        assert torch.equal(out, logits(as_transformers_5(config), ids)), method
        moved = (out - logits(BASE, ids)).abs().max().item()
        stays = method == "dynamic-ntk" and length <= ORIGINAL
        assert (moved == 0) if stays else (moved > 0.05), (method, kind, moved)
        tensors |= {f"{kind}_ids": ids, f"{kind}_logits": out}
        print(f"{method:12} {length:4} tokens: logits move by {moved:.3f}")
    save_file(tensors, folder / "reference.safetensors")
    (folder / "reference.safetensors").chmod(0o644)
