//! Writes the logits of a model: `logits MODEL IDS.json OUT`. IDS holds lists of token ids of one length; OUT becomes
//! f32 values, little-endian, `[sequences, length, vocabulary]`. Products are f32.
//!
//! `scripts/ct_check.py` compares them with those of transformers.

use factoryline::engine::matmul::Kernel;
use factoryline::engine::{LogitChunk, Observer, PassOptions, Scoring, run_pass};
use factoryline::family;

struct Collect {
    vocab: usize,
    rows: Vec<f32>,
}

impl Observer for Collect {
    fn wants_logits(&self) -> bool {
        true
    }

    fn logits(&mut self, chunk: &LogitChunk<'_>) {
        let end = (chunk.first_position + chunk.rows) * self.vocab;
        self.rows.resize(self.rows.len().max(end), f32::NAN);
        for (row, values) in chunk.values.chunks_exact(chunk.vocab.len()).enumerate() {
            let start = (chunk.first_position + row) * self.vocab + chunk.vocab.start;
            self.rows[start..start + values.len()].copy_from_slice(values);
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, ids, out] = &arguments[..] else { return Err("usage: logits MODEL IDS.json OUT".into()) };
    let model = family::open(model.as_ref())?;
    let mut ids: Vec<Vec<u32>> = serde_json::from_slice(&std::fs::read(ids)?)?;
    // The last token of a sequence is scored too when another follows.
    ids.iter_mut().for_each(|ids| ids.push(0));
    let mut collect = Collect { vocab: model.spec.vocab, rows: Vec::new() };
    let options = PassOptions { kernel: Some(Kernel::Portable), ..PassOptions::default() };
    run_pass(&model, &ids, Scoring::All, &options, &mut [&mut collect], &|_| ())?;
    let bytes: Vec<u8> = collect.rows.iter().flat_map(|value| value.to_le_bytes()).collect();
    std::fs::write(out, bytes)?;
    Ok(())
}
