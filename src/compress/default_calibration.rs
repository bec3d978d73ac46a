//! The text a calibrated quantization looks at when its recipe names none: half prose, half code, part of the binary.
//! Where it comes from is told in `recipes/calibration/README.md`.

use sha2::{Digest, Sha256};

use super::Corpus;
use crate::units::Sha;

/// Public-domain and own prose.
const PROSE: &str = include_str!("../../recipes/calibration/prose.txt");
/// Own code in ten languages.
const CODE: &str = include_str!("../../recipes/calibration/code.txt");

/// A calibration corpus with the name and the digest every result states.
#[derive(Clone, Debug, PartialEq)]
pub struct CalibrationMix {
    pub name: &'static str,
    /// Prose and code; [`sequences`](super::sequences) takes a piece of each in turn.
    pub corpus: Corpus,
    /// Of the texts, one after the other.
    pub sha256: Sha,
}

/// The mix of this build. Another text has another name.
pub fn default_calibration() -> CalibrationMix {
    let texts = vec![PROSE.to_owned(), CODE.to_owned()];
    let digest = Sha256::new().chain_update(PROSE).chain_update(CODE).finalize();
    CalibrationMix {
        name: "factoryline-mix-1",
        corpus: Corpus { texts, is_plain_text: true },
        sha256: Sha(digest.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_mix_is_this_text() {
        let mix = default_calibration();
        insta::assert_snapshot!(format!("{} {}", mix.name, mix.sha256.hex()), @"factoryline-mix-1 fcaa645839acc074df4c7566454b21c184cd02f8992e21c26132ec59561b6474");
        let lengths: Vec<usize> = mix.corpus.texts.iter().map(String::len).collect();
        assert!(lengths.iter().all(|bytes| (80_000..120_000).contains(bytes)), "{lengths:?}");
    }
}
