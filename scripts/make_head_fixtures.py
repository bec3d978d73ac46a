#!/usr/bin/env python3
"""What transformers computes when attention heads are masked: tests/fixtures/heads/<model>.safetensors.

    pip install torch transformers safetensors numpy
    python scripts/make_head_fixtures.py

For some of the tiny models that scripts/make_fixtures.py wrote. A masked head hands zeros to the output projection (a
hook in front of `o_proj`); nothing else is touched, so this says nothing about how weights are rewritten. `input_ids`
[1, 16]; `group_mask` [layers, heads] masks one whole key/value group of each layer, `head_mask` single heads, unevenly;
`group_logits` and `head_logits` [1, 16, vocab] are the logits in float32.
"""
import torch
from safetensors.torch import save_file

from make_fixtures import LENGTH, ROOT, open_reference

OUT = ROOT.parent / "heads"
# name: (group that goes in each layer, heads that go in each layer)
MODELS = {
    "llama": ([1, 0], [[0, 2, 3], [1]]),
    "llama-biases": ([0, 1], [[3], [0, 1]]),
    "qwen2-tied": ([1], [[0, 2]]),
    "qwen3": ([0], [[1, 2, 3]]),
}


def logits(model, ids, masked):
    """Logits with the heads `masked[layer]` handing nothing on."""
    width = model.config.head_dim if getattr(model.config, "head_dim", None) else \
        model.config.hidden_size // model.config.num_attention_heads

    def mask(heads):
        def hook(_, args):
            x = args[0].clone()
            for head in heads:
                x[..., head * width:(head + 1) * width] = 0
            return (x,)
        return hook

    hooks = [layer.self_attn.o_proj.register_forward_pre_hook(mask(heads))
             for layer, heads in zip(model.model.layers, masked)]
    with torch.no_grad():
        out = model(input_ids=ids).logits.float().contiguous()
    for hook in hooks:
        hook.remove()
    return out


def make(name):
    groups, heads = MODELS[name]
    model = open_reference(ROOT / name)
    count, kv = model.config.num_attention_heads, model.config.num_key_value_heads
    whole = [list(range(g * count // kv, (g + 1) * count // kv)) for g in groups]
    ids = torch.randint(3, model.config.vocab_size, (1, LENGTH), generator=torch.Generator().manual_seed(11))
    plain = logits(model, ids, [[] for _ in groups])
    tensors = {"input_ids": ids}
    for kind, masked in (("group", whole), ("head", heads)):
        mask = torch.zeros(len(groups), count, dtype=torch.int64)
        for layer, gone in enumerate(masked):
            mask[layer, gone] = 1
        tensors[f"{kind}_mask"] = mask
        tensors[f"{kind}_logits"] = logits(model, ids, masked)
        moved = (tensors[f"{kind}_logits"] - plain).abs().max().item()
        assert moved > 0.1, f"{name}: masking moves the logits by {moved} only"
        print(f"{name:14} {kind:5} masked {masked}: logits move by {moved:.2f}")
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / f"{name}.safetensors"
    save_file(tensors, file)
    file.chmod(0o644)


for name in MODELS:
    make(name)
