#!/usr/bin/env python3
"""Small tokenizers with reference ids, for the tests: tests/fixtures/tokenizers/.

    pip install tokenizers
    apt-get download r-cran-janeaustenr && dpkg -x r-cran-janeaustenr_*.deb austen
    python scripts/make_tokenizer_fixtures.py austen

Three byte-level BPE tokenizers, trained on a part of a public-domain novel, that differ as the families' do:

    gpt2.json      GPT-2's split pattern, no normalizer                              (llama.cpp pre: gpt-2)
    qwen2.json     NFC, Qwen2's split pattern, byte level without its own pattern    (qwen2)
    smollm.json    single digits, then byte level with GPT-2's pattern               (smollm)

Each has 300 merged tokens over the 256 bytes and two special tokens. `cases.json` holds texts and what the
tokenizers library makes of them: {"texts": [...], "ids": {"gpt2": [[...], ...], ...}, "decoded": {...}}, without
added special tokens. scripts/make_fixtures.py gives gpt2.json to one of its models.
"""
import json
import pathlib
import sys

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from austen_text import novels

ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures"
SPECIAL = ["<|endoftext|>", "<|im_end|>"]
QWEN2_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
               r"|\s+(?!\S)|\s+")
TEXTS = [
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of "
    "a wife.",
    "She'd said: \"We'll see\" -- and THEY'LL never know it's 1814, or 12,345.67!",
    "  two leading spaces, a\ttab,\n\n\n three newlines and trailing spaces   ",
    "naïve café, e\u0301 decomposed, 한국어 日本語 русский عربى",
    "emoji 🙂👩‍🔬 and \u00a0 no-break space; £5 ½ ² Ⅷ",
    "fn main() { let x = [0x1F, 1_000]; println!(\"{x:?}\"); } // ok?",
    "line\r\nwindows\r\n",
    "",
    " ",
]


def trained(text, normalizer, pre_tokenizer):
    tk = Tokenizer(models.BPE())
    if normalizer:
        tk.normalizer = normalizer
    tk.pre_tokenizer = pre_tokenizer
    tk.decoder = decoders.ByteLevel()
    tk.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=256 + 300 + len(SPECIAL), special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    return tk


def main():
    text = novels(sys.argv[1])["Persuasion"][:200_000]
    text += " ".join(f"{n}, {n * 37}" for n in range(1700, 2100))  # so that the tokenizers differ on digits too
    byte_level = pre_tokenizers.ByteLevel
    kinds = {
        "gpt2": trained(text, None, byte_level(add_prefix_space=False, use_regex=True)),
        "qwen2": trained(text, normalizers.NFC(), pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            byte_level(add_prefix_space=False, use_regex=False)])),
        "smollm": trained(text, None, pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True), byte_level(add_prefix_space=False, use_regex=True)])),
    }
    folder = ROOT / "tokenizers"
    folder.mkdir(parents=True, exist_ok=True)
    ids = {name: [tk.encode(t, add_special_tokens=False).ids for t in TEXTS] for name, tk in kinds.items()}
    assert len({json.dumps(i) for i in ids.values()}) == len(ids), "two of the tokenizers do the same"
    for name, tk in kinds.items():
        tk.save(str(folder / f"{name}.json"), pretty=False)
    decoded = {name: [kinds[name].decode(i) for i in of] for name, of in ids.items()}
    (folder / "cases.json").write_text(json.dumps({"texts": TEXTS, "ids": ids, "decoded": decoded}, indent=1) + "\n")
    for file in sorted(folder.iterdir()):
        print(file.relative_to(ROOT), f"{file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
