#!/usr/bin/env python3
"""A mixture of experts out of a dense Llama: every MLP split into groups of neurons, with a router fitted to them.

    pip install torch transformers safetensors numpy          # the CPU build of torch will do
    python scripts/make_split_mixture.py DENSE_MODEL TEXT OUT [--experts 16] [--active 8]

Neurons of an MLP that work together on TEXT become an expert (balanced clustering of their contributions |activation| ·
‖down column‖ over a sample of tokens, after MoEfication, arXiv 2110.01786). The router is the ridge regression, without
bias, of each expert's summed contribution on the MLP's input, centred over the experts of a token and scaled so that the
weights of the chosen experts are nearly equal. OUT is a Mixtral directory in bf16: its router renormalises over the
chosen, so each expert's output is scaled by the number of active ones, and with all experts active the model would be
the dense one. Nothing is trained; the same inputs and versions give the same bytes.
"""
import argparse
import json
import os
import pathlib
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "2")
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

TOKENS, WINDOW, SAMPLE, ROUNDS = 4096, 512, 512, 12


def observe(model, tokenizer, text):
    """Per layer: the MLP's inputs [TOKENS, hidden]."""
    ids = tokenizer(text, return_tensors="pt").input_ids[0][:TOKENS].reshape(-1, WINDOW)
    seen = [[] for _ in model.model.layers]
    hooks = [layer.mlp.register_forward_pre_hook(lambda _m, args, i=i: seen[i].append(args[0].flatten(0, 1)))
             for i, layer in enumerate(model.model.layers)]
    with torch.no_grad():
        for window in ids:
            model(window[None])
    for hook in hooks:
        hook.remove()
    return [torch.cat(parts) for parts in seen]


def balanced_clusters(features, experts):
    """Equal groups of rows: k-means whose assignment fills the groups in the order of the nearest pairs."""
    count, size = features.shape[0], features.shape[0] // experts
    start = torch.linspace(0, count - 1, experts).long()
    centres = features[start].clone()
    for _ in range(ROUNDS):
        affinity = features @ centres.T
        order = torch.argsort(affinity.flatten(), descending=True, stable=True)
        group = torch.full((count,), -1)
        room = [size] * experts
        for pair in order.tolist():
            row, expert = divmod(pair, experts)
            if group[row] < 0 and room[expert]:
                group[row] = expert
                room[expert] -= 1
        centres = torch.stack([features[group == expert].mean(dim=0) for expert in range(experts)])
        centres = torch.nn.functional.normalize(centres, dim=1)
    return group


def split(mlp, inputs, experts):
    """Neurons of every expert, and the router [experts, hidden]."""
    with torch.no_grad():
        active = (mlp.act_fn(mlp.gate_proj(inputs)) * mlp.up_proj(inputs)).abs() * mlp.down_proj.weight.norm(dim=0)
    features = torch.nn.functional.normalize(active[:: inputs.shape[0] // SAMPLE].T - active.mean(), dim=1)
    group = balanced_clusters(features, experts)
    neurons = [torch.nonzero(group == expert).flatten() for expert in range(experts)]
    load = torch.stack([active[:, rows].sum(dim=1) for rows in neurons], dim=1)
    load = (load - load.mean(dim=1, keepdim=True)) / load.std()
    gram = inputs.T @ inputs
    ridge = 0.01 * gram.diagonal().mean() * torch.eye(gram.shape[0])
    router = torch.linalg.solve(gram + ridge, inputs.T @ load).T
    return neurons, 0.1 * router


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("dense", type=pathlib.Path)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--active", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(args.dense, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.dense)
    config = json.loads((args.dense / "config.json").read_text())
    inner = config["intermediate_size"]
    if config["model_type"] != "llama" or inner % args.experts or config.get("mlp_bias"):
        raise SystemExit("this splits a llama without MLP biases whose inner width divides into the experts")
    inputs = observe(model, tokenizer, args.text.read_text())
    tensors = {name: value for name, value in model.state_dict().items() if ".mlp." not in name}
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    for index, layer in enumerate(model.model.layers):
        neurons, router = split(layer.mlp, inputs[index], args.experts)
        prefix = f"model.layers.{index}.block_sparse_moe"
        tensors[f"{prefix}.gate.weight"] = router
        for expert, rows in enumerate(neurons):
            tensors[f"{prefix}.experts.{expert}.w1.weight"] = layer.mlp.gate_proj.weight[rows]
            tensors[f"{prefix}.experts.{expert}.w2.weight"] = layer.mlp.down_proj.weight[:, rows] * args.active
            tensors[f"{prefix}.experts.{expert}.w3.weight"] = layer.mlp.up_proj.weight[rows]
        print(f"layer {index}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().to(torch.bfloat16).contiguous() for name, value in tensors.items()},
              args.out / "model.safetensors", metadata={"format": "pt"})
    keys = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
            "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta", "tie_word_embeddings",
            "bos_token_id", "eos_token_id"]
    mixture = dict(architectures=["MixtralForCausalLM"], model_type="mixtral",
                   **{key: config[key] for key in keys if key in config}, intermediate_size=inner // args.experts,
                   num_local_experts=args.experts, num_experts_per_tok=args.active, sliding_window=None,
                   attention_dropout=0.0, router_aux_loss_coef=0.0, torch_dtype="bfloat16")
    (args.out / "config.json").write_text(json.dumps(mixture, indent=2) + "\n")
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]:
        if (args.dense / name).exists():
            shutil.copyfile(args.dense / name, args.out / name)


if __name__ == "__main__":
    main()
