#!/usr/bin/env python3
"""The measurements of scripts/bench.sh, which builds the binaries first. Prints a table; --json FILE keeps the figures.

    quantize     time of `quant` on the line without its gates, from its result; MB/s of bf16 input. It ends with the output
                 durable and hashed; llama.cpp's figure is its quantize call on the F16 file.
    perplexity   `foreman assay`, convention llama.cpp, on the bf16 folder and on our F16 file; tokens per second
    prune        `expert-prune` with ready-made counts: until its files are written, against `cp` of the same bytes; and the
                 whole stage (flushed, hashed from disk, proved against the source, scored), against `cp`, fsync and sha256sum
    line         a recipe with nothing to do: parts per second when many wait, and the time from a part's arrival to
                 its claim when none waits
    queue        --jobs parts that build nothing, each with a worker process of its own (scripts/noop_worker.sh), from the first
                 drop to the last result, every move synced; beside it as many jobs `true` through nq, task-spooler and pueue,
                 those that are installed, one worker each. nq and task-spooler keep nothing durable.

Every figure is the median of --repeat runs; ratios above 1 mean that ours is faster. The peer is left out, and says so,
when LLAMA_PYTHON is not set or has no llama_cpp.
"""
import argparse
import datetime
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
REPO = HERE.parent


class Bench:
    def __init__(self, args):
        self.args = args
        self.bin = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target")) / "release"
        self.work = pathlib.Path(args.work or tempfile.mkdtemp(prefix="bench-"))
        self.work.mkdir(parents=True, exist_ok=True)
        self.env = {**os.environ, "RAYON_NUM_THREADS": str(args.threads), "NO_COLOR": "1"}
        self.rows, self.figures = [], {}
        self.peer, self.no_peer = self.find_peer()

    # ------------------------------------------------------------ tools

    def find_peer(self):
        python = os.environ.get("LLAMA_PYTHON")
        if not python:
            return None, "LLAMA_PYTHON is not set"
        try:
            found = subprocess.run([python, "-c", "import llama_cpp; print(llama_cpp.__version__)"],
                                   capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None, f"{python} has no llama_cpp"
        return python, f"llama-cpp-python {found.stdout.strip()}"

    def run_peer(self, *words):
        command = [self.peer, HERE / "llama_peer.py", *words, "--threads", self.args.threads]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=self.env)
        if done.returncode:
            print(f"peer failed: {' '.join(map(str, words))}\n{done.stderr[-800:]}", file=sys.stderr)
            return None
        return json.loads(done.stdout.strip().splitlines()[-1])

    def foreman(self, *words, check=True):
        words = [str(self.bin / "foreman"), *map(str, words)]
        done = subprocess.run(words, capture_output=True, text=True, env=self.env)
        if check and done.returncode:
            sys.exit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
        return done

    def new_line(self, name):
        root = self.work / name
        shutil.rmtree(root, ignore_errors=True)
        self.foreman("init", "--root", root)
        return root

    def build(self, root, name, source, stages):
        """Sends one recipe through a line; returns (events of the part, folder that holds its artifact)."""
        recipe = self.work / f"{name}.alloy.json"
        recipe.write_text(json.dumps({"name": name, "version": "0.1.0", "source": source, "stages": stages}))
        self.foreman("enqueue", recipe, "--root", root)
        self.foreman("run", "--once", "--root", root)
        if not (root / "line/finished" / recipe.name).exists():
            told = [json.dumps(e) for e in events(root) if e.get("alloy") == recipe.name][-3:]
            sys.exit(f"{name} did not finish on {root}:\n" + "\n".join(told))
        return [e for e in events(root) if e.get("alloy") == recipe.name]

    def row(self, what, ours, unit, theirs=None, versus=""):
        ratio = ours / theirs if theirs else None
        self.rows.append((what, ours, unit, theirs, versus, ratio))
        self.figures[what] = {"value": ours, "unit": unit, "peer": theirs, "versus": versus, "ratio": ratio}
        against = f", {versus} {theirs:,.1f}, ratio {ratio:.2f}" if theirs else ""
        print(f"  {what}: {ours:,.1f} {unit}{against}", flush=True)

    # ------------------------------------------------------------ measurements

    def source(self):
        config = json.loads((self.args.model / "config.json").read_text())
        return {"baseModel": str(self.args.model), "architecture": config["model_type"]}

    def gguf(self, kind):
        """Our own GGUF of the model in that type, made once."""
        kept = self.work / f"model-{kind}.gguf"
        if not kept.exists():
            root = self.new_line(f"make-{kind}")
            self.build(root, f"make-{kind.lower()}", self.source(), [quant(kind)])
            shutil.copyfile(newest(root, "*.gguf"), kept)
        return kept

    def quantize(self):
        weights = sum(f.stat().st_size for f in self.args.model.glob("*.safetensors")) / 1e6
        for kind in ("Q8_0", "Q4_0", "Q4_K_M", "Q6_K"):
            ours, theirs = [], []
            for i in range(self.args.repeat):
                root = self.new_line(f"quantize-{kind}-{i}")
                self.build(root, f"quantize-{kind.lower()}-{i}", self.source(), [quant(kind)])
                ours.append(work_seconds(root, "quant"))
                if self.peer:
                    done = self.run_peer("quantize", self.gguf("F16"), self.work / f"peer-{kind}.gguf", kind)
                    theirs += [done["seconds"]] if done else []
                shutil.rmtree(root)
            self.row(f"quantize {kind}", weights / statistics.median(ours), "MB/s",
                     weights / statistics.median(theirs) if theirs else None, "llama.cpp")

    def perplexity(self):
        for what, model in (("bf16 folder", self.args.model), ("F16 file", self.gguf("F16"))):
            ours, theirs, scores = [], [], []
            for _ in range(self.args.repeat):
                words = ["assay", model, "--runner", "perplexity", "--data", self.args.text, "--context", "512",
                         "--convention", "llama.cpp", "--json"]
                result = json.loads(self.foreman(*words).stdout)
                result = result.get("result", result)
                ours.append(result["tokens"] / result["seconds"])
                scores.append(result["perplexity"])
                if self.peer and model.suffix == ".gguf":
                    done = self.run_peer("perplexity", model, self.args.text)
                    if done:
                        theirs.append(done["tokens"] / done["seconds"])
                        relative = scores[-1] / done["perplexity"] - 1
                        self.figures["perplexity agreement"] = {
                            "ours": scores[-1], "peer": done["perplexity"], "relative": relative}
            self.row(f"perplexity, {what}", statistics.median(ours), "tokens/s",
                     statistics.median(theirs) if theirs else None, "llama.cpp")
        same = self.figures.get("perplexity agreement")
        if same:
            print(f"  F16 perplexity: ours {same['ours']:.4f}, llama.cpp {same['peer']:.4f}, "
                  f"difference {100 * same['relative']:+.3f} %")

    def prune(self):
        model = self.work / f"synthetic-{self.args.moe_megabytes}"
        if not (model / "config.json").exists():
            subprocess.run([sys.executable, str(HERE / "make_synthetic_moe.py"), str(model), "--megabytes",
                            str(self.args.moe_megabytes), "--tokenizer", str(REPO / "recipes/demo/model")], check=True)
        ours, whole, copy, durable, written = [], [], [], [], 0
        for i in range(self.args.repeat):
            root = self.new_line(f"prune-{i}")
            source = {"baseModel": str(model), "architecture": "qwen3_moe", "isMoE": True}
            self.build(root, f"prune-{i}", source, [
                {"type": "expert-prune", "keepExpertsPerLayer": 24, "originalExpertsPerLayer": 32,
                 "importanceJson": str(model / "importance.json"), "strategy": "calibration-aware-activation-count"},
                {"type": "package", "format": "safetensors"}])
            ours.append(work_seconds(root, "expert-prune"))
            whole.append(work_seconds(root, "expert-prune", gates=True))
            out = newest(root, "*.safetensors").parent
            files = sorted(out.glob("*.safetensors"))
            written = sum(f.stat().st_size for f in files) / 1e6
            for times, sync in ((copy, False), (durable, True)):
                target = self.work / "copied"
                shutil.rmtree(target, ignore_errors=True)
                target.mkdir()
                started = time.perf_counter()
                subprocess.run(["cp", *map(str, files), str(target)], check=True)
                if sync:
                    for file in target.iterdir():
                        with open(file, "rb") as copied:
                            os.fsync(copied.fileno())
                    subprocess.run(["sha256sum", *map(str, target.iterdir())], check=True, stdout=subprocess.DEVNULL)
                times.append(time.perf_counter() - started)
                shutil.rmtree(target)
            shutil.rmtree(root)
        speed, rate = (written / statistics.median(times) for times in (ours, whole))
        self.row("expert-prune, files written", speed, "MB/s", written / statistics.median(copy), "cp")
        self.row("expert-prune, whole stage", rate, "MB/s", written / statistics.median(durable), "cp, fsync, sha256sum")

    def line(self):
        """Parts per second of a recipe whose only stage changes nothing, then the claim latency of single parts."""
        model = REPO / "tests/fixtures/models/qwen3_moe-text"
        source = {"baseModel": str(model), "architecture": "qwen3_moe", "isMoE": True}
        recipe = {"name": "nothing", "version": "0.1.0", "source": source, "stages": [{"type": "source-config"}]}
        root = self.new_line("line")
        for i in range(self.args.parts):
            (root / "line/intake" / f"bulk-{i:04}.alloy.json").write_text(json.dumps(recipe))
        started = time.perf_counter()
        self.foreman("run", "--drain", "--root", root)
        seconds = time.perf_counter() - started
        done = len(list((root / "line/finished").glob("bulk-*.alloy.json")))
        if done != self.args.parts:
            sys.exit(f"{done} of {self.args.parts} parts of the no-op recipe finished; see {root}/line/rework")
        self.row("line, parts that do nothing", done / seconds, "parts/s")

        daemon = subprocess.Popen([str(self.bin / "factoryd"), "--root", str(root)], stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL, env=self.env)
        latencies = []
        try:
            time.sleep(1)
            for i in range(self.args.parts):
                name = f"single-{i:04}.alloy.json"
                hidden = root / "line/intake" / f".{name}.tmp"
                hidden.write_text(json.dumps(recipe))
                arrived = time.time()
                hidden.rename(root / "line/intake" / name)
                claimed = self.wait_for(root, "forge/started", name)
                latencies.append(1000 * max(0.0, claimed - arrived))
                self.wait_for(root, "forge/completed", name)
        finally:
            daemon.terminate()
            daemon.wait(30)
        latencies.sort()
        at = lambda share: latencies[min(len(latencies) - 1, int(share * len(latencies)))]  # noqa: E731
        self.row("line, arrival to claim, p50", at(0.50), "ms")
        self.row("line, arrival to claim, p99", at(0.99), "ms")

    def wait_for(self, root, kind, name, limit=60):
        deadline = time.time() + limit
        while time.time() < deadline:
            for event in reversed(events(root)):
                if event["kind"] == kind and event.get("alloy") == name:
                    return seconds_of(event["timestamp"])
            time.sleep(0.01)
        sys.exit(f"{name}: no {kind} within {limit} s")

    def queue(self):
        """Jobs per second through the line and through other queues, in turns."""
        ways = {"line, 1 slot": lambda: self.queue_ours(1), "line, 4 slots": lambda: self.queue_ours(4)}
        peers = {"nq": ("nq", self.queue_nq), "task-spooler": ("tsp", self.queue_tsp), "pueue": ("pueued", self.queue_pueue)}
        ways |= {name: run for name, (program, run) in peers.items() if shutil.which(program)}
        rates = {name: [] for name in ways}
        for _ in range(self.args.repeat):
            for name, run in ways.items():
                # What others wrote before must not be waited for now.
                os.sync()
                rates[name].append(self.args.jobs / run())
        medians = {name: statistics.median(found) for name, found in rates.items()}
        ours = medians["line, 1 slot"]
        self.row("queue, 4 slots", medians["line, 4 slots"], "jobs/s")
        self.row("queue, 1 slot", ours, "jobs/s")
        for name in ways:
            if name in peers:
                self.row("queue, 1 slot", ours, "jobs/s", medians[name], name)
        missing = [name for name in peers if name not in ways]
        if missing:
            print(f"not installed, left out: {', '.join(missing)}", file=sys.stderr)

    def queue_ours(self, slots):
        root = self.new_line(f"queue-{time.time_ns()}")
        (root / "factory_node.toml").write_text(f"[storage.hot]\nmin_free_gb = 0\n[forge]\nslots = {slots}\n")
        source = {"baseModel": "nothing", "architecture": "llama"}
        recipe = json.dumps({"name": "nothing", "version": "0.1.0", "source": source,
                             "stages": [{"type": "package", "format": "gguf"}]})
        started = time.perf_counter()
        for i in range(self.args.jobs):
            hidden = root / "line/intake" / f".job-{i:05}.tmp"
            hidden.write_text(recipe)
            hidden.rename(root / "line/intake" / f"job-{i:05}.alloy.json")
        words = [self.bin / "factoryd", "--root", root, "--drain", "--worker=/bin/sh",
                 f"--worker={HERE / 'noop_worker.sh'}"]
        subprocess.run(list(map(str, words)), check=True, stderr=subprocess.DEVNULL, env=self.env)
        seconds = time.perf_counter() - started
        done = len(list((root / "line/finished").glob("job-*.result.json")))
        if done != self.args.jobs:
            sys.exit(f"{done} of {self.args.jobs} parts finished; see {root}/line")
        return seconds

    def queue_nq(self):
        folder = self.work / f"nq-{time.time_ns()}"
        folder.mkdir()
        env = {**self.env, "NQDIR": str(folder)}
        started = time.perf_counter()
        for _ in range(self.args.jobs):
            subprocess.run(["nq", "true"], env=env, stdout=subprocess.DEVNULL, check=True)
        subprocess.run(["nq", "-w"], env=env, stderr=subprocess.DEVNULL, check=True)
        return time.perf_counter() - started

    def queue_tsp(self):
        env = {**self.env, "TS_SOCKET": str(self.work / "tsp.sock"), "TMPDIR": str(self.work)}
        run = lambda *words: subprocess.run(["tsp", *words], env=env, capture_output=True, text=True)  # noqa: E731
        started = time.perf_counter()
        for _ in range(self.args.jobs):
            run("-n", "true")
        while any(word in run("-l").stdout for word in (" running ", " queued ")):
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        run("-K")
        return seconds

    def queue_pueue(self):
        folder = self.work / f"pueue-{time.time_ns()}"
        folders = {"XDG_CONFIG_HOME": "c", "XDG_DATA_HOME": "d", "XDG_RUNTIME_DIR": "r"}
        env = {**self.env, **{key: str(folder / name) for key, name in folders.items()}}
        for name in folders.values():
            (folder / name).mkdir(parents=True)
        daemon = subprocess.Popen(["pueued"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        run = lambda *words: subprocess.run(["pueue", *words], env=env, stdout=subprocess.DEVNULL,  # noqa: E731
                                            stderr=subprocess.DEVNULL)
        try:
            time.sleep(1.5)
            run("parallel", "1")
            started = time.perf_counter()
            for _ in range(self.args.jobs):
                run("add", "--", "true")
            run("wait", "-a", "-q")
            return time.perf_counter() - started
        finally:
            run("shutdown")
            daemon.wait(30)

    # ------------------------------------------------------------ the table

    def table(self):
        print(f"\nmodel {self.args.model.name}, {self.args.threads} threads, median of {self.args.repeat}; "
              f"peer: {self.no_peer if self.peer else 'left out, ' + self.no_peer}")
        print(f"{'what':34} {'ours':>12} {'peer':>12}  {'unit':14} {'ratio':>6}  against")
        for what, ours, unit, theirs, versus, ratio in self.rows:
            peer, ratio = (f"{theirs:12,.1f}", f"{ratio:6.2f}") if theirs else (f"{'-':>12}", f"{'-':>6}")
            print(f"{what:34} {ours:12,.1f} {peer}  {unit:14} {ratio}  {versus if theirs else ''}")


def quant(kind):
    return {"type": "quant", "format": "gguf", "quantTypes": [kind]}


def events(root):
    told = []
    stream = root / "line/.events.jsonl"
    for line in stream.read_text().splitlines() if stream.exists() else []:
        try:
            told.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # a line that is being written
    return told


def work_seconds(root, stage, gates=False):
    """Time of a stage, without its gates (flushing, reading back, proving, scoring) unless asked for, from the result of
    the line's only part."""
    result = json.loads(next((root / "line/finished").glob("*.result.json")).read_text())
    return next(s["elapsed_s"] - (0 if gates else s["gate_s"]) for s in result["stages"] if s["stage"] == stage)


def seconds_of(timestamp):
    return datetime.datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


def newest(root, pattern):
    found = [f for f in root.rglob(pattern) if f.is_file()]
    if not found:
        sys.exit(f"no {pattern} under {root}")
    return max(found, key=lambda f: f.stat().st_mtime)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=pathlib.Path, default=REPO / "recipes/demo/model",
                        help="Hugging Face folder in bf16 (the demo's: too small for figures that mean much)")
    parser.add_argument("--text", type=pathlib.Path, default=REPO / "recipes/demo/heldout.txt")
    parser.add_argument("--only", default="quantize,perplexity,prune,line")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--parts", type=int, default=50, help="parts of the line measurement")
    parser.add_argument("--jobs", type=int, default=500, help="jobs of the queue measurement")
    parser.add_argument("--moe-megabytes", type=int, default=500, help="size of the synthetic model that is pruned")
    parser.add_argument("--work", help="folder for lines and models (default: a temporary one, removed at the end)")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    args = parser.parse_args()
    args.model, args.text = args.model.resolve(), args.text.resolve()
    bench = Bench(args)
    print(f"peer: {bench.no_peer}" if bench.peer else f"peer left out: {bench.no_peer}")
    for name in args.only.split(","):
        print(name, flush=True)
        getattr(bench, name)()
    bench.table()
    if args.json:
        args.json.write_text(json.dumps(bench.figures, indent=2) + "\n")
    if not args.work:
        shutil.rmtree(bench.work)


if __name__ == "__main__":
    main()
