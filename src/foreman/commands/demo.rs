//! `foreman demo`: a line with a real model, from nothing to a certificate.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::run::work;
use crate::daemon::Mode;
use crate::family;
use crate::fault::Fault;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, ExitKind, Problem};
use crate::foreman::printer::{Printer, Tone};
use crate::foreman::wording::{columns, count, duration, figure, shell_path};
use crate::line::verbs::{self, OnTaken};
use crate::line::{Layout, PartName, ResultRecord, Station, record, shelf};
use crate::units::Bytes;

/// Make a line in a new folder and build the demo part on it
///
/// The demo model is a small mixture of experts of our own, really trained; nothing is downloaded. The recipe profiles
/// its experts, prunes them from eight to six a layer, writes GGUF files in Q8_0 and Q4_0, and scores base and results
/// on a held-out text.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman demo\n  foreman demo --root /tmp/my-line --json")]
pub struct Args {}

/// Folder of the demo model under the root, as the demo recipe names it.
const MODEL: &str = "sources/factoryline-demo-moe";
const DEFAULT_ROOT: &str = "factoryline-demo";

/// What is put on the line: path under the root and contents. In the binary, so that it runs from anywhere.
const FILES: &[(&str, &[u8])] = &[
    ("sources/factoryline-demo-moe/config.json", include_bytes!("../../../recipes/demo/model/config.json")),
    (
        "sources/factoryline-demo-moe/generation_config.json",
        include_bytes!("../../../recipes/demo/model/generation_config.json"),
    ),
    ("sources/factoryline-demo-moe/tokenizer.json", include_bytes!("../../../recipes/demo/model/tokenizer.json")),
    (
        "sources/factoryline-demo-moe/tokenizer_config.json",
        include_bytes!("../../../recipes/demo/model/tokenizer_config.json"),
    ),
    ("sources/factoryline-demo-moe/model.safetensors", include_bytes!("../../../recipes/demo/model/model.safetensors")),
    ("calibration/calibration.jsonl", include_bytes!("../../../recipes/demo/calibration.jsonl")),
    ("calibration/heldout.txt", include_bytes!("../../../recipes/demo/heldout.txt")),
];
const RECIPE: &[u8] = include_bytes!("../../../recipes/demo/demo.alloy.json");

#[derive(Serialize)]
struct Shown {
    root: PathBuf,
    part: String,
    base: Row,
    results: Vec<Row>,
    #[serde(rename = "modelHash")]
    model_hash: String,
    /// Folder of the artifact.
    artifact: PathBuf,
    seconds: f64,
    /// Commands that look further.
    next: Vec<String>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    parameters: u64,
    bytes: u64,
    /// Of the whole file.
    bits_per_weight: f64,
    perplexity: Option<f64>,
    /// Mean KL divergence from the base, nats.
    kld: Option<f64>,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let root = desk.given_root().map_or_else(fresh_root, |root| Ok(root.to_owned()))?;
        let layout = Layout::init(&root)?;
        desk.printer.note(format!("the line is {}", root.display()));
        for (path, contents) in FILES {
            install(&layout.root().join(path), contents)?;
        }
        let wanted = PartName::new("demo").map_err(crate::line::LineError::from)?;
        let (part, _) = verbs::enqueue(&layout, &wanted, RECIPE, OnTaken::Number, false)?;
        work(desk, &layout, Mode::Drain)?;
        let Some(entry) = shelf::find(&layout, part.base())?.into_iter().find(|p| p.station == Station::Finished)
        else {
            return Err(not_finished(&layout, &part, &root));
        };
        let Some(result) = record::result(&layout, Station::Finished, &entry.name)? else {
            return Err(Problem::new(ExitKind::PartFailed, format!("{part} was finished without a result")));
        };
        let shown = shown(&layout, &root, &part, &result)?;
        desk.answer(&shown, words)
    }
}

/// `factoryline-demo`, or the first free `factoryline-demo-2`, ….
fn fresh_root() -> Result<PathBuf, Problem> {
    let names = std::iter::once(DEFAULT_ROOT.to_owned()).chain((2..1000).map(|n| format!("{DEFAULT_ROOT}-{n}")));
    let free = names.map(PathBuf::from).find(|path| !path.exists());
    free.ok_or_else(|| Problem::refused("there are too many demo folders here").hinted("foreman demo --root DIR"))
}

/// Writes a file of ours; one that is there with other contents is somebody's and stays.
fn install(path: &Path, contents: &[u8]) -> Result<(), Problem> {
    let fail = |error: std::io::Error| Problem::io(format!("write {}", path.display()), &error);
    match std::fs::read(path) {
        Ok(there) if there == contents => return Ok(()),
        Ok(_) => {
            return Err(Problem::refused(format!("{} is there already with other contents", path.display()))
                .hinted("choose another folder with --root DIR"));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail(error)),
    }
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).map_err(fail)?;
    std::fs::write(path, contents).map_err(fail)
}

fn not_finished(layout: &Layout, part: &PartName, root: &Path) -> Problem {
    let rework = shelf::find(layout, part.base()).unwrap_or_default();
    let error = rework.iter().find_map(|p| record::error(layout, p.station, &p.name).ok().flatten());
    let why = error.map_or_else(|| "it was stopped".to_owned(), |error| error.error);
    Problem::new(ExitKind::PartFailed, format!("the demo part did not finish: {why}")).hinted(format!(
        "foreman explain {} --root {}",
        part.base(),
        shell_path(root)
    ))
}

fn shown(layout: &Layout, root: &Path, part: &PartName, result: &ResultRecord) -> Result<Shown, Problem> {
    let model = family::open(&layout.root().join(MODEL)).map_err(Fault::from)?;
    let bytes: u64 = model.tensors.files().iter().filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum();
    let parameters = model.spec.parameters();
    let base = Row {
        name: "base".into(),
        parameters,
        bytes,
        bits_per_weight: bytes as f64 * 8.0 / parameters.max(1) as f64,
        perplexity: result.more.get("metrics").and_then(|metrics| metrics.get("baselinePerplexity")?.as_f64()),
        kld: None,
    };
    let artifacts = result.more.get("artifacts").and_then(Value::as_array).cloned().unwrap_or_default();
    let rows: Vec<Row> = artifacts.iter().map(row).collect();
    let at = |verb: &str| format!("foreman {verb} --root {}", shell_path(root));
    let mut next = vec![at(&format!("show {}", part.base())), at(&format!("verify {}", part.base()))];
    if let Some(path) = artifacts.last().and_then(|last| last.get("path")?.as_str()) {
        next.push(format!("foreman inspect {}", shell_path(&result.forged_dir.join(path))));
    }
    Ok(Shown {
        root: root.to_owned(),
        part: part.file_name(),
        base,
        results: rows,
        model_hash: result.model_hash.clone(),
        artifact: result.forged_dir.clone(),
        seconds: result.elapsed_s,
        next,
    })
}

/// One artifact of `result.json`.
fn row(artifact: &Value) -> Row {
    let number = |key: &str| artifact.get(key).and_then(Value::as_u64).unwrap_or(0);
    let real = |key: &str| artifact.get(key).and_then(Value::as_f64);
    let text = |key: &str| artifact.get(key).and_then(Value::as_str).unwrap_or("?").to_owned();
    Row {
        name: text("type"),
        parameters: number("parameters"),
        bytes: number("bytes"),
        bits_per_weight: real("bits_per_weight").unwrap_or(0.0),
        perplexity: real("perplexity"),
        kld: real("kld"),
    }
}

fn words(shown: &Shown, printer: &mut Printer) -> Result<(), Problem> {
    let cells = |row: &Row| {
        let perplexity = row.perplexity.map_or_else(|| "-".into(), figure);
        let bits = format!("{:.2}", row.bits_per_weight);
        let kld = row.kld.map_or_else(|| "-".into(), |kld| format!("{kld:.4}"));
        vec![row.name.clone(), count(row.parameters), Bytes(row.bytes).to_string(), bits, perplexity, kld]
    };
    let rows: Vec<Vec<String>> = std::iter::once(&shown.base).chain(&shown.results).map(cells).collect();
    printer.line("")?;
    for (index, line) in
        columns("", &["", "PARAMETERS", "BYTES", "BITS/WEIGHT", "PERPLEXITY", "KLD"], &rows).iter().enumerate()
    {
        let line = if index == 0 { printer.paint(Tone::Heading, line) } else { line.clone() };
        printer.line(line)?;
    }
    printer.line("")?;
    printer.line(format!("model hash  {}", shown.model_hash))?;
    printer.line(format!("artifact    {}", shown.artifact.display()))?;
    printer.line(format!("took        {}", duration(shown.seconds)))?;
    printer.line("look further:")?;
    for command in &shown.next {
        printer.line(format!("  {}", printer.paint(Tone::Aside, command)))?;
    }
    Ok(())
}
