#!/usr/bin/env python3
"""Writes tests/fixtures/mixes.json: the type llama.cpp gives to every tensor of small models under every mix.

    pip install gguf numpy llama-cpp-python
    python scripts/make_mix_vectors.py
"""
import ctypes
import json
import pathlib
import tempfile

import gguf
import llama_cpp
import numpy as np

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "mixes.json"
FILE_TYPES = {
    "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13,
    "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "TQ1_0": 36,
    "TQ2_0": 37, "MXFP4": 38, "Q2_0": 41,
}
MODELS = {
    # GQA 2, head of its own, 20 layers (no multiple of 8 or 16)
    "dense": dict(arch="llama", layers=20, hidden=256, ffn=512, heads=4, kv=2),
    # GQA 4, tied head
    "dense-gqa4-tied": dict(arch="llama", layers=8, hidden=256, ffn=256, heads=8, kv=2, tied=True),
    # 80 layers with eight heads to a value head: the model the 70B rule is about
    "dense-80-layers-gqa8": dict(arch="llama", layers=80, hidden=256, ffn=256, heads=8, kv=1),
    # rows of 192: whole blocks of 32 and of 64, no super-block
    "narrow": dict(arch="llama", layers=8, hidden=192, ffn=512, heads=3, kv=3),
    "narrow-tied": dict(arch="llama", layers=8, hidden=192, ffn=512, heads=3, kv=1, tied=True),
    # rows of 48 in the down projection: no block at all
    "odd": dict(arch="llama", layers=4, hidden=256, ffn=48, heads=4, kv=4),
    # rows of 96 there: whole blocks of 32, not of 64
    "thirds": dict(arch="llama", layers=4, hidden=256, ffn=96, heads=4, kv=4),
    "experts-8": dict(arch="llama", layers=16, hidden=256, ffn=256, heads=4, kv=1, experts=8),
    "experts-16": dict(arch="qwen3moe", layers=16, hidden=256, ffn=256, heads=4, kv=1, experts=16),
    "experts-16-tied": dict(arch="qwen3moe", layers=12, hidden=256, ffn=192, heads=4, kv=2, experts=16, tied=True),
    # three delta nets to one attention; eight experts, and one that is always used
    "hybrid": dict(arch="qwen35", layers=16, hidden=256, ffn=512, heads=4, kv=1, delta=True),
    "hybrid-experts-8": dict(arch="qwen35moe", layers=16, hidden=256, ffn=256, heads=4, kv=2, experts=8, delta=True, shared=True),
    # keys and values from one vector per token; rows of 128 in attn_k_b
    "latent": dict(arch="deepseek2", layers=27, hidden=256, ffn=512, heads=4, kv=1, experts=16, latent=True, shared=True, lead=1),
    "latent-experts-8": dict(arch="deepseek2", layers=10, hidden=256, ffn=256, heads=8, kv=1, experts=8, latent=True, shared=True,
                             low_rank=True),
}


# llama.cpp looks at names and row lengths; two rows a matrix are enough.
ROWS = 2


def tensors(model):
    """(name, shape) in the order a forward pass meets them."""
    hidden, ffn, experts = model["hidden"], model["ffn"], model.get("experts")
    yield "token_embd.weight", (ROWS, hidden)
    for layer in range(model["layers"]):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", (hidden,)
        for matrix in mixer(model, layer):
            shape = (ROWS, 128) if matrix == "attn_k_b" else (ROWS, 4) if matrix == "ssm_conv1d" else (ROWS, hidden)
            yield f"{block}{matrix}.weight", shape
        yield block + ("post_attention_norm.weight" if model.get("delta") else "ffn_norm.weight"), (hidden,)
        is_sparse = experts and layer >= model.get("lead", 0)
        if is_sparse:
            yield block + "ffn_gate_inp.weight", (experts, hidden)
        if is_sparse and model.get("shared"):
            for part in ("gate", "up", "down"):
                yield f"{block}ffn_{part}_shexp.weight", (ROWS, ffn if part == "down" else hidden)
            if model.get("delta"):
                yield block + "ffn_gate_inp_shexp.weight", (hidden,)
        stack, end = ((experts,), "_exps.weight") if is_sparse else ((), ".weight")
        yield block + "ffn_gate" + end, (*stack, ROWS, hidden)
        yield block + "ffn_up" + end, (*stack, ROWS, hidden)
        yield block + "ffn_down" + end, (*stack, ROWS, ffn)
    yield "output_norm.weight", (hidden,)
    if not model.get("tied"):
        yield "output.weight", (ROWS, hidden)


def mixer(model, layer):
    """The matrices of what mixes tokens in a block."""
    if model.get("latent"):
        queries = ["attn_q_a", "attn_q_b"] if model.get("low_rank") else ["attn_q"]
        return [*queries, "attn_kv_a_mqa", "attn_k_b", "attn_v_b", "attn_output"]
    if model.get("delta") and (layer + 1) % 4:
        return ["attn_qkv", "attn_gate", "ssm_alpha", "ssm_beta", "ssm_conv1d", "ssm_out"]
    return ["attn_q", "attn_k", "attn_v", "attn_output"]


def is_exact(name, shape):
    """Stored as F32 by every converter, and left alone."""
    return len(shape) == 1 or "ffn_gate_inp" in name or "ssm_conv1d" in name


def add_special_keys(writer, model):
    """Keys without which llama.cpp does not open a file of these architectures."""
    arch = model["arch"]
    counts = {}
    if model.get("delta"):
        counts = {"ssm.conv_kernel": 4, "ssm.state_size": 64, "ssm.group_count": 2, "ssm.time_step_rank": 4,
                  "ssm.inner_size": 256, "full_attention_interval": 4, "rope.dimension_count": 64}
        writer.add_array(f"{arch}.rope.dimension_sections", [11, 11, 10, 0])
    if model.get("latent"):
        counts = {"attention.kv_lora_rank": 256, "attention.key_length": 320, "attention.value_length": 256,
                  "attention.key_length_mla": 192, "attention.value_length_mla": 128, "rope.dimension_count": 64,
                  "expert_shared_count": 1, "leading_dense_block_count": model.get("lead", 0)}
        if model.get("low_rank"):
            counts["attention.q_lora_rank"] = 256
    if model.get("shared"):
        counts["expert_shared_feed_forward_length"] = model["ffn"]
    for key, count in counts.items():
        writer.add_uint32(f"{arch}.{key}", count)


def write(model, path):
    writer = gguf.GGUFWriter(str(path), model["arch"])
    writer.add_context_length(64)
    writer.add_embedding_length(model["hidden"])
    writer.add_block_count(model["layers"])
    writer.add_feed_forward_length(model["ffn"])
    writer.add_head_count(model["heads"])
    writer.add_head_count_kv(model["kv"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(64)
    writer.add_file_type(0)
    writer.add_tokenizer_model("no_vocab")
    if model.get("experts"):
        writer.add_expert_count(model["experts"])
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(model["ffn"])
    add_special_keys(writer, model)
    rng = np.random.default_rng(0)
    for name, shape in tensors(model):
        writer.add_tensor(name, rng.normal(0, 0.02, shape).astype(np.float32 if is_exact(name, shape) else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantized(source, target, file_type):
    wanted = llama_cpp.llama_model_quantize_default_params()
    wanted.ftype, wanted.nthread = file_type, 1
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(wanted))
    if status:
        raise SystemExit(f"llama.cpp could not quantize {source} to {file_type}")
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(str(target)).tensors}


def kind(tensor):
    """The name without its block."""
    return tensor.split(".", 2)[2] if tensor.startswith("blk.") else tensor


def by_kind(types):
    """Kind of tensor: runs of types over the blocks, as "3 Q6_K, 5 Q4_K"."""
    runs = {}
    for tensor in sorted(types, key=lambda name: int(name.split(".")[1]) if name.startswith("blk.") else -1):
        run = runs.setdefault(kind(tensor), [])
        if run and run[-1][1] == types[tensor]:
            run[-1][0] += 1
        else:
            run.append([1, types[tensor]])
    return {kind: ", ".join(f"{count} {name}" for count, name in run) for kind, run in sorted(runs.items())}


def main():
    gguf.GGMLQuantizationType._value2member_map_.setdefault(42, q2_0())
    gguf.constants.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(42)] = (64, 18)
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name, model in MODELS.items():
            write(model, folder / "from.gguf")
            mixes = {}
            for mix, number in FILE_TYPES.items():
                types = quantized(folder / "from.gguf", folder / "to.gguf", number)
                mixes[mix] = by_kind(types)
            facts = {key: value for key, value in model.items() if key != "arch"}
            out[name] = {**facts, "columns": {kind(tensor): shape[-1] for tensor, shape in tensors(model)}, "types": mixes}
    OUT.write_text(json.dumps(out, separators=(",", ":")) + "\n")
    print(OUT, OUT.stat().st_size)


def q2_0():
    """The gguf package does not know type 42 yet."""
    kind = int.__new__(gguf.GGMLQuantizationType, 42)
    kind._name_, kind._value_ = "Q2_0", 42
    return kind


if __name__ == "__main__":
    main()
