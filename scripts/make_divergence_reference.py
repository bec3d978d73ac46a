#!/usr/bin/env python3
"""What one tiny model loses against another, the plain way: tests/fixtures/divergence.json.

    pip install torch transformers safetensors numpy          # the CPU build of torch will do
    python scripts/make_divergence_reference.py

For a few pairs of the models in tests/fixtures/models this runs transformers in float32 on the token ids of the first
one's reference.safetensors and compares the logits with numpy in float64, whole rows at a time: KL(first ‖ second) per
position, how often both rank the same token first, how the probability of the token that really comes changes, and both
perplexities. The quantiles are numpy's. The two prompts are scored from their second token.
"""
import json
import os
import pathlib

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors import safe_open  # noqa: E402

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures"
PAIRS = [("llama", "qwen2-tied"), ("qwen2-tied", "llama-biases"), ("mixtral", "olmoe"),
         ("qwen3_5-text", "qwen3_5_moe-text")]


def log_softmax(name, ids):
    """[positions, vocab] in float64; the last position of each sequence predicts nothing."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        FIXTURES / "models" / name, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(input_ids=ids).logits.double().numpy()[:, :-1]
    logits = logits.reshape(-1, logits.shape[-1])
    highest = logits.max(axis=1, keepdims=True)
    return logits - highest - np.log(np.exp(logits - highest).sum(axis=1, keepdims=True))


def error(values):
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def compare(first, second):
    with safe_open(FIXTURES / "models" / first / "reference.safetensors", "pt") as reference:
        ids = reference.get_tensor("input_ids").long()
    p, q = log_softmax(first, ids), log_softmax(second, ids)
    kld = (np.exp(p) * (p - q)).sum(axis=1)
    same = (p.argmax(axis=1) == q.argmax(axis=1)).astype(np.float64)
    right = ids[:, 1:].reshape(-1).numpy()
    base, other = (rows[np.arange(len(right)), right] for rows in (p, q))
    ratio = base - other
    return {
        "first": first, "second": second, "input_ids": ids.tolist(),
        "positions": len(kld), "kld": float(kld.mean()), "kld_stderr": error(kld),
        "kld_median": float(np.percentile(kld, 50)), "kld_p99": float(np.percentile(kld, 99)),
        "kld_p99_9": float(np.percentile(kld, 99.9)), "kld_max": float(kld.max()),
        "same_top": float(same.mean()), "same_top_stderr": error(same),
        "rms_delta_p": float(np.sqrt(((np.exp(other) - np.exp(base)) ** 2).mean())),
        "base_perplexity": float(np.exp(-base.mean())), "perplexity": float(np.exp(-other.mean())),
        "ln_ratio": float(ratio.mean()), "ln_ratio_stderr": error(ratio),
    }


rows = [compare(first, second) for first, second in PAIRS]
(FIXTURES / "divergence.json").write_text(json.dumps(rows, indent=1) + "\n")
for row in rows:
    print(f"{row['first']} against {row['second']}: KLD {row['kld']:.6f}, same top {row['same_top']:.3f}")
