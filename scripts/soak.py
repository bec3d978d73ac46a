#!/usr/bin/env python3
"""Soaks a line: many parts that build nothing, dropped by several writers, while the supervisor is killed again and again.

    scripts/soak.py [--parts 10000] [--writers 8] [--seed 1] [--calm 3000] [--bin target/release]

First the storm: the writers drop their parts the way any client does (temp name, rename), and factoryd is killed with SIGKILL
every one to four seconds, sometimes with its workers. Then everything is counted: every part must stand in finished exactly
once and nowhere else, with one result that one run wrote. Then the calm: one supervisor works off --calm more parts and its
resident memory is looked at on the way; at last it has nothing to do and its processor time is looked at for twenty seconds.
Prints figures; ends with 1 when a part is lost, doubled or without its result. Everything happens in a temporary folder.
"""
import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
RECIPE = json.dumps({
    "name": "nothing", "version": "0.1.0", "source": {"baseModel": "nothing", "architecture": "llama"},
    "stages": [{"type": "package", "format": "gguf"}],
})
NODE = """[storage.hot]
min_free_gb = 0
[forge]
max_retries = 100
retry_backoff_seconds = 0
rescan_seconds = 1
[grid]
heartbeat_interval_seconds = 1
"""
TICKS = os.sysconf("SC_CLK_TCK")


class Line:
    def __init__(self, binaries, root):
        self.binaries, self.root, self.runs = binaries, root, root / "runs"
        subprocess.run([binaries / "foreman", "init", "--root", root], check=True, capture_output=True)
        (root / "factory_node.toml").write_text(NODE)
        self.intake = root / "line/intake"

    def supervise(self):
        words = [self.binaries / "factoryd", "--root", self.root, "--worker=/bin/sh",
                 f"--worker={HERE / 'noop_worker.sh'}"]
        return subprocess.Popen(words, env={**os.environ, "RUNS": str(self.runs)}, stderr=subprocess.DEVNULL)

    def drop(self, name):
        temporary = self.intake / f".{name}.tmp"
        temporary.write_text(RECIPE)
        temporary.rename(self.intake / f"{name}.alloy.json")

    def names(self, station):
        return os.listdir(self.root / "line" / station)

    def finished(self):
        return sum(name.endswith(".alloy.json") for name in self.names("finished"))

    def worker(self):
        try:
            return json.loads((self.root / "line/.heartbeat.json").read_text()).get("worker_pid")
        except (OSError, ValueError):
            return None


def base(file):
    return file.split(".")[0]


def write(line, writer, count, pause):
    for number in range(count):
        line.drop(f"w{writer}-{number:05}")
        time.sleep(pause)


def storm(line, args):
    """Until every part is finished; returns seconds and kills."""
    rng = random.Random(args.seed)
    each = args.parts // args.writers
    writers = [threading.Thread(target=write, args=(line, w, each, 0.01)) for w in range(args.writers)]
    began, kills = time.time(), 0
    for writer in writers:
        writer.start()
    supervisor = line.supervise()
    while line.finished() < each * args.writers:
        if time.time() - began > args.limit:
            sys.exit(f"not done after {args.limit} s: {line.finished()} of {each * args.writers} parts are finished")
        time.sleep(rng.uniform(1, 4))
        worker = line.worker()
        supervisor.send_signal(signal.SIGKILL)
        supervisor.wait()
        if worker and rng.random() < 0.5:
            try:
                os.killpg(worker, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        kills += 1
        supervisor = line.supervise()
    supervisor.send_signal(signal.SIGTERM)
    supervisor.wait()
    for writer in writers:
        writer.join()
    return time.time() - began, kills


def count(line, expected):
    """Every fault of the line, as text."""
    faults = []
    parts = [n for n in line.names("finished") if n.endswith(".alloy.json")]
    results = [n for n in line.names("finished") if n.endswith(".result.json")]
    for what, files in (("parts", parts), ("results", results)):
        per_base = collections.Counter(map(base, files))
        faults += [f"{n} {what} of {name}" for name, n in per_base.items() if n != 1]
        faults += [f"no {what} of {name}" for name in expected - set(per_base)]
        faults += [f"{what} of {name}, which nobody dropped" for name in set(per_base) - expected]
    for station in ("intake", "assembly", "rework", "deferred", "quarantine"):
        faults += [f"{station}/{name}" for name in line.names(station)]
    runs = collections.defaultdict(list)
    for text in line.runs.read_text().splitlines():
        part, token = text.split()
        runs[base(part)].append(token)
    for name in results:
        token = json.loads((line.root / "line/finished" / name).read_text())["attempt_token"]
        if token not in runs[base(name)]:
            faults.append(f"{name} names an attempt that never ran")
    again = sum(len(tokens) - 1 for tokens in runs.values())
    shipped = collections.Counter()
    for text in (line.root / "line/throughput.jsonl").read_bytes().splitlines():
        try:
            entry = json.loads(text)
        except ValueError:
            continue
        if entry["outcome"] == "finished":
            shipped[base(entry["alloy"])] += 1
    faults += [f"{name} was shipped {n} times" for name, n in shipped.items() if n > 1]
    return faults, again


def rss_kb(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def calm(line, args):
    """Resident memory of one supervisor over its work, and what it takes when there is none."""
    before = line.finished()
    supervisor = line.supervise()
    seen, began = [], time.time()
    for number in range(args.calm):
        line.drop(f"calm-{number:05}")
    step = max(args.calm // 5, 1)
    for target in range(step, args.calm + 1, step):
        while line.finished() < before + target:
            if supervisor.poll() is not None or time.time() - began > args.limit:
                sys.exit("the supervisor of the calm does not get on")
            time.sleep(0.05)
        seen.append(rss_kb(supervisor.pid))
    seconds = time.time() - began
    time.sleep(3)
    used, since = cpu_seconds(supervisor.pid), time.time()
    time.sleep(20)
    idle = (cpu_seconds(supervisor.pid) - used) / (time.time() - since)
    supervisor.send_signal(signal.SIGTERM)
    supervisor.wait()
    return seen, seconds, idle


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=10_000)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calm", type=int, default=3_000)
    parser.add_argument("--limit", type=float, default=1800, help="seconds before it gives up")
    parser.add_argument("--bin", type=pathlib.Path, default=HERE.parent / "target/release")
    args = parser.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        line = Line(args.bin.resolve(), work / "line")
        seconds, kills = storm(line, args)
        expected = {f"w{w}-{n:05}" for w in range(args.writers) for n in range(args.parts // args.writers)}
        faults, again = count(line, expected)
        print(f"storm: {len(expected)} parts by {args.writers} writers in {seconds:.0f} s, supervisor killed {kills} times")
        print(f"       {len(faults)} parts lost, doubled or unexplained; {again} runs were repeated")
        for fault in faults[:20]:
            print(f"       {fault}")
        if args.calm:
            seen, took, idle = calm(line, args)
            print(f"calm:  {args.calm} parts in {took:.1f} s ({args.calm / took:.0f} a second)")
            print(f"       resident memory of the supervisor on the way: {', '.join(f'{kb / 1000:.1f}' for kb in seen)} MB")
            print(f"       idle: {100 * idle:.2f} % of one processor")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
