//! `foreman inspect`: what a model is, from its headers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::family::{self, Format, OpenModel};
use crate::fault::Fault;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, Problem};
use crate::foreman::printer::Printer;
use crate::foreman::subject::find_model;
use crate::foreman::wording::{columns, count};
use crate::units::Bytes;

/// Show what a model is: family, layers, experts, parameters, bytes by type
///
/// Reads headers only, however large the model is.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman inspect models/my-model\n  foreman inspect out.Q8_0.gguf --json")]
pub struct Args {
    /// Hugging Face directory, GGUF file, entry of [sources] or hub id in the local cache
    model: String,
}

#[derive(Serialize)]
struct Inspection {
    path: PathBuf,
    format: Format,
    family: &'static str,
    layers: usize,
    hidden: usize,
    vocab: usize,
    max_positions: usize,
    /// Output projection shares the embedding's tensor.
    tied: bool,
    experts: Option<Experts>,
    parameters: u64,
    /// Parameters one token uses.
    active_parameters: u64,
    tensors: usize,
    /// How matrices are packed that the files do not hold as plain numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    packing: Option<String>,
    /// Whole files, headers and metadata included.
    file_bytes: u64,
    /// Bits of the whole files per parameter.
    bits_per_weight: f64,
    by_type: BTreeMap<String, Share>,
    files: Vec<File>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Experts {
    /// Of the layer that has most.
    per_layer: usize,
    /// One token uses.
    used: usize,
    /// Layers that have experts.
    layers: usize,
}

#[derive(Default, Serialize)]
struct Share {
    tensors: usize,
    elements: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct File {
    name: String,
    bytes: u64,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let path = find_model(desk, &self.model)?;
        let model = family::open(&path).map_err(Fault::from)?;
        let inspection = inspect(&model)?;
        desk.answer(&inspection, words)
    }
}

fn inspect(model: &OpenModel) -> Result<Inspection, Problem> {
    let mut by_type: BTreeMap<String, Share> = BTreeMap::new();
    for meta in model.files_tensors() {
        let share = by_type.entry(meta.dtype.to_string()).or_default();
        share.tensors += 1;
        share.elements += meta.elems() as u64;
        share.bytes += meta.bytes;
    }
    let mut files = Vec::new();
    for path in model.tensors.files() {
        let size =
            std::fs::metadata(path).map_err(|error| Problem::io(format!("look at {}", path.display()), &error))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push(File { name, bytes: size.len() });
    }
    let file_bytes = files.iter().map(|file| file.bytes).sum();
    let parameters = model.spec.parameters();
    let layers = model.spec.blocks.iter().filter(|block| block.moe().is_some()).count();
    Ok(Inspection {
        path: model.path.clone(),
        format: model.format,
        family: model.spec.family,
        layers: model.spec.blocks.len(),
        hidden: model.spec.hidden,
        vocab: model.spec.vocab,
        max_positions: model.spec.max_positions,
        tied: model.spec.tied,
        experts: model.spec.experts().map(|(per_layer, used)| Experts { per_layer, used, layers }),
        parameters,
        active_parameters: model.spec.active_parameters(),
        tensors: model.files_tensors().len(),
        packing: model.packing().map(str::to_owned),
        file_bytes,
        bits_per_weight: file_bytes as f64 * 8.0 / parameters.max(1) as f64,
        by_type,
        files,
        warnings: model.warnings.clone(),
    })
}

fn words(found: &Inspection, printer: &mut Printer) -> Result<(), Problem> {
    let mut fact = |name: &str, value: String| printer.line(format!("{name:<12}{value}"));
    let format = match found.format {
        Format::HfDir => "Hugging Face directory",
        Format::Gguf => "GGUF file",
    };
    fact("model", format!("{} ({format})", found.path.display()))?;
    fact("family", found.family.to_owned())?;
    let head = if found.tied { "tied head" } else { "own head" };
    fact("shape", format!("{} layers, {} wide, vocabulary {}, {head}", found.layers, found.hidden, found.vocab))?;
    fact("context", format!("{} positions", found.max_positions))?;
    if let Some(experts) = &found.experts {
        let (all, used, layers) = (experts.per_layer, experts.used, experts.layers);
        fact("experts", format!("{all} per layer, {used} used by a token, in {layers} layers"))?;
    }
    let active = match found.active_parameters == found.parameters {
        true => String::new(),
        false => format!(", {} used by a token", count(found.active_parameters)),
    };
    fact("parameters", format!("{}{active}", count(found.parameters)))?;
    let bits = found.bits_per_weight;
    fact("size", format!("{} in {} file(s), {bits:.3} bits per weight", Bytes(found.file_bytes), found.files.len()))?;
    if let Some(packing) = &found.packing {
        fact("packed", packing.clone())?;
    }
    printer.line("")?;
    let cells = |(name, share): (&String, &Share)| {
        vec![name.clone(), share.tensors.to_string(), count(share.elements), Bytes(share.bytes).to_string()]
    };
    let rows: Vec<_> = found.by_type.iter().map(cells).collect();
    for line in columns("", &["TYPE", "TENSORS", "VALUES", "BYTES"], &rows) {
        printer.line(line)?;
    }
    for warning in &found.warnings {
        printer.warn(warning);
    }
    Ok(())
}
