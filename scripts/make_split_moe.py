#!/usr/bin/env python3
"""A mixture of experts made from a dense Llama-family model by splitting its MLPs, for judging how experts are pruned.

    pip install torch transformers safetensors numpy
    python scripts/make_split_moe.py MODEL TEXT OUT [--experts 16 --top-k 4 --common 640] [--tokens 16384]

Every MLP is cut into experts, in the published mixtral layout. The `--common` neurons that matter most on TEXT (mean
magnitude of the activation times the norm of the neuron's output column) go into every expert; the others are divided
among the experts by a balanced k-means over their gate rows, so that neurons which fire together lie together. An expert's
own columns are scaled by top-k and its weights in the mixture sum to one, so that tokens whose router weighs evenly get the
dense sum over the chosen experts. The router is fitted on TEXT by ridge regression: its logit for an expert is the
standardised logarithm of the norm of what the expert's own neurons would add. What the neurons of the experts not chosen
would have added is regressed on the common ones and folded into their columns. Nothing is trained; the result is worse than
the model it came from, but its experts differ and its router knows them, which random mixtures lack.

Deterministic for a given version of the libraries and number of threads. Prints how much of the energy the chosen experts
carry, against a random choice.
"""
import argparse
import json
import pathlib
import shutil

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

LENGTH = 512


def balanced_clusters(points, count, rounds, draw):
    """`count` clusters of equal size: the pairs of point and centre are served by rising distance."""
    size = len(points) // count
    centres = points[draw.choice(len(points), count, replace=False)]
    labels = np.zeros(len(points), np.int64)
    for _ in range(rounds):
        order = np.argsort(-(points @ centres.T), axis=None)
        labels[:], room = -1, np.full(count, size)
        for pair in order:
            point, centre = divmod(int(pair), count)
            if labels[point] < 0 and room[centre]:
                labels[point] = centre
                room[centre] -= 1
        centres = np.stack([points[labels == c].mean(0) for c in range(count)])
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    return labels


def inputs_of_mlps(model, ids):
    """The normed hidden states [tokens, hidden] that each MLP sees."""
    seen = [[] for _ in model.model.layers]
    hooks = [layer.mlp.register_forward_pre_hook(lambda _, given, at=n: seen[at].append(given[0][0].clone()))
             for n, layer in enumerate(model.model.layers)]
    with torch.no_grad():
        for start in range(0, len(ids) - LENGTH + 1, LENGTH):
            model.model(input_ids=torch.tensor([ids[start:start + LENGTH]]))
    for hook in hooks:
        hook.remove()
    return [torch.cat(parts) for parts in seen]


def ridge(x, y, damping):
    """The matrix [columns of x, columns of y] with x @ it near y."""
    moment = x.T @ x
    moment += torch.eye(len(moment)) * moment.diagonal().mean() * damping
    return torch.linalg.solve(moment, x.T @ y)


def split(mlp, x, args, draw):
    """Experts [(gate, up, down)] and router [experts, hidden] of one MLP; and the shares of energy kept."""
    gate, up, down = (getattr(mlp, name).weight.detach().float() for name in ("gate_proj", "up_proj", "down_proj"))
    active = torch.nn.functional.silu(x @ gate.T) * (x @ up.T)
    order = torch.argsort(active.abs().mean(0) * down.norm(dim=0), descending=True)
    common, rest = order[:args.common].sort().values, order[args.common:].sort().values
    rows = gate[rest].numpy()
    labels = balanced_clusters(rows / np.linalg.norm(rows, axis=1, keepdims=True), args.experts, 10, draw)
    own = [rest[torch.from_numpy(labels == e)] for e in range(args.experts)]
    energy = torch.stack([(active[:, mine] @ down[:, mine].T).norm(dim=1) for mine in own], 1)
    wanted = energy.clamp_min(1e-9).log()
    wanted = (wanted - wanted.mean(1, keepdim=True)) / wanted.std()
    router = ridge(x, wanted, 0.01).T
    router *= args.sharpness
    logits, chosen = (x @ router.T).topk(args.top_k, dim=1)
    share = float(energy.gather(1, chosen).sum() / energy.sum())
    weights = torch.zeros_like(energy).scatter(1, chosen, torch.softmax(logits, 1)) * args.top_k
    missing = active[:, rest] @ down[:, rest].T
    for e, mine in enumerate(own):
        missing -= weights[:, e:e + 1] * (active[:, mine] @ down[:, mine].T)
    common_down = down[:, common] + ridge(active[:, common], missing, 0.02).T
    experts = []
    for mine in own:
        both = torch.cat([common, mine])
        experts.append((gate[both], up[both], torch.cat([common_down, down[:, mine] * args.top_k], 1)))
    return experts, router, share


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--common", type=int, default=640)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--sharpness", type=float, default=0.5, help="factor on the router's logits; small: even weights")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    draw = np.random.default_rng(args.seed)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    ids = tokenizer(args.text.read_text(), add_special_tokens=False)["input_ids"][:args.tokens]
    config = model.config
    if config.model_type != "llama" or (config.intermediate_size - args.common) % args.experts:
        raise SystemExit("needs a llama model, and --experts must divide its intermediate size less --common")

    out = {name: value for name, value in model.state_dict().items() if ".mlp." not in name}
    if config.tie_word_embeddings:
        out.pop("lm_head.weight", None)
    shares = []
    for n, x in enumerate(inputs_of_mlps(model, ids)):
        experts, router, share = split(model.model.layers[n].mlp, x, args, draw)
        shares.append(share)
        at = f"model.layers.{n}.block_sparse_moe"
        out[f"{at}.gate.weight"] = router
        for e, (gate, up, down) in enumerate(experts):
            out[f"{at}.experts.{e}.w1.weight"], out[f"{at}.experts.{e}.w3.weight"] = gate, up
            out[f"{at}.experts.{e}.w2.weight"] = down
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({name: value.to(torch.bfloat16).contiguous() for name, value in out.items()},
              args.out / "model.safetensors", metadata={"format": "pt"})
    width = args.common + (config.intermediate_size - args.common) // args.experts
    rope = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta}
    (args.out / "config.json").write_text(json.dumps({
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "torch_dtype": "bfloat16",
        "hidden_size": config.hidden_size, "intermediate_size": width, "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads, "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.hidden_size // config.num_attention_heads, "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings, "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": rope["rope_theta"], "hidden_act": "silu", "sliding_window": None, "attention_bias": False,
        "num_local_experts": args.experts, "num_experts_per_tok": args.top_k, "router_aux_loss_coef": 0.0,
        "tie_word_embeddings": config.tie_word_embeddings, "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id}, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        if (args.model / name).is_file():
            shutil.copyfile(args.model / name, args.out / name)
    print(f"{args.out}: {args.experts} experts of {width}, {args.top_k} used; the chosen carry {np.mean(shares):.3f} of the "
          f"experts' own energy, a random choice would carry {args.top_k / args.experts:.3f}")


if __name__ == "__main__":
    main()
