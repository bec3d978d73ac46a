//! `package`: lays out the artifact folder: the files that ship, as hard links, so that nothing is stored twice.
//!
//! The documents that tell of the result (manifest, executed recipe, model card) are written when everything is
//! measured and judged: see `worker`.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Admission, Artifact, Place, Product, Span, Stage, StageContext};
use crate::fault::{Fault, Outcome};
use crate::recipe::{Finding, PlannedStage, Predicted, StageSpec};
use crate::units::Bytes;

pub(super) struct Package;

/// The artifact folder below the work folder.
pub const ARTIFACT_DIR: &str = "artifact";
/// The format of a package stage that the recipe does not write but the plan adds.
const EVERYTHING: &str = "auto";

impl Stage for Package {
    fn type_name(&self) -> &'static str {
        "package"
    }

    fn summary(&self) -> &'static str {
        "put the artifact together: model files, manifest, executed recipe, model card"
    }

    fn plan(&self, admission: &mut Admission<'_>, spec: &StageSpec, place: Place) -> PlannedStage {
        let StageSpec::Package(package) = spec else { return place.planned(spec) };
        let key = place.key("format");
        match package.format.as_str() {
            "gguf" if !writes(admission, "gguf") => {
                let finding = Finding::error(key, "no quant stage before it writes a GGUF file");
                admission.report(finding.hint("add a quant stage, or package safetensors"));
            }
            "safetensors" if !admission.is_pruned && !writes(admission, "safetensors") => {
                let finding = Finding::error(key, "no stage before it changes the model's safetensors");
                admission
                    .report(finding.hint("add a prune, expert-prune, context-extend or quant stage, or package gguf"));
            }
            "mlx" if !writes(admission, "mlx") => {
                let finding = Finding::error(key, "no quant stage before it writes a directory for MLX");
                admission.report(finding.hint("add a quant stage of format mlx, or package safetensors"));
            }
            EVERYTHING if admission.artifacts.is_empty() && !admission.is_pruned => {
                admission.report(Finding::error(key, "no stage before it makes an artifact").hint("add a quant stage"));
            }
            "gguf" | "safetensors" | "mlx" | EVERYTHING => {}
            other => {
                let finding =
                    Finding::error(key, format!("this build packages gguf, safetensors and mlx, not {other:?}"));
                admission.report(finding.hint("say gguf, safetensors, mlx or auto"));
            }
        }
        admission.is_packaged = true;
        finish(place.planned(spec), &package.format)
    }

    fn run(&self, cx: &StageContext<'_>, _planned: &PlannedStage, span: Span<'_>) -> Outcome<Product> {
        let dir = cx.fresh_dir(ARTIFACT_DIR)?;
        let mut files = Vec::new();
        let shipping = cx.shipping();
        for artifact in &shipping {
            span.at(0.1, "lay out the artifact");
            let from = cx.work.join(&artifact.path);
            if from.is_dir() {
                let mut names = Vec::new();
                list(&from, Path::new(""), &mut names)?;
                // One directory is the artifact; several lie beside each other under their names.
                let below = if shipping.len() > 1 { from.file_name().map(Path::new) } else { None };
                for name in names {
                    let to = below.map_or_else(|| name.clone(), |below| below.join(&name));
                    place_file(&from.join(&name), &dir, &to)?;
                    files.push(to);
                }
            } else {
                let name = PathBuf::from(from.file_name().unwrap_or_default());
                files.push(place_file(&from, &dir, &name)?);
            }
            if let Some(archive) = &artifact.archive {
                let name = PathBuf::from(archive.file_name().unwrap_or_default());
                files.push(place_file(&cx.work.join(archive), &dir, &name)?);
            }
        }
        // Evidence of how a prune was decided travels with every artifact.
        let evidence = cx.importance.iter().cloned().chain(cx.metadata());
        for from in evidence {
            let name = PathBuf::from(from.file_name().unwrap_or_default());
            if from.is_file() && !dir.join(&name).exists() {
                files.push(place_file(&from, &dir, &name)?);
            }
        }
        let bytes: u64 = shipping.iter().map(|a| a.bytes).sum();
        Ok(Product {
            summary: Some(format!("{} files, {}", files.len(), Bytes(bytes))),
            files: files.into_iter().map(|name| Path::new(ARTIFACT_DIR).join(name)).collect(),
            packaged: Some(ARTIFACT_DIR.into()),
            ..Product::default()
        })
    }
}

/// Whether a quant stage before this one writes the format.
fn writes(admission: &Admission<'_>, format: &str) -> bool {
    admission.artifacts.iter().any(|artifact| artifact.format == format)
}

fn finish(planned: PlannedStage, format: &str) -> PlannedStage {
    PlannedStage {
        title: format!("package {format}"),
        outputs: vec![ARTIFACT_DIR.into()],
        predicted: Predicted { seconds: 0.1, ..Predicted::default() },
        ..planned
    }
}

/// The package stage that a recipe with artifacts but without one gets.
pub(super) fn implied(admission: &mut Admission<'_>, place: Place) -> PlannedStage {
    let text = serde_json::json!({ "type": "package", "format": EVERYTHING });
    admission.report(Finding::note("stages", "no package stage: the artifacts are packaged at the end"));
    let planned = PlannedStage {
        index: place.0,
        type_name: "package".into(),
        title: String::new(),
        resolved: text,
        inputs: Vec::new(),
        outputs: Vec::new(),
        predicted: Predicted::default(),
    };
    finish(planned, EVERYTHING)
}

/// The artifacts that ship under a package format: those a quant stage wrote in it, or for `auto` all that quant stages
/// wrote; where there are none, the model directory. Of several model directories of other stages the last replaces the
/// others.
pub(super) fn shipping<'a>(artifacts: &'a [Artifact], format: &str) -> Vec<&'a Artifact> {
    let asked = |a: &&Artifact| format == EVERYTHING || a.format == format;
    let quantized: Vec<&Artifact> = artifacts.iter().filter(|a| a.quantized).filter(asked).collect();
    if !quantized.is_empty() {
        return quantized;
    }
    artifacts.iter().rev().find(asked).into_iter().collect()
}

fn list(base: &Path, below: &Path, names: &mut Vec<PathBuf>) -> Outcome<()> {
    let dir = base.join(below);
    let failed = |e| Fault::infra(format!("list {}", dir.display())).caused_by(e);
    for entry in fs::read_dir(&dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = below.join(entry.file_name());
        if entry.path().is_dir() {
            list(base, &name, names)?;
        } else {
            names.push(name);
        }
    }
    names.sort();
    Ok(())
}

/// A hard link; a copy where the filesystem has none.
pub(super) fn place_file(from: &Path, dir: &Path, name: &Path) -> Outcome<PathBuf> {
    let to = dir.join(name);
    let failed = |e| Fault::infra(format!("put {} into the artifact", from.display())).caused_by(e);
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    match fs::hard_link(from, &to) {
        Ok(()) => {}
        Err(_) => {
            fs::copy(from, &to).map_err(failed)?;
        }
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(path: &str, format: &str) -> Artifact {
        Artifact {
            path: path.into(),
            format: format.into(),
            dtype: "Q8_0".into(),
            bytes: 1,
            parameters: 1,
            active_parameters: 1,
            bits_per_weight: 8.0,
            archive: None,
            quantized: path != "pruned",
            types: Vec::new(),
            fallbacks: Vec::new(),
        }
    }

    #[test]
    fn what_ships_depends_on_the_format() {
        let all = [artifact("pruned", "safetensors"), artifact("a", "gguf"), artifact("b", "gguf")];
        let paths = |format: &str, all: &[Artifact]| -> Vec<String> {
            shipping(all, format).iter().map(|a| a.path.display().to_string()).collect()
        };
        assert_eq!(paths("auto", &all), ["a", "b"]);
        assert_eq!(paths("gguf", &all), ["a", "b"]);
        assert_eq!(paths("safetensors", &all), ["pruned"]);
        assert_eq!(paths("auto", &all[..1]), ["pruned"]);
        assert!(paths("auto", &[]).is_empty());
        let packed = [artifact("pruned", "safetensors"), artifact("a", "safetensors"), artifact("b", "safetensors")];
        assert_eq!(paths("safetensors", &packed), ["a", "b"]);
        assert_eq!(paths("auto", &packed), ["a", "b"]);
    }
}
