#!/usr/bin/env python3
"""How well each ranking of experts chooses: KL divergence on text that neither calibration nor choice has seen.

    cargo build --release --bins
    python scripts/prune_table.py MODEL CALIBRATION HELDOUT [--keep 12 8] [--seeds 3] [--tokens 16384] [--json FILE]

MODEL is a mixture of experts as a Hugging Face folder; CALIBRATION a .jsonl corpus or plain text, of which each seed draws
its own examples; HELDOUT plain text, cut in two: on the first half best-of-family chooses, on the second it is judged.
Every ranking of a seed and a number of kept experts comes from one profile and is measured in one pass per text. Prints, for
each number of kept experts, the mean divergence (nats per token) over the seeds and the range, and whether best-of-family is
no worse than reap and reap no worse than activation_count, seed by seed.
"""
import argparse
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile

REPO = pathlib.Path(__file__).resolve().parent.parent
RANKINGS = ["reap", "ean_mean", "msan", "ean_sum", "weighted_ean_sum", "activation_count", "weighted_count",
            "max_activation", "router_l2", "aimer"]
FAMILY = RANKINGS[:6] + ["router_l2", "aimer"]  # what the strategy best-of-family compares when the recipe does not say
PIECE = 2000


def examples(path):
    text = path.read_text()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    return [{"text": text[at:at + PIECE]} for at in range(0, len(text), PIECE)]


class Line:
    def __init__(self, model, work):
        self.model, self.work = model, work
        self.foreman = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target")) / "release/foreman"
        self.architecture = json.loads((model / "config.json").read_text())["model_type"]

    def build(self, name, stages):
        """Sends a recipe through a line of its own; the result, and the work folder of the part."""
        root = self.work / name
        recipe = self.work / f"{name}.alloy.json"
        recipe.write_text(json.dumps({
            "name": name, "version": "0.1.0", "stages": stages,
            "source": {"baseModel": str(self.model), "architecture": self.architecture, "isMoE": True}}))
        for words in (["init"], ["enqueue", recipe], ["run", "--once"]):
            done = subprocess.run([str(w) for w in [self.foreman, *words, "--root", root]], capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name}: foreman {words[0]} ended with {done.returncode}\n{done.stdout[-800:]}{done.stderr[-800:]}")
        found = root / f"line/finished/{name}.result.json"
        if not found.exists():
            sys.exit((root / f"line/rework/{name}.error.json").read_text())
        return json.loads(found.read_text()), root


def table(result):
    """Ranking -> divergence, from the evidence of the prune."""
    def walk(node):
        if isinstance(node, dict):
            if isinstance(node.get("candidates"), list):
                return node["candidates"]
            node = list(node.values())
        if isinstance(node, list):
            for item in node:
                if (found := walk(item)) is not None:
                    return found
        return None
    return {row["metric"]: row["kld"] for row in walk(result)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("calibration", type=pathlib.Path)
    parser.add_argument("heldout", type=pathlib.Path)
    parser.add_argument("--keep", type=int, nargs="+", required=True, help="experts kept per layer, e.g. three quarters and half")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.5, help="of the examples each seed draws")
    parser.add_argument("--tokens", type=int, default=16384, help="calibration tokens at most")
    parser.add_argument("--heldout-tokens", type=int, default=4096, help="of each half")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="prune-table-"))
    line = Line(args.model.resolve(), work)
    text = args.heldout.read_text()
    for name, part in (("choose", text[:len(text) // 2]), ("judge", text[len(text) // 2:])):
        (work / f"{name}.txt").write_text(part)
    pool, found = examples(args.calibration), {}
    for seed in range(1, args.seeds + 1):
        drawn = random.Random(seed).sample(pool, max(1, round(args.share * len(pool))))
        corpus = work / f"calibration-{seed}.jsonl"
        corpus.write_text("".join(json.dumps(example) + "\n" for example in drawn))
        _, root = line.build(f"profile-{seed}", [{"type": "expert-activation-profile", "calibrationCorpus": str(corpus),
                                                  "maxLength": 512, "calibrationTokens": args.tokens}])
        importance = next(root.rglob("importance.json"))
        for keep in args.keep:
            for half in ("choose", "judge"):
                result, made = line.build(f"{half}-{seed}-{keep}", [
                    {"type": "expert-prune", "keepExpertsPerLayer": keep, "strategy": "best-of-family",
                     "candidates": RANKINGS, "importanceJson": str(importance), "heldOut": str(work / f"{half}.txt"),
                     "heldOutTokens": args.heldout_tokens},
                    {"type": "package", "format": "safetensors"}])
                found[keep, seed, half] = table(result)
                shutil.rmtree(made)
        shutil.rmtree(root)
        print(f"seed {seed} done", file=sys.stderr, flush=True)
    for keep in args.keep:
        seeds = range(1, args.seeds + 1)
        judged = {ranking: [found[keep, seed, "judge"][ranking] for seed in seeds] for ranking in RANKINGS}
        picks = [min(FAMILY, key=found[keep, seed, "choose"].get) for seed in seeds]
        judged["best-of-family"] = [judged[pick][at] for at, pick in enumerate(picks)]
        print(f"\n{args.model.name}, {keep} experts kept, KL divergence on the judging text\n")
        print("| ranking | mean | range |\n|---|---|---|")
        for ranking, values in sorted(judged.items(), key=lambda item: statistics.mean(item[1])):
            print(f"| {ranking} | {statistics.mean(values):.4f} | {min(values):.4f} to {max(values):.4f} |")
        best = sum(a <= b for a, b in zip(judged["best-of-family"], judged["reap"]))
        reap = sum(a <= b for a, b in zip(judged["reap"], judged["activation_count"]))
        print(f"\nbest-of-family took {', '.join(picks)}; no worse than reap in {best} of {args.seeds} seeds; "
              f"reap no worse than activation_count in {reap} of {args.seeds}")
    if args.json:
        args.json.write_text(json.dumps([{"keep": k, "seed": s, "text": h, "kld": t} for (k, s, h), t in found.items()],
                                        indent=2) + "\n")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
