#!/usr/bin/env python3
"""An importance matrix as llama.cpp's imatrix tool makes one: mean squares of the inputs of every linear layer.

    pip install torch transformers gguf numpy
    python scripts/make_imatrix.py MODEL_DIR TEXT OUT.gguf [--sequences 32] [--length 512]

For dense models of the llama and qwen layouts. The text is cut into SEQUENCES of LENGTH tokens from its beginning, as a
`quant` stage cuts its calibration text, so that both see the same tokens. llama_peer.py quantize --imatrix reads the file,
and so does the key `importanceMatrix`.
"""
import argparse
import re

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for place in ("model", "text", "out"):
        parser.add_argument(place)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    args = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    with open(args.text, encoding="utf-8") as file:
        ids = tokenizer(file.read(), add_special_tokens=False).input_ids
    sums, counts = {}, {}

    def watch(name):
        def hook(_module, inputs):
            x = inputs[0].double()
            sums[name] = sums.get(name, 0) + (x * x).reshape(-1, x.shape[-1]).sum(0)
            counts[name] = counts.get(name, 0) + x[..., 0].numel()
        return hook

    for path, module in model.named_modules():
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", path)
        if found and found[2] in NAMES:
            module.register_forward_pre_hook(watch(f"blk.{found[1]}.{NAMES[found[2]]}.weight"))
    with torch.no_grad():
        for at in range(args.sequences):
            model.model(torch.tensor([ids[at * args.length:(at + 1) * args.length]]))
    writer = gguf.GGUFWriter(args.out, arch="", endianess=gguf.GGUFEndian.LITTLE)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [args.text])
    writer.add_uint32("imatrix.chunk_count", args.sequences)
    writer.add_uint32("imatrix.chunk_size", args.length)
    for name in sorted(sums):
        writer.add_tensor(f"{name}.in_sum2", sums[name].numpy().astype(np.float32)[None])
        writer.add_tensor(f"{name}.counts", np.array([[counts[name]]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{len(sums)} layers, {args.sequences * args.length} tokens")


if __name__ == "__main__":
    main()
