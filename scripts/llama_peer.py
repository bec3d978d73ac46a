#!/usr/bin/env python3
"""llama.cpp doing our work, for comparison: quantize, perplexity, greedy continuation. One JSON object on stdout.

    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON" \\
        pip install llama-cpp-python==0.3.36                 (leave AVX-512 out on a CPU that lacks it)

    python scripts/llama_peer.py quantize FROM.gguf TO.gguf TYPE [--imatrix FILE.gguf]     (see make_imatrix.py)
    python scripts/llama_peer.py perplexity MODEL.gguf TEXT [--context 512] [--max-windows N]
    python scripts/llama_peer.py greedy MODEL.gguf PROMPT [--tokens 32]
    (each: [--threads 2])

`perplexity` counts as llama.cpp's own tool does: windows of the context length without overlap; each is evaluated whole
(its first token replaced by BOS for a vocabulary that wants one) and the tokens of its second half are scored. An own
build with GGML_NATIVE=ON is known to crash on block formats on CPUs with AMX, hence the flags above.
"""
import argparse
import ctypes
import json
import math
import resource
import sys
import time

import llama_cpp
import numpy as np

FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12,
    "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32,
    "TQ1_0": 36, "TQ2_0": 37, "MXFP4": 38, "Q2_0": 41,
}


def importance(path):
    """The mean squares of an imatrix file as the array that llama.cpp takes, ended by an entry without a name."""
    import gguf
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    entries = []
    for name in sorted(name for name in found if name.endswith(".in_sum2")):
        layer = name.removesuffix(".in_sum2")
        means = np.ascontiguousarray(found[name] / found[f"{layer}.counts"].reshape(-1, 1), np.float32).ravel()
        entries.append((layer, means))
    pointer = lambda means: means.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    Entry = llama_cpp.llama_model_imatrix_data
    array = (Entry * (len(entries) + 1))(*[Entry(n.encode(), pointer(m), m.size) for n, m in entries])
    return array, entries


def quantize(args):
    wanted = llama_cpp.llama_model_quantize_default_params()
    wanted.ftype, wanted.nthread = FILE_TYPES[args.type], args.threads
    if args.imatrix:
        # The entries' memory must live as long as the call.
        array, _entries = importance(args.imatrix)
        wanted.imatrix = ctypes.cast(array, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    started = time.perf_counter()
    status = llama_cpp.llama_model_quantize(args.source.encode(), args.target.encode(), ctypes.byref(wanted))
    if status:
        sys.exit(f"llama.cpp could not quantize {args.source} (status {status})")
    return {"seconds": time.perf_counter() - started}


def window_nll(model, window, first):
    """Nats of the tokens window[first + 1:], each given everything before it in the window."""
    model.reset()
    model.eval(window)
    logits = np.asarray(model.scores[first:len(window) - 1], np.float64)
    top = logits.max(1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(1))
    return log_sum - logits[np.arange(len(logits)), window[first + 1:]]


def perplexity(args):
    model = llama_cpp.Llama(args.model, n_ctx=args.context, n_batch=args.context, n_threads=args.threads,
                            n_threads_batch=args.threads, logits_all=True, verbose=False)
    bos = llama_cpp.llama_vocab_get_add_bos(llama_cpp.llama_model_get_vocab(model._model.model))
    with open(args.text, "rb") as file:
        ids = model.tokenize(file.read(), add_bos=bool(bos), special=False)
    windows = [ids[i:i + args.context] for i in range(0, len(ids) - args.context + 1, args.context)]
    windows = windows[:args.max_windows or None]
    if not windows:
        sys.exit(f"{args.text} has fewer than {args.context} tokens")
    started, scores = time.perf_counter(), []
    for window in windows:
        window = [model.token_bos(), *window[1:]] if bos else window
        scores.append(window_nll(model, list(window), args.context // 2))
    seconds, every = time.perf_counter() - started, np.concatenate(scores)
    return {"perplexity": math.exp(every.mean()), "nll": every.mean(),
            "nll_stderr": every.std(ddof=1) / math.sqrt(every.size), "tokens": len(windows) * args.context,
            "scored": every.size, "context": args.context, "seconds": seconds,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def greedy(args):
    model = llama_cpp.Llama(args.model, n_ctx=1024, n_threads=args.threads, verbose=False)
    prompt, chosen = model.tokenize(args.prompt.encode(), add_bos=False, special=True), []
    for token in model.generate(prompt, temp=0.0):
        chosen.append(token)
        if len(chosen) == args.tokens:
            break
    return {"prompt_ids": prompt, "ids": chosen, "text": model.detokenize(chosen).decode("utf-8", "replace")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(required=True)

    def verb(do, *places):
        sub = verbs.add_parser(do.__name__)
        sub.set_defaults(do=do)
        sub.add_argument("--threads", type=int, default=2)
        for place in places:
            sub.add_argument(place)
        return sub

    sub = verb(quantize, "source", "target")
    sub.add_argument("type", choices=FILE_TYPES)
    sub.add_argument("--imatrix")
    sub = verb(perplexity, "model", "text")
    sub.add_argument("--context", type=int, default=512)
    sub.add_argument("--max-windows", type=int, default=0)
    verb(greedy, "model", "prompt").add_argument("--tokens", type=int, default=32)
    args = parser.parse_args()
    print(json.dumps(args.do(args), default=float))


if __name__ == "__main__":
    main()
