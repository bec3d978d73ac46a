//! `foreman verify`: does an artifact still hold what its result says?

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::family;
use crate::fault::Fault;
use crate::foreman::board::one_part;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, ExitKind, Problem};
use crate::foreman::printer::Tone;
use crate::foreman::wording::columns;
use crate::line::record;
use crate::model::{FileHash, MANIFEST_FILE, Manifest, hash_file};
use crate::units::{Bytes, Sha};

/// Hash an artifact again and open its models, and compare with what its result says
///
/// A part is compared with its result sidecar, a folder with its manifest.json. Ends with 5 when something differs.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman verify my-part\n  foreman verify /srv/models/my-model")]
pub struct Args {
    /// A finished part, or a folder with a manifest.json
    #[arg(value_name = "PART|DIR")]
    subject: String,
}

#[derive(Serialize)]
struct Verification {
    subject: String,
    artifact: PathBuf,
    ok: bool,
    #[serde(rename = "modelHash")]
    model_hash: Option<String>,
    checks: Vec<Check>,
}

#[derive(Serialize)]
struct Check {
    what: String,
    ok: bool,
    /// Size and hash that were found, or what is wrong.
    detail: String,
}

impl Check {
    fn new(what: impl Into<String>, found: Result<String, String>) -> Check {
        let ok = found.is_ok();
        Check { what: what.into(), ok, detail: found.unwrap_or_else(|wrong| wrong) }
    }
}

/// What somebody promised about a folder.
struct Promise {
    folder: PathBuf,
    files: Vec<FileHash>,
    model_hash: Option<String>,
    /// Problems of the promise itself.
    checks: Vec<Check>,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let promise = match Path::new(&self.subject).is_dir() {
            true => promised_by_manifest(Path::new(&self.subject))?,
            false => promised_by_result(desk, &self.subject)?,
        };
        let mut checks = promise.checks;
        checks.extend(promise.files.iter().map(|file| check_file(&promise.folder, file)));
        let again = Manifest::of(promise.files.clone()).model_hash;
        let composed = match again == promise.model_hash {
            true => Ok(again.clone().unwrap_or_else(|| "no weights".into())),
            false => Err(format!("{} was promised, the files give {}", shown(&promise.model_hash), shown(&again))),
        };
        checks.push(Check::new("model hash", composed));
        checks.extend(check_models(&promise.folder, &promise.files));
        let ok = checks.iter().all(|check| check.ok);
        let document = Verification {
            subject: self.subject.clone(),
            artifact: promise.folder,
            ok,
            model_hash: promise.model_hash,
            checks,
        };
        desk.answer(&document, |document, printer| {
            let mark = |check: &Check| if check.ok { "ok" } else { "WRONG" }.to_owned();
            let rows: Vec<Vec<String>> = document
                .checks
                .iter()
                .map(|check| vec![mark(check), check.what.clone(), check.detail.clone()])
                .collect();
            for line in columns("", &[], &rows) {
                printer.line(line)?;
            }
            let artifact = document.artifact.display();
            let verdict = match document.ok {
                true => printer.paint(Tone::Good, &format!("{artifact} is what its result says")),
                false => printer.paint(Tone::Bad, &format!("{artifact} is not what its result says")),
            };
            printer.line(verdict)
        })?;
        Ok(if ok { ExitKind::Ok } else { ExitKind::PartFailed })
    }
}

fn shown(hash: &Option<String>) -> String {
    hash.clone().unwrap_or_else(|| "no hash".into())
}

fn promised_by_manifest(folder: &Path) -> Result<Promise, Problem> {
    let missing = !folder.join(MANIFEST_FILE).exists();
    let manifest = Manifest::read(folder).map_err(|error| {
        let problem = Problem::from(Fault::from(error));
        match missing {
            true => problem.as_kind(ExitKind::NotFound).hinted("name a finished part, or an artifact folder"),
            false => problem,
        }
    })?;
    let (files, model_hash) = (manifest.file_hashes, manifest.model_hash);
    Ok(Promise { folder: folder.to_owned(), files, model_hash, checks: Vec::new() })
}

fn promised_by_result(desk: &Desk, name: &str) -> Result<Promise, Problem> {
    let layout = desk.line()?;
    let part = one_part(&layout, name)?;
    let Some(result) = record::result(&layout, part.station, &part.name)? else {
        return Err(Problem::not_found(format!("{} stands in {} and has no result", part.name, part.station))
            .hinted(desk.command("explain") + " " + part.name.base()));
    };
    let mut checks = Vec::new();
    let mut files = Vec::new();
    for file in &result.file_hashes {
        match file.sha256.parse() {
            Ok(sha256) => files.push(FileHash { filename: file.filename.clone(), sha256, size: file.size }),
            Err(error) => checks.push(Check::new(&file.filename, Err(format!("the result's hash: {error}")))),
        }
    }
    if let Some(promised) = result.more.get("alloyHash").and_then(Value::as_str) {
        checks.push(Check::new(part.name.file_name(), check_recipe(&part.path, promised)));
    }
    add_manifest(&result.forged_dir, &mut files, &mut checks);
    if files.is_empty() {
        checks.push(Check::new("files", Err("the result lists none".into())));
    }
    let model_hash = Some(result.model_hash).filter(|hash| !hash.is_empty());
    Ok(Promise { folder: result.forged_dir, files, model_hash, checks })
}

/// The recipe that stands beside the result is the one that was built.
fn check_recipe(path: &Path, promised: &str) -> Result<String, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    let found = Sha::of(&bytes).tagged();
    if found == promised { Ok(found) } else { Err(format!("{promised} was built, this recipe is {found}")) }
}

/// The manifest of the artifact promises more files than the result does; where both do, they must agree.
fn add_manifest(folder: &Path, files: &mut Vec<FileHash>, checks: &mut Vec<Check>) {
    if !folder.join(MANIFEST_FILE).exists() {
        return;
    }
    let manifest = match Manifest::read(folder) {
        Ok(manifest) => manifest,
        Err(error) => return checks.push(Check::new(MANIFEST_FILE, Err(Fault::from(error).one_line()))),
    };
    for promised in manifest.file_hashes {
        match files.iter().find(|file| file.filename == promised.filename) {
            Some(file) if *file == promised => {}
            Some(_) => {
                let what = format!("{MANIFEST_FILE}: {}", promised.filename);
                checks.push(Check::new(what, Err("it promises another file than the result does".into())));
            }
            None => files.push(promised),
        }
    }
}

fn check_file(folder: &Path, promised: &FileHash) -> Check {
    let found = match hash_file(&folder.join(&promised.filename)) {
        Err(error) => Err(Fault::from(error).one_line()),
        Ok((_, size)) if size != promised.size => Err(format!("{size} bytes, {} were promised", promised.size)),
        Ok((sha, _)) if sha != promised.sha256 => Err(format!("hash {sha}, {} was promised", promised.sha256)),
        Ok((sha, size)) => Ok(format!("{}  {}", &sha.hex()[..12], Bytes(size))),
    };
    Check::new(&promised.filename, found)
}

/// Opens every model among the files: its tensors must be there in the shapes its config asks for.
fn check_models(folder: &Path, files: &[FileHash]) -> Vec<Check> {
    let mut models = BTreeSet::new();
    for file in files {
        let path = Path::new(&file.filename);
        if path.extension().is_some_and(|extension| extension == "gguf") {
            models.insert(path.to_owned());
        } else if path.extension().is_some_and(|extension| extension == "safetensors") {
            models.insert(path.parent().unwrap_or(Path::new("")).to_owned());
        }
    }
    let open = |relative: PathBuf| {
        let what =
            if relative.as_os_str().is_empty() { "model".into() } else { format!("model {}", relative.display()) };
        let opened = family::open(&folder.join(&relative));
        let found =
            opened.map(|model| format!("opens: {} tensors of {}", model.stored.metas().len(), model.spec.family));
        Check::new(what, found.map_err(|error| Fault::from(error).one_line()))
    };
    models.into_iter().map(open).collect()
}
