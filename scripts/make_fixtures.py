#!/usr/bin/env python3
"""Tiny random models with float32 reference logits, for the tests: tests/fixtures/models/<name>/.

    pip install torch transformers safetensors numpy          # the CPU build of torch will do
    python scripts/make_fixtures.py [NAME ...]

Every folder holds `config.json`, the weights in bf16 (`model.safetensors`, or two shards with an index) in the layout
published checkpoints have, and `reference.safetensors`: `input_ids` [2, 24] i64 and `logits` [2, 24, vocab] f32, which
transformers computed in float32 (eager attention) from the bf16 weights; the same as `input_ids.N` [1, N] and
`logits.N` for other lengths, among them one past the original context where the position encoding is scaled and one
past the window where attention slides. The weights are drawn here, from a generator seeded per tensor name, so no
default of any library's initialisation enters; transformers must load the folder without a missing or unexpected
tensor, or the script stops. The families that come in several layouts are in fixture_families.py.

What makes a wrong implementation visible: hidden size, head width, feed-forward width and its double all differ;
every norm weight and bias is perturbed; the attention weights are large enough that the position encoding matters
(the script checks that a scaled rope moves the logits); a router's choice is never a near tie (checked as well: the
logits hardly move when the router's rows do).
Row lengths are multiples of 32 everywhere, so that block formats apply. `qwen3_moe-text` has a tokenizer too
(scripts/make_tokenizer_fixtures.py), so that a test can send a text through the whole line. Same versions of the
packages, same bytes.
"""
import hashlib
import json
import os
import pathlib
import shutil
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import fixture_families  # noqa: E402

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "models"
VOCAB, BATCH, LENGTH, SHORT = 96, 2, 24, [1, 7]

SMALL = dict(hidden_size=32, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2)
WIDE = dict(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2)
MOE = dict(num_experts_per_tok=2, decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True,
           router_aux_loss_coef=0.001, output_router_logits=False)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
LINEAR = dict(rope_type="linear", factor=4.0)


def config(kind, architecture, **keys):
    """A config.json as published checkpoints have it (transformers 4 keys)."""
    base = dict(architectures=[architecture], model_type=kind, vocab_size=VOCAB, num_hidden_layers=2,
                hidden_act="silu", max_position_embeddings=128, rms_norm_eps=1e-6, rope_theta=10000.0,
                rope_scaling=None, initializer_range=0.02, attention_dropout=0.0, bos_token_id=1, eos_token_id=2,
                tie_word_embeddings=False, torch_dtype="bfloat16", use_cache=True)
    return {**base, **keys}


def llama(**keys):
    return config("llama", "LlamaForCausalLM", **{**dict(attention_bias=False, mlp_bias=False), **keys})


def qwen2(**keys):
    return config("qwen2", "Qwen2ForCausalLM", **{**dict(use_sliding_window=False), **keys})


def qwen3(**keys):
    return config("qwen3", "Qwen3ForCausalLM",
                  **{**dict(attention_bias=False, use_sliding_window=False), **keys})


def qwen3_moe(**keys):
    return config("qwen3_moe", "Qwen3MoeForCausalLM",
                  **{**dict(attention_bias=False, use_sliding_window=False), **MOE, **keys})


def as_transformers_5(hub):
    """The same model as transformers 5 writes it: dtype, rope_parameters and num_local_experts."""
    new = {k: v for k, v in hub.items() if k not in ("torch_dtype", "rope_theta", "rope_scaling", "num_experts")}
    new["dtype"] = hub["torch_dtype"]
    new["num_local_experts"] = hub["num_experts"]
    new["rope_parameters"] = {"rope_theta": hub["rope_theta"], "rope_type": "default"}
    return new


FIXTURES = {
    # name: (config, number of shards, lengths beyond 1, 7 and 24)
    "llama": (llama(**WIDE), 1, []),
    "llama-tied-llama3-rope": (llama(**SMALL, tie_word_embeddings=True, rope_scaling=LLAMA3), 1, []),
    "llama-biases": (llama(**SMALL, attention_bias=True, mlp_bias=True), 1, []),
    "llama-linear-rope": (llama(**SMALL, num_hidden_layers=1, rope_scaling=LINEAR), 1, []),
    "qwen2-tied": (qwen2(**WIDE, num_hidden_layers=1, tie_word_embeddings=True), 1, []),
    "qwen3": (qwen3(**WIDE, num_hidden_layers=1, head_dim=24), 1, []),
    "qwen3-yarn": (qwen3(**SMALL, num_hidden_layers=1, head_dim=16, rope_scaling=YARN), 1, [40]),
    "qwen3_moe": (qwen3_moe(**WIDE, num_hidden_layers=1, head_dim=24, num_experts=4, moe_intermediate_size=96), 1, []),
    "qwen3_moe-mixed-tied": (qwen3_moe(**SMALL, num_hidden_layers=4, head_dim=24, num_experts=6,
                                       moe_intermediate_size=64, norm_topk_prob=False, decoder_sparse_step=2,
                                       mlp_only_layers=[1], tie_word_embeddings=True), 1, []),
    "qwen3_moe-sharded": (qwen3_moe(**SMALL, head_dim=16, num_experts=5, moe_intermediate_size=64), 2, []),
    "qwen3_moe-transformers5": (as_transformers_5(qwen3_moe(**SMALL, num_hidden_layers=1, head_dim=16, num_experts=6,
                                                            moe_intermediate_size=64, rope_theta=500000.0)), 1, []),
    "qwen3_moe-text": (qwen3_moe(**SMALL, head_dim=16, num_experts=4, moe_intermediate_size=64, vocab_size=558,
                                 tie_word_embeddings=True, bos_token_id=0, eos_token_id=0), 1, []),
}


def is_sparse(c, layer):
    """Whether a layer's feed-forward is a mixture of experts (the rule of qwen3_moe configurations)."""
    experts = c.get("num_experts", c.get("num_local_experts", 0))
    return bool(experts) and layer not in c["mlp_only_layers"] and (layer + 1) % c["decoder_sparse_step"] == 0


def shapes(c):
    """Every tensor of a configuration, in checkpoint order: {name: shape}."""
    hidden, heads, kv = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    width = c.get("head_dim", hidden // heads)
    out = {"model.embed_tokens.weight": [c["vocab_size"], hidden]}

    def feed_forward(prefix, inner, bias=False):
        for part in ("gate_proj", "up_proj", "down_proj"):
            rows, cols = (hidden, inner) if part == "down_proj" else (inner, hidden)
            out[f"{prefix}.{part}.weight"] = [rows, cols]
            if bias:
                out[f"{prefix}.{part}.bias"] = [rows]

    for n in range(c["num_hidden_layers"]):
        at = f"model.layers.{n}"
        out[f"{at}.input_layernorm.weight"] = [hidden]
        for part, rows, cols in (("q_proj", heads * width, hidden), ("k_proj", kv * width, hidden),
                                 ("v_proj", kv * width, hidden), ("o_proj", hidden, heads * width)):
            out[f"{at}.self_attn.{part}.weight"] = [rows, cols]
            if c.get("attention_bias") or (c["model_type"] == "qwen2" and part != "o_proj"):
                out[f"{at}.self_attn.{part}.bias"] = [rows]
        if c["model_type"].startswith("qwen3"):
            out[f"{at}.self_attn.q_norm.weight"] = [width]
            out[f"{at}.self_attn.k_norm.weight"] = [width]
        out[f"{at}.post_attention_layernorm.weight"] = [hidden]
        if c["model_type"] == "qwen3_moe" and is_sparse(c, n):
            experts = c.get("num_experts", c.get("num_local_experts"))
            out[f"{at}.mlp.gate.weight"] = [experts, hidden]
            for e in range(experts):
                feed_forward(f"{at}.mlp.experts.{e}", c["moe_intermediate_size"])
        else:
            feed_forward(f"{at}.mlp", c["intermediate_size"], c.get("mlp_bias", False))
    out["model.norm.weight"] = [hidden]
    if not c["tie_word_embeddings"]:
        out["lm_head.weight"] = [c["vocab_size"], hidden]
    return out


def draw(name, fixture, shape):
    """One tensor, bf16, from a generator seeded by the fixture's and the tensor's name."""
    seed = int.from_bytes(hashlib.sha256(f"{fixture}/{name}".encode()).digest()[:6], "big")
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if len(shape) == 1:
        value = 1 + 0.2 * noise if "norm" in name else 0.3 * noise
    elif "embed_tokens" in name or "lm_head" in name:
        value = 0.3 * noise
    elif ".mlp.gate.weight" in name:
        value = 1.5 * noise / shape[1] ** 0.5
    else:
        value = noise / shape[1] ** 0.5
    return value.to(torch.bfloat16).contiguous()


def write_weights(folder, tensors, shards):
    names = list(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    cut, weight_map = (len(names) + shards - 1) // shards, {}
    for s in range(shards):
        file = f"model-{s + 1:05}-of-{shards:05}.safetensors"
        part = names[s * cut:(s + 1) * cut]
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
        weight_map.update({n: file for n in part})
    total = sum(t.numel() * 2 for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_tokenizer(folder, c):
    tokenizer = (ROOT.parent / "tokenizers" / "gpt2.json").read_text()
    vocabulary = json.loads(tokenizer)["model"]["vocab"]
    assert len(vocabulary) == c["vocab_size"], "the tokenizer does not fit the model"
    (folder / "tokenizer.json").write_text(tokenizer)
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "add_bos_token": False, "bos_token": None, "eos_token": "<|endoftext|>", "model_max_length": 128,
        "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")


def open_reference(folder, **changes):
    """The folder as transformers reads it, in float32; every tensor must have found its place."""
    c = transformers.AutoConfig.from_pretrained(folder)
    for key, value in changes.items():
        setattr(c, key, value)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=c, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], (folder.name, kind, info[kind])
    return model.eval()


def unsteady(model, ids):
    """How far the logits move when every router's rows move a little: far, where a choice of experts is a near tie."""
    routers = {n: p for n, p in model.named_parameters() if fixture_families.is_router(n)}
    if not routers:
        return None
    with torch.no_grad():
        logits, kept, far = model(input_ids=ids).logits, {n: p.clone() for n, p in routers.items()}, 0.0
        for seed in range(4):
            for n, p in routers.items():
                noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
                p.copy_(kept[n] + 5e-4 * noise / p.shape[1] ** 0.5)
            far = max(far, (model(input_ids=ids).logits - logits).abs().max().item())
        for n, p in routers.items():
            p.copy_(kept[n])
    return far


def input_ids(model, vocab, longest):
    """Random ids with which no router is near a tie, and how far the logits moved (None without routers)."""
    for seed in range(7, 400):
        ids = torch.randint(3, vocab, (BATCH, longest), generator=torch.Generator().manual_seed(seed))
        moved = unsteady(model, ids)
        if moved is None or moved < 0.02 * model(input_ids=ids).logits.std():
            return ids, moved
    sys.exit("every draw of input ids leaves a router near a tie")


def write_reference(folder, model, vocab, more_lengths, words):
    """The logits of every length: `input_ids` and `logits` of 24 tokens, `input_ids.N` and `logits.N` of N tokens."""
    with torch.no_grad():
        longest = max([LENGTH, *more_lengths])
        ids, moved = input_ids(model, vocab, longest)
        out = {"input_ids": ids[:, :LENGTH].clone()}
        out["logits"] = model(input_ids=out["input_ids"]).logits.float().contiguous()
        for length in [*SHORT, *more_lengths]:
            out[f"input_ids.{length}"] = ids[:1, :length].clone()
            out[f"logits.{length}"] = model(input_ids=out[f"input_ids.{length}"]).logits.float().contiguous()
    save_file(out, folder / "reference.safetensors")
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600
    size = sum(f.stat().st_size for f in folder.iterdir())
    words = [f"logit std {out['logits'].std():.2f}", *words]
    if moved is not None:
        words.append(f"a nudge to the routers moves the logits by {moved:.1e}")
    print(f"{folder.name:26} {size:8,} bytes  {', '.join(words)}", flush=True)
    return size


def make(name):
    if name in fixture_families.FIXTURES:
        return make_family(name)
    c, shards, more_lengths = FIXTURES[name]
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(c, indent=2) + "\n")
    tensors = {n: draw(n, name, shape) for n, shape in shapes(c).items()}
    write_weights(folder, tensors, shards)
    if name.endswith("-text"):
        write_tokenizer(folder, c)
    model, words = open_reference(folder), []
    if c.get("rope_scaling"):
        plain = open_reference(folder, rope_parameters={"rope_type": "default", "rope_theta": c["rope_theta"]})
        ids = torch.arange(3, 3 + LENGTH).unsqueeze(0)
        with torch.no_grad():
            moved = (plain(input_ids=ids).logits - model(input_ids=ids).logits).abs().max().item()
        assert moved > 0.05, f"{name}: rope scaling moves the logits by {moved} only"
        words.append(f"without rope scaling off by {moved:.2f}")
    return write_reference(folder, model, c["vocab_size"], more_lengths, words)


def make_family(name):
    """A fixture of fixture_families.py. Whatever its layout, transformers must compute what the model in memory does."""
    group, folder = fixture_families.FIXTURES[name], ROOT / name
    in_memory = fixture_families.build(group)
    fixture_families.write(group, in_memory, folder)
    model = fixture_families.reopen(group, folder, torch.float32)
    in_memory.set_attn_implementation("eager")
    if group == "phimoe-longrope":
        fixture_families.use_long_factors(in_memory)
    ids = torch.arange(3, 3 + LENGTH).unsqueeze(0)
    with torch.no_grad():
        apart = (in_memory(input_ids=ids).logits - model(input_ids=ids).logits).abs().max().item()
    assert apart < 1e-5, f"{name}: as written it computes something else, by {apart}"
    return write_reference(folder, model, fixture_families.VOCAB - 10, fixture_families.GROUPS[group][2], [])


if __name__ == "__main__":
    print("torch", torch.__version__, "transformers", transformers.__version__)
    print(f"{sum(map(make, sys.argv[1:] or [*FIXTURES, *fixture_families.FIXTURES])):,} bytes in all")
