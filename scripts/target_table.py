#!/usr/bin/env python3
"""What a file in mixed precision loses beside one of llama.cpp's mixes, on text that nothing was calibrated on.

    cargo build --release --bins
    python scripts/target_table.py MODEL CALIBRATION HELDOUT [--algorithm rtn] [--mix Q4_K_M] [--bits 4.5 5.5]
        [--types Q4_0 Q4_K Q8_0 …] [--tokens 16384] [--eval-tokens 8192] [--json FILE]

MODEL is a Hugging Face folder, CALIBRATION and HELDOUT are texts. Builds the mix, a target of the mix's bytes and one of each
number of --bits, all by the same algorithm on the same calibration; then all are measured side by side on HELDOUT (windows of
2,048 tokens, the second half scored). Prints a table: bytes, bits per weight of the whole file, how much of the target was
used, expected and measured divergence (nats per token) and perplexity.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

REPO = pathlib.Path(__file__).resolve().parent.parent
TYPES = ["Q2_0", "Q3_K", "Q4_0", "IQ4_NL", "Q4_K", "Q5_0", "Q6_K", "Q8_0"]


def build(foreman, work, model, name, stages):
    """Sends a recipe through a line of its own; its result."""
    root, recipe = work / name, work / f"{name}.alloy.json"
    architecture = json.loads((model / "config.json").read_text())["model_type"]
    recipe.write_text(json.dumps({"name": name, "version": "0.1.0", "stages": stages,
                                  "source": {"baseModel": str(model), "architecture": architecture}}))
    for words in (["init"], ["enqueue", recipe], ["run", "--once"]):
        done = subprocess.run([str(w) for w in [foreman, *words, "--root", root]], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name}: foreman {words[0]} ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-800:]}")
    return json.loads((root / f"line/finished/{name}.result.json").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("calibration", type=pathlib.Path)
    parser.add_argument("heldout", type=pathlib.Path)
    parser.add_argument("--algorithm", default="rtn")
    parser.add_argument("--mix", default="Q4_K_M")
    parser.add_argument("--bits", type=float, nargs="*", default=[])
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--eval-tokens", type=int, default=8192)
    parser.add_argument("--foreman", type=pathlib.Path, help="the program [default: target/release/foreman]")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    foreman = args.foreman or pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target")) / "release/foreman"
    how = {"type": "quant", "format": "gguf", "algorithm": args.algorithm, "calibrationTokens": args.tokens,
           "calibrationCorpus": str(args.calibration.resolve())}
    with tempfile.TemporaryDirectory() as work:
        work, model = pathlib.Path(work), args.model.resolve()
        # A plan knows the mix's bytes to the byte before it is built.
        probe = work / "plan.alloy.json"
        architecture = json.loads((model / "config.json").read_text())["model_type"]
        probe.write_text(json.dumps({"name": "table", "version": "0.1.0",
                                     "stages": [{**how, "quantTypes": [args.mix]}],
                                     "source": {"baseModel": str(model), "architecture": architecture}}))
        subprocess.run([str(foreman), "init", "--root", str(work / "plan")], check=True, capture_output=True)
        plan = json.loads(subprocess.run([str(foreman), "plan", str(probe), "--root", str(work / "plan"), "--json"],
                                         check=True, capture_output=True, text=True).stdout)
        of_mix = plan["stages"][0]["predicted"]["disk"]
        targets = [{"bytes": of_mix}, *({"bitsPerWeight": bits} for bits in args.bits)]
        stages = [{**how, "quantTypes": [args.mix]},
                  *({**how, "quantTypes": args.types, "target": target} for target in targets),
                  {"type": "eval", "compareToBase": True, "benchmarks": [
                      {"name": "divergence", "data": str(args.heldout.resolve()), "context": 2048,
                       "convention": "llama.cpp", "maxTokens": args.eval_tokens}]}]
        result = build(foreman, work, model, "table", stages)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    measured = {m["artifact"]: m for m in result["measurements"] if m.get("artifact")}
    found = [stage["details"].get("target") for stage in result["stages"] if stage["type"] == "quant"]
    print(f"| file | bytes | bits per weight | of the target | expected KLD | KLD | perplexity |\n|{'---|' * 7}")
    for artifact, target, limit in zip(result["artifacts"], found, [None, *targets]):
        loss = next(m for path, m in measured.items() if pathlib.Path(path).name == pathlib.Path(artifact["path"]).name)
        bits, divergence = artifact["bits_per_weight"], loss["divergence"]
        used = ""
        if limit:
            share = artifact["bytes"] / limit["bytes"] if "bytes" in limit else bits / limit["bitsPerWeight"]
            used = f"{100 * share:.2f} %"
        expected = f"{target['expectedKld']:.4f}" if target else ""
        print(f"| {artifact['type']} | {artifact['bytes']} | {bits:.3f} | {used} | {expected} | "
              f"{divergence['kld']:.4f} ± {divergence['kld_stderr']:.4f} | {loss['perplexity']:.3f} |")


if __name__ == "__main__":
    main()
