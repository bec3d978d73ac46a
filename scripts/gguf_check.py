#!/usr/bin/env python3
"""Our GGUF files in llama.cpp: the same tokens, the same logits. Exit status 1 when a model disagrees.

    pip install llama-cpp-python==0.3.36 numpy        (see llama_peer.py for its build)
    cargo build --example gguf_peer
    python scripts/gguf_check.py [--type F32] [MODEL ...]

MODEL is a model directory; without one, every committed fixture that has GGUF rules, and tiny models made from them where
a fixture has what GGUF cannot say (`mended`). Each is written by us (examples/gguf_peer.rs), opened by llama.cpp, and
continued greedily by both for 8 tokens from 3 prompts of token ids. The table gives the largest difference between any
two logits and the largest Kullback-Leibler divergence of any position (nats); with a --type other than F32 also those from
the model the file was made from. A model llama.cpp cannot load is a failure, and so are other tokens, unless the writer's
warnings say that scores will differ, or the type is not F32: then llama.cpp rounds what it multiplies with, and tokens of
random models may differ; one we refuse to write is listed with the reason and is not.
"""
import argparse
import ctypes
import json
import pathlib
import subprocess
import sys
import tempfile

import llama_cpp
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = HERE / "tests" / "fixtures" / "models"
PROMPTS = [[5, 17, 42, 9, 63], [70, 3, 88, 12, 51, 29, 90, 8, 33, 61, 44], [21, 7, 80, 34, 2, 55, 19]]
TOKENS = 8


def log_softmax(rows):
    rows = rows.astype(np.float64)
    top = rows.max(-1, keepdims=True)
    return rows - top - np.log(np.exp(rows - top).sum(-1, keepdims=True))


class Peer:
    """A GGUF file in llama.cpp, by token ids (the low-level calls: these models have no vocabulary)."""

    def __init__(self, path):
        self.log = []
        self.hear = llama_cpp.llama_log_callback(lambda level, text, data: self.log.append(text.decode(errors="replace")))
        llama_cpp.llama_log_set(self.hear, ctypes.c_void_p(0))
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            causes = [line.strip() for line in self.log if "error" in line.lower()]
            raise RuntimeError(causes[0] if causes else "llama.cpp could not load it")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def logits(self, ids):
        """After every token of a sequence: a context of its own, so that nothing is left of earlier ones."""
        wanted = llama_cpp.llama_context_default_params()
        wanted.n_ctx, wanted.n_batch, wanted.n_ubatch, wanted.n_threads = 128, 128, 128, 1
        wanted.n_threads_batch, wanted.type_k, wanted.type_v = 1, 0, 0  # keys and values in F32
        wanted.flash_attn_type = 0
        context = llama_cpp.llama_init_from_model(self.model, wanted)
        if not context:
            raise RuntimeError("llama.cpp made no context: " + "".join(self.log[-3:]).strip())
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for at, token in enumerate(ids):
            batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.logits[at] = token, at, 1, 1
            batch.seq_id[at][0] = 0
        status = llama_cpp.llama_decode(context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        rows = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, at), (self.vocab,)).copy()
                for at in range(len(ids))]
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        return np.stack(rows)

    def continued(self, prompt):
        ids = list(prompt)
        for _ in range(TOKENS):
            ids.append(int(self.logits(ids)[-1].argmax()))
        return ids


def ours(model, out, kind):
    prompts = out.with_suffix(".prompts.json")
    prompts.write_text(json.dumps(PROMPTS))
    run = subprocess.run([HERE / "target" / "debug" / "examples" / "gguf_peer", model, out, kind, str(TOKENS), prompts],
                         capture_output=True, text=True)
    if run.returncode:
        raise ValueError(run.stderr.strip().removeprefix("Error: ").splitlines()[0])
    return json.loads(run.stdout)


def compare(model, out, kind):
    """(family, equal tokens of all, worst logit, worst KL, both against the model in full precision)"""
    said = ours(model, out, kind)
    peer = Peer(out)
    equal, figures = 0, []
    for prompt, answer in zip(PROMPTS, said["answers"]):
        sequence = peer.continued(prompt)
        equal += sum(a == b for a, b in zip(sequence[len(prompt):], answer["sequence"][len(prompt):]))
        theirs = peer.logits(answer["sequence"])
        for key in ("logits", "model_logits"):
            mine = np.array(answer[key], np.float32)
            p, q = log_softmax(mine), log_softmax(theirs)
            figures.append((np.abs(mine - theirs).max(), (np.exp(p) * (p - q)).sum(-1).max()))
    figures = np.array(figures).reshape(-1, 2, 2).max(0)
    return said["family"], equal, figures, said["warnings"]


def load(folder):
    """Tensors of a bf16 safetensors file as arrays of raw 16-bit numbers."""
    raw = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:8 + size])
    header.pop("__metadata__", None)
    at = {name: entry["data_offsets"] for name, entry in header.items()}
    assert all(entry["dtype"] == "BF16" for entry in header.values())
    return {name: np.frombuffer(raw[8 + size + at[name][0]:8 + size + at[name][1]], np.uint16).reshape(entry["shape"])
            for name, entry in header.items()}


def save(folder, tensors, config):
    folder.mkdir()
    header, data = {}, []
    for name, tensor in tensors.items():
        start = sum(map(len, data))
        data.append(np.ascontiguousarray(tensor).tobytes())
        header[name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [start, start + len(data[-1])]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def key_for_every_query(tensors):
    for name in tensors:
        if name.endswith(("k_proj.weight", "v_proj.weight", "k_norm.weight")):
            heads = tensors[name].reshape(2, 1, 8, *tensors[name].shape[1:])
            tensors[name] = np.repeat(heads, 2, 1).reshape(32, *tensors[name].shape[1:])


def narrow_values(tensors):
    def cut(values):
        return values.reshape(4, 24, *values.shape[1:])[:, :16].reshape(64, *values.shape[1:])
    for name, tensor in tensors.items():
        end = name.split("linear_attn.")[-1]
        if end in ("in_proj_qkv.weight", "conv1d.weight"):
            tensors[name] = np.concatenate([tensor[:64], cut(tensor[64:])])
        elif end == "in_proj_z.weight":
            tensors[name] = cut(tensor)
        elif end == "out_proj.weight":
            tensors[name] = cut(tensor.T).T
        elif end == "norm.weight" and "linear_attn." in name:
            tensors[name] = tensor[:16]


def blocks_27(tensors):
    second = {name.removeprefix("model.layers.1."): t for name, t in tensors.items() if name.startswith("model.layers.1.")}
    tensors.update({f"model.layers.{layer}.{end}": t for layer in range(2, 27) for end, t in second.items()})


def without_last_expert(tensors):
    routers = [name for name in tensors if name.endswith((".gate.weight", ".router.layer.weight", ".mlp.gate.weight"))]
    last = tensors[routers[0]].shape[0] - 1
    for name in routers:
        tensors[name] = tensors[name][:last]
    for name in list(tensors):
        if f".experts.{last}." in name:
            del tensors[name]
        elif tensors[name].ndim == 3 and tensors[name].shape[0] == last + 1:
            tensors[name] = tensors[name][:last]


def with_keys(**keys):
    return lambda config: config.update(keys)


def greedy_choice(config):
    config["topk_method"] = "greedy"
    config["rope_scaling"]["mscale_all_dim"] = config["rope_scaling"]["mscale"]


def always_long(config):
    config["router_jitter_noise"] = 0.0
    config["rope_scaling"].update(long_mscale=1.2, original_max_position_embeddings=4)
    config["original_max_position_embeddings"] = 4


def mended(folder):
    """Fixtures without what GGUF cannot say (as in tests/it/gguf_families.rs), and pruned ones."""
    def one(fixture, what, config_edit, *edits):
        tensors = load(FIXTURES / fixture)
        for edit in edits:
            edit(tensors)
        config = json.loads((FIXTURES / fixture / "config.json").read_text())
        config_edit(config)
        return save(folder / f"{fixture} {what}", tensors, config)
    no_clip = dict(clip_qkv=None, num_key_value_heads=4)
    narrow = dict(linear_value_head_dim=16)
    return [
        one("olmoe", "without clip", with_keys(**no_clip), key_for_every_query),
        one("olmoe", "pruned", with_keys(**no_clip, num_experts=4), key_for_every_query, without_last_expert),
        one("qwen3_5-text", "with equal widths", with_keys(**narrow), narrow_values),
        one("qwen3_5_moe-text", "with equal widths", with_keys(**narrow), narrow_values),
        one("qwen3_5_moe-text", "pruned", with_keys(**narrow, num_experts=3), narrow_values, without_last_expert),
        one("deepseek_v2", "of 27 blocks", with_keys(num_hidden_layers=27), blocks_27),
        one("deepseek_v2", "pruned", with_keys(num_hidden_layers=27, n_routed_experts=4), blocks_27, without_last_expert),
        one("deepseek_v2-grouped", "without groups", greedy_choice),
        one("mixtral", "pruned", with_keys(num_local_experts=4), without_last_expert),
        one("granitemoe", "pruned", with_keys(num_local_experts=4), without_last_expert),
        one("phimoe", "without jitter", with_keys(router_jitter_noise=0.0)),
        one("phimoe", "pruned, without jitter", with_keys(router_jitter_noise=0.0, num_local_experts=4), without_last_expert),
        one("phimoe-longrope", "long, without jitter", always_long),
    ]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", type=pathlib.Path)
    parser.add_argument("--type", default="F32")
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        models = args.models or sorted(path.parent for path in FIXTURES.glob("*/reference.safetensors")) + mended(folder)
        print("| model | family | greedy tokens | largest logit difference | largest KL, nats |")
        print("|---|---|---|---|---|")
        for model in models:
            out = folder / "model.gguf"
            try:
                family, equal, figures, warnings = compare(model, out, args.type)
            except ValueError as refusal:
                print(f"| {model.name} | not written: {refusal} |", flush=True)
                continue
            except RuntimeError as error:
                failed += 1
                print(f"| {model.name} | FAILED in llama.cpp: {error} |", flush=True)
                continue
            wanted = TOKENS * len(PROMPTS)
            said = any("differ" in warning for warning in warnings)
            excused = "as said" if said else "of rounded inputs" if args.type != "F32" else None
            failed += equal != wanted and not excused
            verdict = f"{equal} of {wanted}" + ("" if equal == wanted else f", {excused}" if excused else " DIFFER")
            (logit, kl), (source_logit, source_kl) = figures
            source = "" if args.type == "F32" else f" ({source_logit:.1e}, {source_kl:.1e} from the source)"
            print(f"| {model.name} | {family} | {verdict} | {logit:.1e} | {kl:.1e}{source} |", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
