#!/usr/bin/env python3
"""Expert scores of the tiny mixtures, the plain way: tests/fixtures/scores/<model>.json.

    pip install torch transformers safetensors numpy          # the CPU build of torch will do
    python scripts/make_score_reference.py [NAME ...]

For every mixture of experts in tests/fixtures/models this runs transformers in float32 on the token ids of the model's
reference.safetensors and lets ALL experts compute ALL tokens, as a simple observer would; a score is then a sum or mean
over the tokens whose top-k holds the expert, in float64. The experts' inputs, choices and weights are those that
transformers hands to its own experts. Written per layer: the scores, and which experts each of them keeps (a higher
score wins, of equal ones the lower number; `aimer` removes the highest) for every count that leaves a choice.
"""
import inspect
import json
import os
import pathlib
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors import safe_open  # noqa: E402

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures"


def experts_modules(model):
    """Layer number → (experts module, router weight [E, H]) of the language model's mixtures."""
    found = {}
    for name, module in model.named_modules():
        parts = name.split(".")
        if parts[-1] != "experts" or "layers" not in parts or not hasattr(module, "down_proj"):
            continue
        block = model.get_submodule(".".join(parts[:-1]))
        router = getattr(block, "gate", None) or getattr(block, "router")
        found[int(parts[parts.index("layers") + 1])] = (module, router.weight.detach())
    return found


def observe(model, ids):
    """Layer → (inputs [T, H], chosen [T, k], weights [T, k]) as the experts of that layer got them."""
    seen = {}
    hooks = []
    for layer, (module, _) in experts_modules(model).items():
        names = list(inspect.signature(type(module).forward).parameters)[1:4]

        def hook(_module, args, kwargs, layer=layer, names=names):
            values = dict(zip(names, args)) | kwargs
            seen[layer] = tuple(values[name].detach() for name in names)

        hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    with torch.no_grad():
        model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return seen


def expert_matrices(module, expert):
    """Every matrix element of one expert, biases left out."""
    parts = [module.gate_up_proj[expert], module.down_proj[expert]]
    return torch.cat([part.detach().flatten() for part in parts]).double()


def scores_of(module, router, inputs, chosen, weights):
    count, tokens = module.down_proj.shape[0], inputs.shape[0]
    out = {name: [] for name in ["activation_count", "weighted_count", "ean_sum", "ean_mean", "msan",
                                 "weighted_ean_sum", "reap", "max_activation", "router_l2", "aimer"]}
    for expert in range(count):
        with torch.no_grad():
            index = torch.full((tokens, 1), expert, dtype=chosen.dtype)
            output = module(inputs, index, torch.ones(tokens, 1)).double()
        routed = (chosen == expert).any(dim=1)
        gates = (weights * (chosen == expert)).sum(dim=1).double()[routed]
        norms = output.norm(dim=1)[routed]
        n = int(routed.sum())
        mean = lambda values: float(values.sum() / n) if n else 0.0  # noqa: E731
        out["activation_count"].append(n)
        out["weighted_count"].append(float(gates.sum()))
        out["ean_sum"].append(float(norms.sum()))
        out["ean_mean"].append(mean(norms))
        out["msan"].append(mean(norms ** 2))
        out["weighted_ean_sum"].append(float((gates * norms).sum()))
        out["reap"].append(mean(gates * norms))
        out["max_activation"].append(float(output[routed].abs().max()) if n else 0.0)
        out["router_l2"].append(float(router[expert].double().norm()))
        all_weights = expert_matrices(module, expert)
        out["aimer"].append(float(all_weights.abs().mean() / all_weights.pow(2).mean().sqrt()))
    return out


def kept(name, scores, keep):
    sign = 1 if name == "aimer" else -1
    order = sorted(range(len(scores)), key=lambda expert: (sign * scores[expert], expert))
    return sorted(order[:keep])


def make(folder):
    loaders = [transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText]
    for loader in loaders:
        try:
            model = loader.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
            break
        except (ValueError, KeyError):
            continue
    else:
        raise SystemExit(f"{folder.name}: transformers has no model class for it")
    modules = experts_modules(model)
    if not modules:
        return False
    with safe_open(folder / "reference.safetensors", "pt") as reference:
        ids = reference.get_tensor("input_ids").long()
    layers = {}
    for layer, (inputs, chosen, weights) in sorted(observe(model, ids).items()):
        module, router = modules[layer]
        inputs = inputs.reshape(-1, inputs.shape[-1])
        scores = scores_of(module, router, inputs, chosen, weights)
        count, top_k = module.down_proj.shape[0], chosen.shape[1]
        retained = {name: {str(keep): kept(name, values, keep) for keep in range(top_k, count)}
                    for name, values in scores.items()}
        layers[str(layer)] = dict(scores=scores, kept=retained)
    target = FIXTURES / "scores" / f"{folder.name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(dict(tokens=ids.numel(), layers=layers), indent=1) + "\n")
    print(f"{folder.name}: {len(layers)} layers")
    return True


def main():
    named = sys.argv[1:]
    for folder in sorted((FIXTURES / "models").iterdir()):
        if not (folder / "reference.safetensors").exists() or (named and folder.name not in named):
            continue
        config = json.loads((folder / "config.json").read_text())
        text = config.get("text_config", config)
        if any(text.get(key) for key in ["num_experts", "num_local_experts", "n_routed_experts"]):
            if config.get("quantization_config"):
                # Its numbers are those of the model in bf16 beside it; transformers needs another package to read it.
                print(f"{folder.name}: left out, its experts are quantized")
            elif not make(folder):
                raise SystemExit(f"{folder.name}: no experts found")


if __name__ == "__main__":
    main()
