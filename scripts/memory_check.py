#!/usr/bin/env python3
"""A model several times larger than the memory it may use, through the line: profiled, pruned, proved and scored.

    cargo build --release --bins
    pip install numpy
    python scripts/memory_check.py [--gigabytes 8] [--limit-gb 2] [--work FOLDER]

Makes a synthetic qwen3_moe of 128 experts, 8 used (make_synthetic_moe.py), and builds one part: profile, prune 128 to 96,
perplexity of base and result, package. The worker runs in a memory control group of --limit-gb (version 1 or 2, where this
user may make one; page cache counts there too), else without a limit; either way the largest resident set of any child is
printed. Beside it stand the time `cat` takes for the weights in the same control group, and the time the same passes take
without a limit and with the weights in the page cache: a pass should take little more than the two together.
"""
import argparse
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
REPO = HERE.parent
TOKENS = 16384


class Group:
    """A memory control group, or nothing when none can be made."""

    def __init__(self, limit):
        self.path = None
        lines = [line.split(":", 2) for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines()]
        for _, controllers, path in lines:
            if "memory" in controllers.split(","):
                parent, key = pathlib.Path("/sys/fs/cgroup/memory" + path), "memory.limit_in_bytes"
            elif controllers == "" and pathlib.Path("/sys/fs/cgroup/cgroup.controllers").exists():
                parent, key = pathlib.Path("/sys/fs/cgroup" + path), "memory.max"
            else:
                continue
            group = parent / f"memory-check-{os.getpid()}"
            try:
                group.mkdir()
                (group / key).write_text(str(limit))
            except OSError:
                continue
            self.path = group
            return

    def enter(self):
        if self.path:
            (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def leave(self):
        if self.path:
            self.path.rmdir()

    def peak(self):
        """Most memory charged to the group, page cache included."""
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            if self.path and (self.path / name).exists():
                return int((self.path / name).read_text())
        return None


def timed(command, group=None, **more):
    """Seconds, and the largest resident set in bytes of the command or a child of it."""
    before = time.perf_counter()
    done = subprocess.run(list(map(str, command)), preexec_fn=group.enter if group else None, **more)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}")
    return time.perf_counter() - before


def drop(files):
    """Lets go of the files' pages."""
    for file in files:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def build(foreman, root, model, corpus, text, limit, group):
    shutil.rmtree(root, ignore_errors=True)
    timed([foreman, "init", "--root", root], stdout=subprocess.DEVNULL)
    (root / "factory_node.toml").write_text(f"[storage.hot]\nmin_free_gb = 1\n[forge]\nmemory_budget_gb = {limit}\n")
    recipe = root / "big.alloy.json"
    recipe.write_text(json.dumps({
        "name": "big", "version": "0.1.0",
        "source": {"baseModel": str(model), "architecture": "qwen3_moe", "isMoE": True},
        "stages": [
            {"type": "expert-activation-profile", "calibrationCorpus": str(corpus), "maxLength": 512,
             "calibrationTokens": TOKENS},
            {"type": "expert-prune", "keepExpertsPerLayer": 96, "originalExpertsPerLayer": 128,
             "strategy": "calibration-aware-activation-count"},
            {"type": "eval", "compareToBase": True,
             "benchmarks": [{"name": "perplexity", "data": str(text), "context": 512}]},
            {"type": "package", "format": "safetensors"}]}))
    timed([foreman, "enqueue", recipe, "--root", root], stdout=subprocess.DEVNULL)
    seconds = timed([foreman, "run", "--once", "--root", root], group, stdout=subprocess.DEVNULL)
    found = root / "line/finished/big.result.json"
    if not found.exists():
        error = root / "line/rework/big.error.json"
        sys.exit(error.read_text() if error.exists() else f"the part is not finished: see {root}/line")
    return seconds, json.loads(found.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=8)
    parser.add_argument("--limit-gb", type=float, default=2)
    parser.add_argument("--corpus", type=pathlib.Path, default=REPO / "recipes/demo/calibration.jsonl")
    parser.add_argument("--text", type=pathlib.Path, default=REPO / "recipes/demo/heldout.txt")
    parser.add_argument("--work", type=pathlib.Path)
    args = parser.parse_args()
    work = args.work or pathlib.Path(tempfile.mkdtemp(prefix="memory-check-"))
    foreman = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target")) / "release/foreman"
    model = work / f"synthetic-{args.gigabytes:g}gb"
    if not (model / "config.json").exists():
        timed([sys.executable, HERE / "make_synthetic_moe.py", model, "--megabytes", round(args.gigabytes * 1000),
               "--experts", 128, "--top-k", 8, "--tokenizer", REPO / "recipes/demo/model"])
    weights = sorted(model.glob("*.safetensors"))
    stored = sum(file.stat().st_size for file in weights)
    group = Group(int(args.limit_gb * 1e9))
    print(f"weights {stored / 1e9:.2f} GB, limit {args.limit_gb:g} GB "
          f"({'control group ' + group.path.name if group.path else 'no control group could be made'})")

    drop(weights)
    read = timed(["cat", *weights], group, stdout=subprocess.DEVNULL)
    print(f"read once from disk: {read:.1f} s, {stored / read / 1e6:.0f} MB/s")
    drop(weights)
    root = work / "line-limited"
    seconds, result = build(foreman, root, model, args.corpus, args.text, args.limit_gb / 2, group)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"limited: {seconds:.1f} s in all, largest resident set {peak / 1e9:.2f} GB"
          + (f", control group's peak with page cache {group.peak() / 1e9:.2f} GB" if group.peak() else ""))
    stages = {s["stage"]: s["elapsed_s"] for s in result["stages"]}
    shutil.rmtree(root)
    timed(["cat", *weights], stdout=subprocess.DEVNULL)
    root = work / "line-warm"
    warm_seconds, warm = build(foreman, root, model, args.corpus, args.text, args.limit_gb / 2, None)
    shutil.rmtree(root)
    print(f"without a limit, weights in the page cache: {warm_seconds:.1f} s")
    print(f"{'stage':<28}{'limited s':>12}{'warm s':>12}")
    for stage in warm["stages"]:
        print(f"{stage['stage']:<28}{stages[stage['stage']]:>12.1f}{stage['elapsed_s']:>12.1f}")
    profile = next(s["elapsed_s"] for s in warm["stages"] if "profile" in s["stage"])
    ratio = stages["expert-activation-profile"] / (read + profile)
    print(f"profile pass: {ratio:.2f} of (reading the weights once + the same pass on cached weights)")
    if result["modelHash"] != warm["modelHash"]:
        sys.exit("the two builds differ")
    print("model hash of both:", result["modelHash"])
    group.leave()
    if not args.work:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
