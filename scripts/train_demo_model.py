#!/usr/bin/env python3
"""Trains the demo model of recipes/demo: a small mixture of experts that has really learnt something.

    pip install torch transformers tokenizers safetensors numpy          # the CPU build of torch will do
    apt-get download r-cran-janeaustenr && dpkg -x r-cran-janeaustenr_*.deb austen
    python scripts/train_demo_model.py austen           [--out recipes/demo] [--threads 1]
    python scripts/train_demo_model.py austen --refine

What comes out, under --out:
    model/            config.json, generation_config.json, tokenizer.json, tokenizer_config.json, model.safetensors:
                      the published qwen3_moe layout (per-expert matrices, bf16, tied head)
    heldout.txt       the end of "Persuasion"; neither the model nor its tokenizer has seen it
    calibration.jsonl passages of the training text, one {"text": ...} a line
    training.json     what was done and measured (loss curve, perplexities, expert counts, hashes); of the second run
                      training-refine.json

The text is Jane Austen's six novels (public domain; scripts/austen_text.py). The tokenizer is a byte-level BPE with
GPT-2's pre-tokenizer (llama.cpp: `tokenizer.ggml.pre` = gpt-2). The model is written out below in plain PyTorch, since
only two of eight experts need computing for a token: tokens are sorted by expert, one product per expert. AdamW,
cosine learning rate, a load-balancing term small enough that experts stay unequally busy. `--refine` goes on from the
model that lies in --out, in a second, shorter run in which every expert is left out of a step with some probability:
experts learn to stand in for one another, as those of large mixtures can, so that removing some does not ruin the model.
The finished folder is read back by transformers, whose logits must agree with ours and whose perplexity is the figure
reported.

Seeded and single-process: the same machine, thread count and versions give the same bytes; another CPU's rounding gives
another model of the same quality. About 15 minutes of one core; more threads are of little use at this size.
"""
import argparse
import hashlib
import json
import math
import pathlib
import time
from collections import defaultdict

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from austen_text import novels

OUT = pathlib.Path(__file__).resolve().parent.parent / "recipes" / "demo"
END = "<|endoftext|>"
HELDOUT_BYTES, CALIBRATION_BYTES, PASSAGE_BYTES = 130_000, 60_000, 1_000
SEED, TOKENS_PER_STEP = 20260, 4096
WINDOWS = (256, 512)  # the length of the training windows: short for the first two thirds of the steps, then long
DECAY, BALANCE = 0.1, 5e-3
# steps, steps of warm-up, highest and last learning rate, probability that an expert is left out of a step
FIRST = dict(steps=1000, warmup=60, peak=4e-3, final=1e-4, leave_out=0.0)
REFINE = dict(steps=300, warmup=20, peak=1.5e-3, final=5e-5, leave_out=0.25)

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0,
    "decoder_sparse_step": 1, "eos_token_id": 0, "head_dim": 32, "hidden_act": "silu", "hidden_size": 128,
    "initializer_range": 0.02, "intermediate_size": 320, "max_position_embeddings": 1024, "max_window_layers": 4,
    "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 160, "norm_topk_prob": True,
    "num_attention_heads": 4, "num_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 4,
    "num_key_value_heads": 2, "output_router_logits": False, "rms_norm_eps": 1e-6, "rope_scaling": None,
    "rope_theta": 10000.0, "router_aux_loss_coef": BALANCE, "sliding_window": None, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False, "vocab_size": 2048,
}


# ---------------------------------------------------------------- text

def split(books):
    """(training documents, held-out text): held out are the last HELDOUT_BYTES of "Persuasion"."""
    text = books["Persuasion"]
    cut = text.index("\n\n", len(text) - HELDOUT_BYTES) + 2
    documents = [t if name != "Persuasion" else text[:cut].rstrip() + "\n" for name, t in books.items()]
    return documents, text[cut:]


def calibration(documents):
    """Passages spread evenly over the training documents, each a run of whole paragraphs."""
    whole = sum(map(len, documents))
    passages = []
    for text in documents:
        count = round(CALIBRATION_BYTES / PASSAGE_BYTES * len(text) / whole)
        for i in range(count):
            start = text.index("\n\n", (i * 2 + 1) * len(text) // (count * 2 + 1)) + 2
            end = text.find("\n\n", min(start + PASSAGE_BYTES, len(text) - 2))
            passages.append(text[start:end if end > 0 else len(text)].strip())
    return passages


def train_tokenizer(documents):
    tk = Tokenizer(models.BPE())
    tk.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tk.decoder = decoders.ByteLevel()
    tk.train_from_iterator(documents, trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"], special_tokens=[END], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    assert tk.get_vocab_size() == CONFIG["vocab_size"] and tk.token_to_id(END) == 0
    return tk


def ngram_bits_per_byte(documents, heldout, order):
    """Bits per byte of a byte n-gram (Witten-Bell interpolation down to uniform), as something to compare with."""
    train, test = "".join(documents).encode(), heldout.encode()
    seen = [defaultdict(int) for _ in range(order)]          # seen[n][context + byte]
    total = [defaultdict(int) for _ in range(order)]         # total[n][context]
    kinds = [defaultdict(int) for _ in range(order)]         # distinct successors
    for n in range(order):
        s, t, k = seen[n], total[n], kinds[n]
        for i in range(n, len(train)):
            key = train[i - n:i + 1]
            if key not in s:
                k[key[:-1]] += 1
            s[key] += 1
            t[key[:-1]] += 1
    bits = 0.0
    for i in range(order, len(test)):
        p = 1 / 256
        for n in range(order):
            context = test[i - n:i]
            c = total[n].get(context, 0)
            if not c:
                break
            p = (seen[n].get(test[i - n:i + 1], 0) + kinds[n][context] * p) / (c + kinds[n][context])
        bits -= math.log2(p)
    return bits / (len(test) - order)


# ---------------------------------------------------------------- model

class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, CONFIG["rms_norm_eps"])


def rope_tables(length):
    width = CONFIG["head_dim"]
    inverse = CONFIG["rope_theta"] ** (-torch.arange(0, width, 2).float() / width)
    angle = torch.arange(length).float()[:, None] * inverse
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv, self.width = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        h = c["hidden_size"]
        self.q_proj = nn.Linear(h, self.heads * self.width, bias=False)
        self.k_proj = nn.Linear(h, self.kv * self.width, bias=False)
        self.v_proj = nn.Linear(h, self.kv * self.width, bias=False)
        self.o_proj = nn.Linear(self.heads * self.width, h, bias=False)
        self.q_norm, self.k_norm = Norm(self.width), Norm(self.width)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(b, t, self.heads, self.width)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(b, t, self.kv, self.width)).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.kv, self.width).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.heads // self.kv
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


class Experts(nn.Module):
    """The routed feed-forward. `counts` holds how often each expert was chosen in the last call, `balance` the term."""

    def __init__(self, c):
        super().__init__()
        e, h, i = c["num_experts"], c["hidden_size"], c["moe_intermediate_size"]
        self.top_k = c["num_experts_per_tok"]
        self.leave_out = 0.0  # probability; while training only
        self.router = nn.Parameter(torch.empty(e, h))
        self.gate_up = nn.Parameter(torch.empty(e, 2 * i, h))
        self.down = nn.Parameter(torch.empty(e, h, i))

    def forward(self, x):
        tokens = x.reshape(-1, x.shape[-1])
        with torch.autocast("cpu", enabled=False):
            scores = F.linear(tokens.float(), self.router)
            if self.leave_out:
                scores = scores.masked_fill(self.absent(), -torch.inf)
            probabilities = scores.softmax(-1)
        weight, chosen = probabilities.topk(self.top_k, -1)
        weight = weight / weight.sum(-1, keepdim=True)
        order = chosen.flatten().argsort(stable=True)
        self.counts = chosen.flatten().bincount(minlength=len(self.router))
        outputs = []
        rows = order // self.top_k
        groups = tokens[rows].split(self.counts.tolist())
        for group, gate_up, down in zip(groups, self.gate_up.unbind(), self.down.unbind()):
            gate, up = F.linear(group, gate_up).chunk(2, -1)
            outputs.append(F.linear(F.silu(gate) * up, down))
        mixed = torch.cat(outputs).float() * weight.flatten()[order, None]
        share = self.counts / len(order)
        self.balance = len(self.router) * (share * probabilities.mean(0)).sum()
        return torch.zeros_like(mixed[:len(tokens)]).index_add(0, rows, mixed).view(x.shape)

    def absent(self):
        """Which experts a step does without; at least top-k stay."""
        luck = torch.rand(len(self.router))
        return (luck < self.leave_out) & (luck < luck.topk(self.top_k).values[-1])


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(c["hidden_size"]), Norm(c["hidden_size"])
        self.self_attn, self.mlp = Attention(c), Experts(c)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Parameter(torch.empty(c["vocab_size"], c["hidden_size"]))
        self.layers = nn.ModuleList(Block(c) for _ in range(c["num_hidden_layers"]))
        self.norm = Norm(c["hidden_size"])
        for name, p in self.named_parameters():
            if p.dim() > 1:
                out = name.endswith(("o_proj.weight", "down"))
                nn.init.normal_(p, std=0.02 if "embed" in name else p.shape[-1] ** -0.5 * (0.35 if out else 1.0))

    def forward(self, ids):
        cos, sin = rope_tables(ids.shape[1])
        x = F.embedding(ids, self.embed_tokens)
        for block in self.layers:
            x = block(x, cos, sin)
        return F.linear(self.norm(x), self.embed_tokens)

    def restore(self, tensors):
        """The inverse of `checkpoint`."""
        tensors = {k: v.float() for k, v in tensors.items()}
        with torch.no_grad():
            self.embed_tokens.copy_(tensors["model.embed_tokens.weight"])
            self.norm.weight.copy_(tensors["model.norm.weight"])
            for n, block in enumerate(self.layers):
                at = f"model.layers.{n}"
                for name, p in block.named_parameters():
                    if not name.startswith("mlp."):
                        p.copy_(tensors[f"{at}.{name}"])
                block.mlp.router.copy_(tensors[f"{at}.mlp.gate.weight"])
                for e in range(len(block.mlp.router)):
                    part = {k: tensors[f"{at}.mlp.experts.{e}.{k}_proj.weight"] for k in ("gate", "up", "down")}
                    block.mlp.gate_up[e].copy_(torch.cat([part["gate"], part["up"]]))
                    block.mlp.down[e].copy_(part["down"])

    def checkpoint(self):
        """The tensors under their published names, bf16."""
        out = {"model.embed_tokens.weight": self.embed_tokens}
        for n, block in enumerate(self.layers):
            at = f"model.layers.{n}"
            for name, p in block.named_parameters():
                if not name.startswith("mlp."):
                    out[f"{at}.{name}"] = p
            out[f"{at}.mlp.gate.weight"] = block.mlp.router
            for e, gate_up in enumerate(block.mlp.gate_up):
                gate, up = gate_up.chunk(2)
                out[f"{at}.mlp.experts.{e}.gate_proj.weight"] = gate
                out[f"{at}.mlp.experts.{e}.up_proj.weight"] = up
                out[f"{at}.mlp.experts.{e}.down_proj.weight"] = block.mlp.down[e]
        out["model.norm.weight"] = self.norm.weight
        return {k: v.detach().to(torch.bfloat16).contiguous().clone() for k, v in out.items()}


# ---------------------------------------------------------------- training

def rate(step, plan):
    """Linear warm-up, then half a cosine."""
    if step < plan["warmup"]:
        return plan["peak"] * (step + 1) / plan["warmup"]
    done = (step - plan["warmup"]) / max(1, plan["steps"] - plan["warmup"])
    return plan["final"] + (plan["peak"] - plan["final"]) * 0.5 * (1 + math.cos(math.pi * done))


def train(model, stream, plan, seed):
    """Random windows of the stream, once per step; returns the loss curve [(step, nats per token)]."""
    steps = plan["steps"]
    for block in model.layers:
        block.mlp.leave_out = plan["leave_out"]
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}],
        lr=plan["peak"], betas=(0.9, 0.95), fused=True)
    draw = torch.Generator().manual_seed(seed)
    curve, mean, started = [], 0.0, time.time()
    for step in range(steps):
        window = WINDOWS[3 * step >= 2 * steps]
        at = torch.randint(0, len(stream) - window - 1, (TOKENS_PER_STEP // window,), generator=draw)
        batch = torch.stack([stream[i:i + window + 1] for i in at.tolist()])
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        (loss + BALANCE * sum(b.mlp.balance for b in model.layers)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, plan)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mean += loss.item()
        if (step + 1) % 50 == 0:
            curve.append((step + 1, round(mean / 50, 4)))
            each = (time.time() - started) / (step + 1)
            busy = [f"{(b.mlp.counts.max() / b.mlp.counts.sum() * 8).item():.2f}" for b in model.layers]
            print(f"step {step + 1:5}/{steps} loss {mean / 50:.4f}  {TOKENS_PER_STEP / each:,.0f} tokens/s  "
                  f"left {each * (steps - step - 1) / 60:.1f} min  busiest {busy}", flush=True)
            mean = 0.0
    for block in model.layers:
        block.mlp.leave_out = 0.0
    return curve


# ---------------------------------------------------------------- what came out, by transformers

def open_transformers(folder):
    import transformers
    transformers.logging.disable_progress_bar()
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


@torch.no_grad()
def perplexities(model, ids, window=512):
    """Non-overlapping windows, a short rest left out. Both conventions, and nats per token over all positions:
    `windowed` scores every position but a window's first, `llama.cpp` the second half only."""
    every, half = [], []
    for at in range(0, len(ids) - window + 1, window):
        w = ids[at:at + window]
        nll = F.cross_entropy(model(input_ids=w[None]).logits[0, :-1], w[1:], reduction="none")
        every.append(nll)
        half.append(nll[window // 2:])
    every, half = torch.cat(every), torch.cat(half)
    return {"windowed": round(every.mean().exp().item(), 4), "llama.cpp": round(half.mean().exp().item(), 4),
            "nll": every.mean().item(), "scored": len(every), "windows": len(ids) // window}


@torch.no_grad()
def expert_counts(model, tokenizer, passages):
    """How often each expert is chosen on the calibration text: [layers][experts]."""
    counts = torch.zeros(CONFIG["num_hidden_layers"], CONFIG["num_experts"], dtype=torch.long)
    for text in passages:
        ids = torch.tensor(tokenizer.encode(text).ids)[None]
        for layer, logits in enumerate(model(input_ids=ids, output_router_logits=True).router_logits):
            chosen = logits.topk(CONFIG["num_experts_per_tok"], -1).indices
            counts[layer] += chosen.flatten().bincount(minlength=CONFIG["num_experts"])
    return counts.tolist()


def without_experts(tensors, counts, keep):
    """The checkpoint with the `keep` busiest experts of each layer (ties: the lower index), renumbered in order."""
    out = {}
    for layer, of_layer in enumerate(counts):
        kept = sorted(sorted(range(len(of_layer)), key=lambda e: (-of_layer[e], e))[:keep])
        at = f"model.layers.{layer}.mlp"
        out[f"{at}.gate.weight"] = tensors[f"{at}.gate.weight"][kept].contiguous()
        for new, old in enumerate(kept):
            for part in ("gate_proj", "up_proj", "down_proj"):
                out[f"{at}.experts.{new}.{part}.weight"] = tensors[f"{at}.experts.{old}.{part}.weight"]
    return {**{k: v for k, v in tensors.items() if ".mlp." not in k}, **out}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_model(folder, config, tensors, tokenizer):
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0})
    write_json(folder / "tokenizer_config.json", {
        "add_bos_token": False, "add_prefix_space": False, "bos_token": None, "clean_up_tokenization_spaces": False,
        "eos_token": END, "model_max_length": CONFIG["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": None})
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("austen", help="folder into which the Debian package was unpacked")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    parser.add_argument("--refine", action="store_true", help="go on from the model in --out: the second run")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    started = time.time()

    documents, heldout = split(novels(args.austen))
    passages = calibration(documents)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "heldout.txt").write_text(heldout)
    (args.out / "calibration.jsonl").write_text("".join(json.dumps({"text": p}) + "\n" for p in passages))

    folder, plan = args.out / "model", REFINE if args.refine else FIRST
    torch.manual_seed(SEED + args.refine)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json")) if args.refine else train_tokenizer(documents)
    stream = torch.tensor([t for d in documents for t in tokenizer.encode(d).ids + [0]])
    model = Model(CONFIG)
    if args.refine:
        model.restore(load_file(folder / "model.safetensors"))
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(stream):,} training tokens, {sum(map(len, documents)):,} bytes; "
          f"{plan['steps'] * TOKENS_PER_STEP / len(stream):.1f} epochs", flush=True)
    curve = train(model, stream, plan, SEED + 1 + args.refine)
    seconds = time.time() - started
    tensors = model.checkpoint()
    write_model(folder, CONFIG, tensors, tokenizer)

    # From here on only what lies on the disk counts.
    reference = open_transformers(folder)
    ids = torch.tensor(tokenizer.encode(heldout).ids)
    with torch.no_grad():
        for p, q in zip(model.parameters(), [p.to(torch.bfloat16).float() for p in model.parameters()]):
            p.copy_(q)
        gap = (model(ids[None, :256]) - reference(input_ids=ids[None, :256]).logits).abs().max().item()
    assert gap < 1e-3, f"transformers computes other logits than the module that was trained: {gap}"
    base = perplexities(reference, ids)
    counts = expert_counts(reference, tokenizer, passages)
    pruned = {}
    for keep in (6, 4):
        config = {**CONFIG, "num_experts": keep}
        probe = args.out / f"probe-{keep}"
        write_model(probe, config, without_experts(tensors, counts, keep), tokenizer)
        pruned[keep] = perplexities(open_transformers(probe), ids)
        for file in probe.iterdir():
            file.unlink()
        probe.rmdir()
    scored_bytes = len(tokenizer.decode(ids[:base["windows"] * 512].tolist()).encode())
    write_json(args.out / ("training-refine.json" if args.refine else "training.json"), {
        "run": "refine" if args.refine else "first", "plan": plan, "parameters": parameters,
        "tokens_per_step": TOKENS_PER_STEP,
        "training_tokens": len(stream), "training_seconds": round(seconds), "threads": args.threads,
        "torch": torch.__version__, "loss": curve, "logit_gap_to_transformers": gap,
        "heldout": {
            "bytes": len(heldout.encode()), "tokens": len(ids), "base_512": base, "pruned_512": pruned,
            "bits_per_byte": round(base["nll"] * base["windows"] * 512 / scored_bytes / math.log(2), 4),
            "byte_ngram_bits_per_byte": {n: round(ngram_bits_per_byte(documents, heldout, n), 4) for n in (3, 5, 6)}},
        "calibration": {"passages": len(passages), "tokens": sum(counts[0]) // CONFIG["num_experts_per_tok"],
                        "expert_counts": counts},
        "sha256": {str(f.relative_to(args.out)): hashlib.sha256(f.read_bytes()).hexdigest()
                   for f in sorted([*folder.iterdir(), args.out / "heldout.txt", args.out / "calibration.jsonl"])}})


if __name__ == "__main__":
    main()
