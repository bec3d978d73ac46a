//! How a text is split before byte-pair encoding: the one thing a GGUF file says only by a name.
//!
//! The table below pairs llama.cpp's names (`tokenizer.ggml.pre`) with the `pre_tokenizer` of `tokenizer.json` that
//! splits the same way. It is used in both directions. A wrong name costs quality without any error, so a splitting
//! that is not in the table is refused, never guessed.

use serde_json::{Value, json};

/// One way of splitting.
pub(super) struct Splitting {
    /// llama.cpp's name.
    pub pre: &'static str,
    /// Split patterns that come before the byte mapping, in order.
    steps: &'static [Step],
    /// The byte mapping splits by GPT-2's pattern itself.
    gpt2_pattern: bool,
    /// A word that is a token is taken whole, before any merge.
    pub ignore_merges: bool,
    /// The text is brought into composed form (NFC) first.
    nfc: bool,
}

enum Step {
    /// Every digit alone.
    Digits,
    Pattern(&'static str),
}

/// GPT-2's pattern written out, as some files do instead of asking the byte mapping for it.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const ONE_DIGIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const THREE_DIGITS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// As [`ONE_DIGIT`], with combining marks among the letters.
const ONE_DIGIT_MARKS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words of the alphabets with capitals, and a space before.
const CASED_WORDS: &str = concat!(
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-",
    r"ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ",
    r"-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
);

pub(super) static SPLITTINGS: [Splitting; 9] = [
    Splitting { pre: "smollm", steps: &[Step::Digits], gpt2_pattern: true, ignore_merges: false, nfc: false },
    Splitting { pre: "gpt-2", steps: &[], gpt2_pattern: true, ignore_merges: false, nfc: false },
    Splitting { pre: "gpt-2", steps: &[Step::Pattern(GPT2)], gpt2_pattern: false, ignore_merges: false, nfc: false },
    Splitting {
        pre: "qwen2",
        steps: &[Step::Pattern(ONE_DIGIT)],
        gpt2_pattern: false,
        ignore_merges: false,
        nfc: true,
    },
    // GPT-2's splitting of composed text.
    Splitting { pre: "olmo", steps: &[], gpt2_pattern: true, ignore_merges: false, nfc: true },
    Splitting {
        pre: "qwen35",
        steps: &[Step::Pattern(ONE_DIGIT_MARKS)],
        gpt2_pattern: false,
        ignore_merges: false,
        nfc: true,
    },
    Splitting {
        pre: "deepseek-llm",
        steps: &[
            Step::Pattern("[\r\n]"),
            Step::Pattern(CASED_WORDS),
            Step::Pattern("\\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+"),
            Step::Pattern(r"\s+$"),
            Step::Pattern("[一-龥ࠀ-一가-\u{d7ff}]+"),
            Step::Digits,
        ],
        gpt2_pattern: false,
        ignore_merges: false,
        nfc: false,
    },
    Splitting {
        pre: "llama-bpe",
        steps: &[Step::Pattern(THREE_DIGITS)],
        gpt2_pattern: false,
        ignore_merges: true,
        nfc: false,
    },
    // The same pattern with ordinary merging.
    Splitting {
        pre: "dbrx",
        steps: &[Step::Pattern(THREE_DIGITS)],
        gpt2_pattern: false,
        ignore_merges: false,
        nfc: false,
    },
];

/// Other names under which llama.cpp splits in one of these ways.
const ALIASES: [(&str, &str); 7] = [
    ("llama3", "llama-bpe"),
    ("llama-v3", "llama-bpe"),
    ("smaug-bpe", "dbrx"),
    ("starcoder", "smollm"),
    ("refact", "smollm"),
    ("deepseek-r1-qwen", "qwen2"),
    ("phi-2", "gpt-2"),
];

/// The names this build knows, for messages.
pub(super) fn known() -> String {
    let mut names: Vec<&str> = SPLITTINGS.iter().map(|splitting| splitting.pre).collect();
    names.dedup();
    names.join(", ")
}

/// The splitting llama.cpp calls `pre`.
pub(super) fn named(pre: &str) -> Option<&'static Splitting> {
    let pre = ALIASES.iter().find(|(alias, _)| *alias == pre).map_or(pre, |(_, name)| name);
    SPLITTINGS.iter().find(|splitting| splitting.pre == pre)
}

/// The splitting of a parsed `tokenizer.json`; the error says which part of the file is not known.
pub(super) fn recognise(tokenizer: &Value) -> Result<&'static str, String> {
    let nfc = match &tokenizer["normalizer"] {
        Value::Null => false,
        normalizer if normalizer["type"] == "NFC" => true,
        normalizer if normalizer["type"] == "Sequence" && normalizer["normalizers"] == json!([]) => false,
        other => return Err(format!("the normalizer {}", other["type"])),
    };
    let pre_tokenizer = &tokenizer["pre_tokenizer"];
    let parts: Vec<&Value> = match pre_tokenizer["pretokenizers"].as_array() {
        Some(parts) => parts.iter().collect(),
        None => vec![pre_tokenizer],
    };
    let ignore_merges = tokenizer["model"]["ignore_merges"].as_bool().unwrap_or(false);
    let same = |splitting: &&Splitting| splitting.ignore_merges == ignore_merges && splitting.has(&parts);
    let exact = SPLITTINGS.iter().filter(same).find(|splitting| splitting.nfc == nfc);
    match exact.or_else(|| SPLITTINGS.iter().find(same)) {
        // Composed form is not part of what llama.cpp does under any name; files that ask for it are qwen2's.
        Some(splitting) if !nfc || splitting.nfc => Ok(splitting.pre),
        Some(splitting) => Err(format!("the normalizer NFC together with the pre_tokenizer of {}", splitting.pre)),
        None => Err(format!("the pre_tokenizer {pre_tokenizer} with ignore_merges {ignore_merges}")),
    }
}

impl Splitting {
    /// Whether the parts of a `pre_tokenizer` are this splitting.
    fn has(&self, parts: &[&Value]) -> bool {
        let Some((bytes, steps)) = parts.split_last() else { return false };
        bytes["type"] == "ByteLevel"
            && bytes["add_prefix_space"] == false
            && bytes["use_regex"].as_bool().unwrap_or(true) == self.gpt2_pattern
            && steps.len() == self.steps.len()
            && steps.iter().zip(self.steps).all(|(part, step)| match step {
                Step::Digits => part["type"] == "Digits" && part["individual_digits"] == true,
                Step::Pattern(pattern) => {
                    part["type"] == "Split"
                        && part["pattern"]["Regex"] == *pattern
                        && part["behavior"] == "Isolated"
                        && part["invert"] != true
                }
            })
    }

    pub fn pre_tokenizer(&self) -> Value {
        let steps = self.steps.iter().map(|step| match step {
            Step::Digits => json!({"type": "Digits", "individual_digits": true}),
            Step::Pattern(pattern) => {
                json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
            }
        });
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": self.gpt2_pattern});
        json!({"type": "Sequence", "pretokenizers": steps.chain([bytes]).collect::<Vec<_>>()})
    }

    pub fn normalizer(&self) -> Value {
        if self.nfc { json!({"type": "NFC"}) } else { Value::Null }
    }
}
