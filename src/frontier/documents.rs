//! The texts a model is scored on: read from a file or a folder, and chosen as the benchmark chooses them.

use std::path::{Component, Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::FrontierError;
use super::contract::DocumentChoice;
use super::numpy::Generator;
use crate::units::Sha;

/// One text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub text: String,
    pub categories: Vec<String>,
}

/// Every text there is to choose from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    pub path: PathBuf,
    pub documents: Vec<Document>,
}

const FORMS: &str = "name a .txt (a document per line), a .jsonl, a manifest .json, or a folder of text files";

impl Pool {
    /// Reads texts from one of
    /// - a folder: every `.txt` file below it, sorted by path, is a document, its category the folder it lies in; with a
    ///   `manifest.json` in it, what that lists;
    /// - a `.json` manifest: a list of entries, or an object that holds one under `documents`, or lists of entries by name
    ///   under `categories` or `datasets`;
    /// - a `.jsonl` file: an entry per line;
    /// - any other file: a document per line that is not blank.
    ///
    /// An entry is a string, or an object with `text` or `path` (below the manifest's folder), and optionally `sha256`,
    /// `category` and `categories`. Entries that would have to be fetched are refused.
    pub fn read(path: &Path) -> Result<Pool, FrontierError> {
        let mut documents = Vec::new();
        if path.is_dir() {
            let manifest = path.join("manifest.json");
            match manifest.is_file() {
                true => read_manifest(&manifest, &mut documents)?,
                false => read_folder(path, Path::new(""), &mut documents)?,
            }
        } else {
            match path.extension().and_then(|ending| ending.to_str()) {
                Some("json") => read_manifest(path, &mut documents)?,
                Some("jsonl") => {
                    for line in read_text(path)?.lines().filter(|line| !line.trim().is_empty()) {
                        let entry = parse(path, line)?;
                        documents.push(document(path, &entry, None)?);
                    }
                }
                _ => {
                    let lines = read_text(path)?;
                    let lines = lines.lines().filter(|line| !line.trim().is_empty());
                    documents.extend(lines.map(|line| Document { text: line.to_owned(), categories: Vec::new() }));
                }
            }
        }
        if documents.is_empty() {
            return Err(FrontierError::documents(path, "holds no document", FORMS));
        }
        Ok(Pool { path: path.to_owned(), documents })
    }
}

fn read_text(path: &Path) -> Result<String, FrontierError> {
    let bytes = std::fs::read(path).map_err(FrontierError::io("read", path))?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        FrontierError::documents(path, format!("is not UTF-8 at byte {at}"), "save it as UTF-8 text")
    })
}

fn read_folder(base: &Path, below: &Path, documents: &mut Vec<Document>) -> Result<(), FrontierError> {
    let dir = base.join(below);
    let failed = FrontierError::io("list", &dir);
    let entries = std::fs::read_dir(&dir).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(failed)?;
    let mut names: Vec<PathBuf> = entries.into_iter().map(|entry| below.join(entry.file_name())).collect();
    names.sort();
    for name in names {
        let path = base.join(&name);
        if path.is_dir() {
            read_folder(base, &name, documents)?;
        } else if path.extension().is_some_and(|ending| ending == "txt") {
            let category = below.iter().next().map(|first| first.to_string_lossy().into_owned());
            documents.push(Document { text: read_text(&path)?, categories: category.into_iter().collect() });
        }
    }
    Ok(())
}

fn parse(path: &Path, text: &str) -> Result<Value, FrontierError> {
    serde_json::from_str(text).map_err(|error| FrontierError::documents(path, format!("is not JSON: {error}"), FORMS))
}

fn read_manifest(path: &Path, documents: &mut Vec<Document>) -> Result<(), FrontierError> {
    let manifest = parse(path, &read_text(path)?)?;
    let mut add = |entries: &Value, category: Option<&str>| {
        let entries =
            entries.as_array().ok_or_else(|| FrontierError::documents(path, "is no list of entries", FORMS))?;
        for entry in entries {
            documents.push(document(path, entry, category)?);
        }
        Ok(())
    };
    if manifest.is_array() {
        return add(&manifest, None);
    }
    for (key, named) in [("documents", false), ("categories", true), ("datasets", true)] {
        match (&manifest[key], named) {
            (Value::Null, _) => {}
            (Value::Object(groups), true) => {
                for (category, entries) in groups {
                    add(entries, Some(category))?;
                }
            }
            (entries, _) => add(entries, None)?,
        }
    }
    Ok(())
}

fn document(manifest: &Path, entry: &Value, category: Option<&str>) -> Result<Document, FrontierError> {
    let wrong = |cause: String, hint| FrontierError::documents(manifest, cause, hint);
    let text = match (entry, entry["text"].as_str(), entry["path"].as_str().or(entry["file"].as_str())) {
        (Value::String(text), ..) => text.clone(),
        (_, Some(text), _) => text.to_owned(),
        (_, None, Some(name)) => {
            let inside =
                Path::new(name).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
            if !inside {
                return Err(wrong(
                    format!("names {name:?}, which lies outside its folder"),
                    "keep the texts beside it",
                ));
            }
            read_text(&manifest.parent().unwrap_or(Path::new(".")).join(name))?
        }
        (_, None, None) if entry["source"].is_string() => {
            return Err(wrong(
                format!("has an entry of source {}", entry["source"]),
                "nothing is fetched: put the texts themselves into the manifest",
            ));
        }
        _ => return Err(wrong("has an entry without text or path".to_owned(), FORMS)),
    };
    if let Some(promised) = entry["sha256"].as_str() {
        let found = Sha::of(text.as_bytes()).hex();
        if !promised.eq_ignore_ascii_case(&found) {
            return Err(wrong(
                format!("promises sha256 {promised} for a text that has {found}"),
                "the texts changed after the manifest was made",
            ));
        }
    }
    let said = entry["categories"].as_array().into_iter().flatten().chain([&entry["category"]]);
    let mut categories: Vec<String> = said.filter_map(Value::as_str).map(str::to_owned).collect();
    categories.extend(category.map(str::to_owned).filter(|category| !categories.contains(category)));
    Ok(Document { text, categories })
}

/// How documents are chosen from a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    pub dataset: String,
    pub split: String,
    pub rotation_key: String,
    pub seed: u64,
    pub count: usize,
    /// Shares by category, in this order; empty: categories do not matter.
    pub mix: Vec<(String, f64)>,
    /// The slot and number of a synchronised rotation; both change the key.
    pub sync: Option<(String, String)>,
}

impl Choice {
    /// The choice of a contract when nothing else is said.
    pub fn of(choice: &DocumentChoice, count: usize) -> Choice {
        Choice {
            dataset: choice.dataset.clone(),
            split: choice.split.clone(),
            rotation_key: choice.rotation_key.clone(),
            seed: choice.seed,
            count,
            mix: Vec::new(),
            sync: None,
        }
    }

    /// The rotation key with slot and number.
    pub fn key(&self) -> String {
        match &self.sync {
            Some((slot, number)) => format!("{}:slot={slot}:sync={number}", self.rotation_key),
            None => self.rotation_key.clone(),
        }
    }

    /// The text whose hash seeds a shuffle. `category`: `None` without a mix.
    pub fn seed_text(&self, category: Option<&str>) -> String {
        let (dataset, split, key, seed) = (&self.dataset, &self.split, self.key(), self.seed);
        match category {
            Some(category) => format!("{dataset}:{category}:{split}:{key}:{seed}"),
            None => format!("{dataset}:{split}:{key}:{seed}"),
        }
    }

    /// Numbers of the documents chosen, in order; a pool smaller than the count is gone through again.
    ///
    /// # Errors
    /// A category of the mix has no document.
    pub fn choose(&self, pool: &Pool) -> Result<Vec<usize>, FrontierError> {
        if self.mix.is_empty() {
            let all: Vec<usize> = (0..pool.documents.len()).collect();
            return Ok(shuffled(&self.seed_text(None), &all, self.count));
        }
        let mut chosen = Vec::new();
        for ((category, _), count) in self.mix.iter().zip(shares(&self.mix, self.count)) {
            let holds = |&i: &usize| pool.documents[i].categories.contains(category);
            let members: Vec<usize> = (0..pool.documents.len()).filter(holds).collect();
            if members.is_empty() && count > 0 {
                let cause = format!("holds no document of category {category:?}");
                return Err(FrontierError::documents(
                    &pool.path,
                    cause,
                    "correct the mix, or give the texts categories",
                ));
            }
            chosen.extend(shuffled(&self.seed_text(Some(category)), &members, count));
        }
        Ok(shuffled(&self.seed_text(Some("mixed")), &chosen, chosen.len()))
    }
}

/// The first eight bytes of a text's SHA-256, the first byte highest.
pub fn seed_of(text: &str) -> u64 {
    let digest = Sha::of(text.as_bytes()).0;
    digest.iter().take(8).fold(0, |seed, &byte| seed << 8 | u64::from(byte))
}

fn shuffled(seed_text: &str, members: &[usize], count: usize) -> Vec<usize> {
    let order = Generator::new(seed_of(seed_text)).permutation(u32::try_from(members.len()).unwrap_or(u32::MAX));
    order.iter().cycle().take(if members.is_empty() { 0 } else { count }).map(|&at| members[at]).collect()
}

/// Splits `count` by largest remainders; of equal remainders the larger share goes first, then the earlier.
pub fn shares(mix: &[(String, f64)], count: usize) -> Vec<usize> {
    let total: f64 = mix.iter().map(|(_, weight)| weight).sum();
    let exact: Vec<f64> = mix.iter().map(|(_, weight)| weight / total * count as f64).collect();
    let mut counts: Vec<usize> = exact.iter().map(|share| share.floor() as usize).collect();
    let mut order: Vec<usize> = (0..mix.len()).collect();
    // Shares come from division: remainders within rounding of each other are equal.
    let remainder = |i: usize| ((exact[i] - exact[i].floor()) * 1e9).round();
    order.sort_by(|&a, &b| remainder(b).total_cmp(&remainder(a)).then(mix[b].1.total_cmp(&mix[a].1)));
    let missing = count.saturating_sub(counts.iter().sum());
    order.iter().cycle().take(if mix.is_empty() { 0 } else { missing }).for_each(|&i| counts[i] += 1);
    counts
}

/// Reads `reasoning:0.20,code:0.20`.
pub fn parse_mix(text: &str) -> Result<Vec<(String, f64)>, String> {
    let part = |part: &str| {
        let (name, weight) = part.split_once(':').ok_or_else(|| format!("{part:?} is not category:share"))?;
        let share: f64 = weight.trim().parse().map_err(|_| format!("{weight:?} is not a number"))?;
        match share.is_finite() && share > 0.0 {
            true => Ok((name.trim().to_owned(), share)),
            false => Err(format!("{weight:?} is not a positive share")),
        }
    };
    text.split(',').filter(|part| !part.trim().is_empty()).map(part).collect()
}

/// What was scored, as the result file names it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Handle {
    pub dataset: String,
    pub dataset_mix: String,
    pub dataset_categories: Vec<String>,
    pub split: String,
    pub document_count: usize,
    /// Of the documents joined by a blank line.
    pub document_sha256: String,
    /// The first 16 digits of a SHA-256, as the other hash.
    pub rotation_key_hash: String,
    pub sync_slot: Option<String>,
    pub sync_number_hash: Option<String>,
}

impl Handle {
    pub fn of(choice: &Choice, texts: &[&str]) -> Handle {
        let short = |text: &str| Sha::of(text.as_bytes()).hex()[..16].to_owned();
        let mix: Vec<String> = choice.mix.iter().map(|(name, share)| format!("{name}:{share:.2}")).collect();
        let mut digest = Sha256::new();
        for (i, text) in texts.iter().enumerate() {
            digest.update(if i > 0 { "\n\n" } else { "" });
            digest.update(text);
        }
        Handle {
            dataset: choice.dataset.clone(),
            dataset_mix: mix.join(","),
            dataset_categories: choice.mix.iter().map(|(name, _)| name.clone()).collect(),
            split: choice.split.clone(),
            document_count: texts.len(),
            document_sha256: Sha(digest.finalize().into()).hex(),
            rotation_key_hash: short(&choice.key()),
            sync_slot: choice.sync.as_ref().map(|(slot, _)| slot.clone()),
            sync_number_hash: choice.sync.as_ref().map(|(_, number)| short(number)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(documents: &[(&str, &str)]) -> Pool {
        let document = |(text, category): &(&str, &str)| Document {
            text: (*text).to_owned(),
            categories: vec![(*category).to_owned()],
        };
        Pool { path: "pool".into(), documents: documents.iter().map(document).collect() }
    }

    fn choice(count: usize) -> Choice {
        let contracts = crate::frontier::Contracts::builtin().unwrap();
        Choice::of(contracts.terms("qwen3-27b-ternary-frontier").unwrap().choice, count)
    }

    #[test]
    fn case_11_the_default_choice_is_the_published_one() {
        let names: Vec<String> = (0..60).map(|i| i.to_string()).collect();
        let pool = pool(&names.iter().map(|name| (name.as_str(), "")).collect::<Vec<_>>());
        let choice = choice(16);
        assert_eq!(choice.seed_text(None), "pack-local-proxy:validator-heldout:default-rotation:20260422");
        assert_eq!(seed_of(&choice.seed_text(None)), 5_133_336_336_658_459_743);
        let chosen = choice.choose(&pool).unwrap();
        assert_eq!(chosen, [55, 12, 19, 35, 14, 17, 34, 46, 49, 22, 10, 57, 9, 54, 31, 44]);
    }

    #[test]
    fn case_12_a_mix_is_split_by_largest_remainders() {
        let text = "reasoning:0.20,code:0.20,math:0.15,systems:0.15,compression:0.20,instruction:0.10";
        let mix = parse_mix(text).unwrap();
        assert_eq!(shares(&mix, 16), [3, 3, 3, 2, 3, 2]);
        assert_eq!(shares(&mix, 20), [4, 4, 3, 3, 4, 2]);
        assert_eq!(shares(&parse_mix("a:1,b:1,c:1").unwrap(), 2), [1, 1, 0]);
        assert_eq!(shares(&parse_mix("a:0.25,b:0.75").unwrap(), 2), [0, 2]);
        for wrong in ["a", "a:x", "a:-1", "a:0", "a:NaN"] {
            assert!(parse_mix(wrong).is_err(), "{wrong}");
        }
        let pool = pool(&[("p", "a"), ("q", "b"), ("r", "a"), ("s", "b")]);
        let choice = Choice { mix: parse_mix("a:0.5,b:0.5").unwrap(), ..choice(4) };
        let mut chosen = choice.choose(&pool).unwrap();
        chosen.sort_unstable();
        assert_eq!(chosen, [0, 1, 2, 3]);
        let strange = Choice { mix: parse_mix("z:1").unwrap(), ..choice };
        assert!(strange.choose(&pool).unwrap_err().to_string().contains("no document of category \"z\""));
    }

    #[test]
    fn case_13_keys_and_slots_turn_the_choice() {
        let names: Vec<String> = (0..60).map(|i| i.to_string()).collect();
        let pool = pool(&names.iter().map(|name| (name.as_str(), "")).collect::<Vec<_>>());
        let default = choice(16);
        let turned = Choice { rotation_key: "another".into(), ..default.clone() };
        let synced = Choice { sync: Some(("3".into(), "17".into())), ..default.clone() };
        assert_eq!(synced.key(), "default-rotation:slot=3:sync=17");
        let all: Vec<_> = [&default, &turned, &synced].map(|c| c.choose(&pool).unwrap()).into();
        assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2], "{all:?}");
        assert_eq!(turned.choose(&pool).unwrap(), all[1]);
        // A pool smaller than the count is gone through again.
        let few = Pool { documents: pool.documents[..3].to_vec(), ..pool };
        let chosen = default.choose(&few).unwrap();
        assert_eq!((chosen.len(), &chosen[..3]), (16, &chosen[3..6]));
    }

    #[test]
    fn pools_are_read_from_every_form() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        let texts =
            |pool: Pool| pool.documents.into_iter().map(|d| (d.text, d.categories.join(","))).collect::<Vec<_>>();
        let read = |path: &Path| texts(Pool::read(path).unwrap());
        let pair = |text: &str, category: &str| (text.to_owned(), category.to_owned());
        assert_eq!(read(&write("a.txt", "one\n\n two \n")), [pair("one", ""), pair(" two ", "")]);
        let lines = "\"plain\"\n{\"text\": \"t\", \"category\": \"code\"}\n";
        assert_eq!(read(&write("b.jsonl", lines)), [pair("plain", ""), pair("t", "code")]);
        write("folder/code/x.txt", "body\n");
        write("folder/readme.md", "not a text");
        assert_eq!(read(&dir.path().join("folder")), [pair("body\n", "code")]);
        let sha = Sha::of(b"body\n").hex();
        let manifest = format!("{{\"categories\": {{\"m\": [{{\"path\": \"code/x.txt\", \"sha256\": \"{sha}\"}}]}}}}");
        assert_eq!(read(&write("folder/manifest.json", &manifest)), [pair("body\n", "m")]);
        let refused = |name: &str, text: &str| Pool::read(&write(name, text)).unwrap_err().to_string();
        assert!(refused("c.json", "[{\"path\": \"../x\"}]").contains("outside its folder"));
        assert!(refused("d.json", "[{\"source\": \"hf_rows\"}]").contains("hf_rows"));
        assert!(
            refused("e.json", &manifest.replace(&sha, &"0".repeat(64)).replace("code/", "folder/code/"))
                .contains("promises")
        );
        assert!(refused("f.txt", "\n").contains("no document"));
        assert!(refused("g.json", "{").contains("not JSON"));
    }
}
