#!/usr/bin/env python3
"""The divergence of a quantized GGUF file, by us and from llama.cpp's logits, on the same windows.

    CMAKE_ARGS=... pip install llama-cpp-python==0.3.36 gguf     (flags: see llama_peer.py)
    python scripts/kld_check.py BASE.gguf MODEL.gguf TEXT [--context 512] [--windows 8] [--foreman target/release/foreman]

llama.cpp evaluates every window with both files; the logits of each window's second half are compared with numpy in
float64, whole rows at a time, as llama.cpp's own `--kl-divergence` does it (without its rounding of the base's logits to
16 bits). This is done twice: with MODEL's weights unpacked to F32 by the `gguf` package, and with MODEL as it is. llama.cpp
rounds activations to 8 bits when it multiplies with block formats, which adds to the second divergence; ours is that of
the weights alone, as the first. `foreman assay --against` measures the same windows. One JSON object on stdout; exit status
1 when our mean divergence is more than a fiftieth from the unpacked one, or the base's perplexity more than a thousandth.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import gguf
import llama_cpp
import numpy as np


def windows_of(model, text, context, most):
    bos = llama_cpp.llama_vocab_get_add_bos(llama_cpp.llama_model_get_vocab(model._model.model))
    with open(text, "rb") as file:
        ids = model.tokenize(file.read(), add_bos=bool(bos), special=False)
    windows = [ids[i:i + context] for i in range(0, len(ids) - context + 1, context)][:most]
    if bos:
        windows = [[model.token_bos()] + window[1:] for window in windows]
    return windows


def log_softmax(model, window):
    """Of the second half's positions that have a next token: [positions, vocab], float64."""
    model.reset()
    model.eval(window)
    logits = np.asarray(model.scores[len(window) // 2:len(window) - 1], np.float64)
    logits -= logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def unpack(source, target):
    """A copy of a GGUF file with every tensor as F32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = 0 if key == "general.file_type" else field.contents()
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, field.types[0])
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values.reshape([int(d) for d in reversed(tensor.shape)]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def peer(args, path):
    load = lambda path: llama_cpp.Llama(path, n_ctx=args.context, n_batch=args.context, n_threads=args.threads,  # noqa: E731
                                        n_threads_batch=args.threads, logits_all=True, verbose=False)
    base, model = load(args.base), load(path)
    kld, same, change, ratio, base_nll = [], [], [], [], []
    for window in windows_of(base, args.text, args.context, args.windows):
        p, q = log_softmax(base, window), log_softmax(model, window)
        right = np.asarray(window[len(window) // 2 + 1:])
        rows = np.arange(len(right))
        kld.append((np.exp(p) * (p - q)).sum(1))
        same.append(p.argmax(1) == q.argmax(1))
        change.append((np.exp(q[rows, right]) - np.exp(p[rows, right])) ** 2)
        ratio.append(p[rows, right] - q[rows, right])
        base_nll.append(-p[rows, right])
    kld, same, change, ratio, base_nll = (np.concatenate(x).astype(np.float64) for x in (kld, same, change, ratio, base_nll))
    error = lambda x: float(x.std(ddof=1) / np.sqrt(len(x)))  # noqa: E731
    return {
        "positions": len(kld), "kld": float(kld.mean()), "kld_stderr": error(kld), "kld_median": float(np.median(kld)),
        "kld_p99": float(np.percentile(kld, 99)), "kld_max": float(kld.max()),
        "same_top": float(same.mean()), "same_top_stderr": error(same), "rms_delta_p": float(np.sqrt(change.mean())),
        "base_perplexity": float(np.exp(base_nll.mean())), "perplexity": float(np.exp((base_nll + ratio).mean())),
        "ln_ratio": float(ratio.mean()), "ln_ratio_stderr": error(ratio),
    }


def ours(args):
    command = [args.foreman, "assay", args.model, "--against", args.base, "--data", args.text, "--context",
               str(args.context), "--convention", "llama.cpp", "--max-tokens", str(args.context * args.windows), "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found["divergence"] | {"seconds": found["seconds"], "peak_rss_bytes": found["peak_rss_bytes"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("base", "model", "text"):
        parser.add_argument(name)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--foreman", default="target/release/foreman")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        unpacked = os.path.join(folder, "unpacked.gguf")
        unpack(args.model, unpacked)
        here, there, rounded = ours(args), peer(args, unpacked), peer(args, args.model)
    json.dump({"ours": here, "unpacked": there, "llama.cpp": rounded}, sys.stdout, indent=1)
    print()
    if here["positions"] != there["positions"]:
        sys.exit(f"{here['positions']} positions here, {there['positions']} there")
    for key, most in [("kld", 0.02), ("base_perplexity", 0.001)]:
        if abs(here[key] / there[key] - 1) > most:
            sys.exit(f"{key}: {here[key]} here, {there[key]} there")


main()
