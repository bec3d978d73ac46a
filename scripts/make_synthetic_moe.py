#!/usr/bin/env python3
"""A mixture of experts of any size with random weights, for measuring how fast weights move (scripts/bench.sh).

    pip install numpy
    python scripts/make_synthetic_moe.py FOLDER [--megabytes 500] [--experts 32 --top-k 4] [--tokenizer MODEL_FOLDER]

Writes the published qwen3_moe layout (config.json, bf16 shards with an index) and `importance.json`: made-up activation
counts that a recipe's expert-prune stage can name as `importanceJson`, so that pruning needs no pass over the model.
The tokenizer files of another model whose vocabulary fits can be copied in. Says nothing about quality: the model has
learnt nothing.
"""
import argparse
import json
import pathlib
import shutil

import numpy as np

HIDDEN, INNER, VOCAB = 1024, 512, 2048
EXPERTS, TOP_K = 32, 4  # unless the command line says otherwise
HEADS, KV_HEADS, HEAD_DIM = 8, 2, 64
TENSORS_PER_SHARD_BYTES = 200_000_000
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def layer_shapes(n):
    at = f"model.layers.{n}"
    yield f"{at}.input_layernorm.weight", (HIDDEN,)
    yield f"{at}.self_attn.q_proj.weight", (HEADS * HEAD_DIM, HIDDEN)
    yield f"{at}.self_attn.k_proj.weight", (KV_HEADS * HEAD_DIM, HIDDEN)
    yield f"{at}.self_attn.v_proj.weight", (KV_HEADS * HEAD_DIM, HIDDEN)
    yield f"{at}.self_attn.o_proj.weight", (HIDDEN, HEADS * HEAD_DIM)
    yield f"{at}.self_attn.q_norm.weight", (HEAD_DIM,)
    yield f"{at}.self_attn.k_norm.weight", (HEAD_DIM,)
    yield f"{at}.post_attention_layernorm.weight", (HIDDEN,)
    yield f"{at}.mlp.gate.weight", (EXPERTS, HIDDEN)
    for e in range(EXPERTS):
        yield f"{at}.mlp.experts.{e}.gate_proj.weight", (INNER, HIDDEN)
        yield f"{at}.mlp.experts.{e}.up_proj.weight", (INNER, HIDDEN)
        yield f"{at}.mlp.experts.{e}.down_proj.weight", (HIDDEN, INNER)


def size(shape):
    return 2 * int(np.prod(shape))


def write_safetensors(path, tensors, draw):
    """One shard: u64 header length, JSON header padded with spaces to 8 bytes, then the data in order."""
    header, at = {}, 0
    for name, shape in tensors:
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size(shape)]}
        at += size(shape)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in tensors:
            values = np.ones(shape, np.float32) if len(shape) == 1 else draw.standard_normal(shape, np.float32) * 0.02
            file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--experts", type=int, default=EXPERTS)
    parser.add_argument("--top-k", type=int, default=TOP_K)
    parser.add_argument("--tokenizer", type=pathlib.Path)
    args = parser.parse_args()
    globals().update(EXPERTS=args.experts, TOP_K=args.top_k)
    layers = max(1, round(args.megabytes * 1e6 / sum(size(s) for _, s in layer_shapes(0))))
    args.folder.mkdir(parents=True, exist_ok=True)

    shards, room = [], 0
    every = [("model.embed_tokens.weight", (VOCAB, HIDDEN)), *(t for n in range(layers) for t in layer_shapes(n)),
             ("model.norm.weight", (HIDDEN,))]
    for tensor in every:
        if not shards or room + size(tensor[1]) > TENSORS_PER_SHARD_BYTES:
            shards.append([])
            room = 0
        shards[-1].append(tensor)
        room += size(tensor[1])

    draw, weight_map = np.random.default_rng(1), {}
    for i, tensors in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        write_safetensors(args.folder / file, tensors, draw)
        weight_map.update({name: file for name, _ in tensors})
    total = sum(size(shape) for _, shape in every)
    (args.folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n")
    (args.folder / "config.json").write_text(json.dumps({
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "bos_token_id": 0, "decoder_sparse_step": 1,
        "eos_token_id": 0, "head_dim": HEAD_DIM, "hidden_act": "silu", "hidden_size": HIDDEN,
        "intermediate_size": INNER * TOP_K, "max_position_embeddings": 1024, "mlp_only_layers": [],
        "model_type": "qwen3_moe", "moe_intermediate_size": INNER, "norm_topk_prob": True,
        "num_attention_heads": HEADS, "num_experts": EXPERTS, "num_experts_per_tok": TOP_K,
        "num_hidden_layers": layers, "num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-6, "rope_scaling": None,
        "rope_theta": 10000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "vocab_size": VOCAB,
    }, indent=2) + "\n")
    for name in TOKENIZER_FILES:
        if args.tokenizer and (args.tokenizer / name).is_file():
            shutil.copyfile(args.tokenizer / name, args.folder / name)

    tokens = 10_000
    counts = {str(n): (1 + draw.multinomial(tokens * TOP_K - EXPERTS, np.ones(EXPERTS) / EXPERTS)).tolist()
              for n in range(layers)}
    (args.folder / "importance.json").write_text(json.dumps({
        "model": args.folder.name, "calibration_corpus": "made up", "calibration_examples": 1,
        "calibration_tokens": tokens, "num_hidden_layers": layers, "num_experts": EXPERTS, "num_experts_per_tok": TOP_K,
        "activation_counts": counts, "metric_version": "v1.activation_count", "tool": "make_synthetic_moe.py"}) + "\n")
    print(f"{args.folder}: {layers} layers of {EXPERTS} experts, {total / 1e6:.0f} MB in {len(shards)} shards")


if __name__ == "__main__":
    main()
