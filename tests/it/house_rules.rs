//! The rules of the house, read from the source text: floors, file sizes, where output and panics may stand, what a
//! registered thing owes its readers. A failure names the file, the line and the rule.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Floors of the rooms; arrows point down only. `fault`, `units` and `registry` are everybody's.
const FLOORS: &[(&str, u32)] = &[
    ("crash", 0),
    ("fault", 0),
    ("units", 0),
    ("registry", 0),
    ("recipe", 0),
    ("line", 0),
    ("node", 0),
    ("codec", 1),
    ("model", 1),
    ("storage", 1),
    ("family", 1),
    ("engine", 1),
    ("compress", 2),
    ("assay", 2),
    ("gate", 2),
    ("frontier", 2),
    ("stage", 3),
    ("worker", 3),
    ("daemon", 4),
    ("foreman", 4),
];

/// The few arrows between rooms of one floor. An arrow here has no counterpart the other way.
const SAME_FLOOR: &[(&str, &str)] = &[
    ("units", "fault"),
    ("fault", "units"),
    ("recipe", "fault"),
    ("recipe", "units"),
    ("line", "fault"),
    ("line", "units"),
    ("node", "fault"),
    ("node", "units"),
    ("model", "codec"),
    ("family", "model"),
    ("family", "codec"),
    ("engine", "codec"),
    ("engine", "model"),
    ("engine", "family"),
    ("worker", "stage"),
    ("foreman", "daemon"),
];

/// Rooms that must build and run without a tensor library behind them.
const WITHOUT_CANDLE: &[&str] = &["recipe", "line", "node", "storage", "daemon"];

const MOST_LINES: usize = 500;
const BAD_NAMES: &[&str] = &["utils", "util", "helpers", "helper", "common", "manager", "misc"];

struct Source {
    /// Relative to the repository.
    path: PathBuf,
    text: String,
}

impl Source {
    /// First folder or file under `src/`.
    fn room(&self) -> Option<String> {
        let first = self.path.strip_prefix("src").ok()?.components().next()?;
        let name = first.as_os_str().to_str()?;
        Some(name.strip_suffix(".rs").unwrap_or(name).to_owned())
    }

    fn is_test(&self) -> bool {
        self.path.starts_with("tests") || self.path.ends_with("tests.rs") || self.has_folder("tests")
    }

    fn has_folder(&self, name: &str) -> bool {
        self.path.parent().is_some_and(|dir| dir.components().any(|part| part.as_os_str() == name))
    }

    /// Code lines with their numbers: no comments, no string contents, nothing below `#[cfg(test)]`.
    fn code(&self) -> Vec<(usize, String)> {
        let bare = without_comments_and_strings(&self.text);
        let lines: Vec<&str> = bare.lines().collect();
        let end = lines
            .windows(2)
            .position(|pair| pair[0].trim() == "#[cfg(test)]" && pair[1].trim_end().ends_with('{'))
            .unwrap_or(lines.len());
        lines[..end].iter().enumerate().map(|(index, line)| (index + 1, (*line).to_owned())).collect()
    }
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let mut out = Vec::new();
    for folder in folders {
        collect(&repository().join(folder), &mut out);
    }
    assert!(out.len() > 10, "the sources were not found");
    out
}

fn collect(dir: &Path, out: &mut Vec<Source>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            out.push(Source { path: path.strip_prefix(repository()).unwrap().to_owned(), text });
        }
    }
}

/// Blanks comments and the contents of strings, keeping line numbers.
fn without_comments_and_strings(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    let starts = |i: usize, word: &str| word.chars().enumerate().all(|(k, c)| bytes.get(i + k) == Some(&c));
    while i < bytes.len() {
        let word_before = i > 0 && (bytes[i - 1].is_alphanumeric() || bytes[i - 1] == '_');
        let hashes = bytes[i + 1..].iter().take_while(|c| **c == '#').count();
        if starts(i, "//") {
            while i < bytes.len() && bytes[i] != '\n' {
                i += 1;
            }
        } else if bytes[i] == 'r' && !word_before && bytes.get(i + 1 + hashes) == Some(&'"') {
            let close: String = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            i += hashes + 2;
            while i < bytes.len() && !starts(i, &close) {
                if bytes[i] == '\n' {
                    out.push('\n');
                }
                i += 1;
            }
            i += close.len();
            out.push_str("\"\"");
        } else if bytes[i] == '"' {
            i += 1;
            while i < bytes.len() && bytes[i] != '"' {
                if bytes[i] == '\n' {
                    out.push('\n');
                }
                i += if bytes[i] == '\\' && bytes.get(i + 1) != Some(&'\n') { 2 } else { 1 };
            }
            i += 1;
            out.push_str("\"\"");
        } else if starts(i, "'\"'") || starts(i, "'\\\"'") {
            i += if bytes[i + 1] == '\\' { 4 } else { 3 };
            out.push_str("' '");
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    out
}

/// Rooms named by `crate::…` paths in code, one or several by `crate::{a, b::c}`.
fn rooms_named(code: &[(usize, String)]) -> Vec<(usize, String)> {
    let mut out = Vec::new();
    let joined: String = code.iter().map(|(_, line)| format!("{line}\n")).collect();
    for (at, _) in joined.match_indices("crate::") {
        let line = joined[..at].matches('\n').count() + 1;
        let rest = &joined[at + "crate::".len()..];
        let word =
            |text: &str| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        match rest.strip_prefix('{') {
            None => out.push((line, word(rest))),
            Some(group) => {
                let mut depth = 1;
                let mut item = String::new();
                for c in group.chars() {
                    depth += match c {
                        '{' => 1,
                        '}' => -1,
                        _ => 0,
                    };
                    if depth == 0 || (depth == 1 && c == ',') {
                        out.push((line, word(&item)));
                        item.clear();
                    } else {
                        item.push(c);
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
        }
    }
    out.retain(|(_, room)| FLOORS.iter().any(|(name, _)| name == room));
    out
}

fn floor(room: &str) -> Option<u32> {
    FLOORS.iter().find(|(name, _)| *name == room).map(|(_, floor)| *floor)
}

fn report(rule: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

#[test]
fn arrows_point_down() {
    let mut broken = Vec::new();
    for source in sources(&["src"]).iter().filter(|source| !source.is_test()) {
        let Some(room) = source.room().filter(|room| room != "lib" && room != "bin") else { continue };
        let Some(mine) = floor(&room) else {
            broken.push(format!("{}: the room {room} has no floor in this test", source.path.display()));
            continue;
        };
        for (line, other) in rooms_named(&source.code()) {
            let theirs = floor(&other).unwrap_or(0);
            let shared = ["fault", "units", "registry"].contains(&other.as_str());
            let agreed = SAME_FLOOR.contains(&(room.as_str(), other.as_str()));
            if other != room && !shared && (theirs > mine || theirs == mine && !agreed) {
                let path = source.path.display();
                broken.push(format!("{path}:{line}: {room} (floor {mine}) may not use {other} (floor {theirs})"));
            }
        }
    }
    report("arrows between rooms point down", broken);
}

#[test]
fn the_supervisor_reaches_no_tensor() {
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut candle: BTreeMap<String, String> = BTreeMap::new();
    for source in sources(&["src"]).iter().filter(|source| !source.is_test()) {
        let Some(room) = source.room() else { continue };
        let code = source.code();
        arrows.entry(room.clone()).or_default().extend(rooms_named(&code).into_iter().map(|(_, other)| other));
        if let Some((line, _)) =
            code.iter().find(|(_, line)| line.contains("candle_core") || line.contains("candle_nn"))
        {
            candle.insert(room, format!("{}:{line}", source.path.display()));
        }
    }
    assert!(!candle.is_empty(), "no room uses candle: this test looks at nothing");
    let mut broken = Vec::new();
    for start in WITHOUT_CANDLE {
        let mut way: BTreeMap<String, Vec<String>> = BTreeMap::from([((*start).to_owned(), vec![(*start).to_owned()])]);
        let mut open = vec![(*start).to_owned()];
        while let Some(room) = open.pop() {
            for next in arrows.get(&room).into_iter().flatten() {
                if !way.contains_key(next) {
                    let steps = way[&room].iter().cloned().chain([next.clone()]).collect();
                    way.insert(next.clone(), steps);
                    open.push(next.clone());
                }
            }
        }
        for (room, steps) in &way {
            if let Some(place) = candle.get(room) {
                broken.push(format!("{} reaches candle at {place}", steps.join(" -> ")));
            }
        }
    }
    report("recipe, line, node, storage and daemon never reach candle", broken);
}

#[test]
fn files_are_short_and_named_after_what_they_hold() {
    let mut broken = Vec::new();
    for source in sources(&["src", "tests"]) {
        let (path, lines) = (source.path.display(), source.text.lines().count());
        if lines > MOST_LINES {
            broken.push(format!("{path}: {lines} lines, at most {MOST_LINES}: split by noun, verb or tests"));
        }
        if source.path.starts_with("src/bin") && lines > 60 {
            broken.push(format!("{path}: {lines} lines; a binary has at most 60"));
        }
        let named = source.path.file_stem().into_iter().chain(source.path.iter());
        if let Some(bad) = named.filter_map(|part| part.to_str()).find(|part| BAD_NAMES.contains(part)) {
            broken.push(format!("{path}: {bad:?} says nothing"));
        }
        if source.path.starts_with("src") && !source.is_test() && !source.text.starts_with("//!") {
            broken.push(format!("{path}: opens without `//!` that says what it is for"));
        }
    }
    report("files are short, headed and well named", broken);
}

#[test]
fn output_panics_and_exits_stand_where_they_belong() {
    const PRINTING: &[&str] = &["println!", "eprintln!", "print!(", "eprint!(", "dbg!"];
    const ENDING: &[&str] = &["process::exit", "process::abort"];
    const PANICKING: &[&str] = &[".unwrap()", ".expect(", ".unwrap_err()", "panic!(", "todo!", "unimplemented!"];
    let mut broken = Vec::new();
    for source in sources(&["src"]).iter().filter(|source| !source.is_test()) {
        if source.path.starts_with("src/bin") || source.path == Path::new("src/foreman/printer.rs") {
            continue;
        }
        for (line, code) in source.code() {
            for word in PRINTING.iter().chain(ENDING).chain(PANICKING) {
                if code.contains(word) {
                    broken.push(format!("{}:{line}: {word}", source.path.display()));
                }
            }
            if code.contains("#[allow(") {
                broken.push(format!("{}:{line}: #[expect], not #[allow]", source.path.display()));
            }
        }
        if let Some((at, _)) = source.text.match_indices("FIXME").next() {
            let line = source.text[..at].matches('\n').count() + 1;
            broken.push(format!("{}:{line}: FIXME", source.path.display()));
        }
    }
    report("no output, exit or panic outside binaries, the printer and tests", broken);
}

/// Modules and unit structs of every `registry! { … }` block, with the folder they stand in.
fn registered() -> Vec<(PathBuf, String, String)> {
    let mut out = Vec::new();
    for source in sources(&["src"]).iter().filter(|source| source.room().as_deref() != Some("registry")) {
        let bare = without_comments_and_strings(&source.text);
        for (at, _) in bare.match_indices("registry! {").chain(bare.match_indices("registry!{")) {
            let block: String = bare[at..].chars().take_while(|c| *c != '}').collect();
            for line in block.lines().filter(|line| line.contains("=>")) {
                let mut words = line.split("=>").map(|word| word.trim().trim_end_matches(',').to_owned());
                let (module, unit) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
                out.push((source.path.parent().unwrap_or(Path::new("")).to_owned(), module, unit));
            }
        }
    }
    out
}

#[test]
fn families_are_named_in_their_room_only() {
    let families: Vec<String> =
        registered().into_iter().filter(|(dir, ..)| dir.ends_with("family")).map(|(_, module, _)| module).collect();
    if families.is_empty() {
        return;
    }
    let mut broken = Vec::new();
    for source in sources(&["src"]).iter().filter(|source| !source.is_test()) {
        // GGUF names kinds of tokenizers after the first model that had one: those are names of a file format.
        if source.room().as_deref() == Some("family") || source.path.starts_with("src/model/tokenizer") {
            continue;
        }
        // String contents count here: a family's name in a match arm is exactly what must not be.
        let end = source.text.find("#[cfg(test)]\nmod tests {").unwrap_or(source.text.len());
        for (index, line) in source.text[..end].lines().enumerate() {
            let code = line.split("//").next().unwrap_or("").replace("llama.cpp", "").replace("llama-", "");
            let words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
            for word in words.filter(|word| families.iter().any(|family| family == word)) {
                broken.push(format!("{}:{}: {word}", source.path.display(), index + 1));
            }
        }
    }
    report("a family's name stands in src/family only", broken);
}

#[test]
fn what_is_registered_is_there_headed_and_documented() {
    let mut pages = String::new();
    for entry in fs::read_dir(repository().join("docs")).into_iter().flatten().flatten() {
        pages += &fs::read_to_string(entry.path()).unwrap_or_default();
    }
    let mut broken = Vec::new();
    let mut by_folder: BTreeMap<PathBuf, BTreeSet<String>> = BTreeMap::new();
    for (dir, module, unit) in registered() {
        let file = repository().join(&dir).join(format!("{module}.rs"));
        let folder = repository().join(&dir).join(&module).join("mod.rs");
        let text = fs::read_to_string(&file).or_else(|_| fs::read_to_string(&folder)).unwrap_or_default();
        if !text.contains(&format!("struct {unit}")) {
            broken.push(format!("{}/{module}: does not define {unit}", dir.display()));
        }
        // A codec's module is the long form of the name its format has in recipes.
        let short = module.replace("bfloat", "BF").replace("float", "F").to_uppercase();
        let spelled = [module.clone(), module.replace('_', "-"), short];
        if !spelled.iter().any(|name| pages.contains(name.as_str())) {
            broken.push(format!("{}/{module}: no page under docs/ names it", dir.display()));
        }
        by_folder.entry(dir).or_default().insert(module);
    }
    // The other way: a file that implements a registry's trait is registered.
    for (dir, modules) in &by_folder {
        let room = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let item = match room {
            "family" => "impl Family for",
            "stage" => "impl Stage for",
            "assay" => "impl Runner for",
            _ => continue,
        };
        let mut here = Vec::new();
        collect(&repository().join(dir), &mut here);
        for source in here.iter().filter(|source| !source.is_test() && source.text.contains(item)) {
            let relative = source.path.strip_prefix(dir).unwrap_or(&source.path);
            let first = relative.iter().next().and_then(|name| name.to_str()).unwrap_or_default();
            let module = first.strip_suffix(".rs").unwrap_or(first);
            if !modules.contains(module) {
                broken.push(format!("{}: {item} …, but its module is not registered", source.path.display()));
            }
        }
    }
    report("registered items exist, and pages name them", broken);
}

#[test]
fn every_command_helps_with_an_example() {
    let mut broken = Vec::new();
    let mut seen = 0;
    for command in factoryline::foreman::command().get_subcommands_mut() {
        seen += 1;
        let name = command.get_name().to_owned();
        let hidden = command.is_hide_set();
        let help = command.render_long_help().to_string();
        if !hidden && !help.contains("Example:\n") {
            broken.push(format!("foreman {name}: its help has no example"));
        }
        if !hidden && !help.contains(&format!("foreman {name}")) {
            broken.push(format!("foreman {name}: its example does not use it"));
        }
        if command.get_about().is_none_or(|about| about.to_string().trim().is_empty()) {
            broken.push(format!("foreman {name}: its help says nothing"));
        }
        let page = fs::read_to_string(repository().join("docs/OPERATOR.md")).unwrap_or_default();
        if !hidden && !page.contains(&format!("`foreman {name}")) {
            broken.push(format!("foreman {name}: docs/OPERATOR.md does not name it"));
        }
    }
    assert!(seen >= 15, "only {seen} commands");
    report("every command has help with an example, and a place in the manual", broken);
}

#[test]
fn nothing_names_the_place_it_was_written_in() {
    let mut broken = Vec::new();
    let place = ["/wo", "rk/"].concat();
    let allowed = |line: &str| line.contains("/work/<") || line.contains("<root>/work/") || line.contains("}/work/");
    let mut open: Vec<PathBuf> = ["src", "tests", "docs", "scripts", "recipes", "README.md", "Cargo.toml"]
        .iter()
        .map(|name| repository().join(name))
        .collect();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
            continue;
        }
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (index, line) in text.lines().enumerate() {
            // A line's own work folder is a legitimate path when something stands before it.
            let bare = line.match_indices(&place).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                before.is_none_or(|c| c.is_whitespace() || "\"'`(=:".contains(c))
            });
            if bare && !allowed(line) {
                broken.push(format!("{}:{}", path.display(), index + 1));
            }
        }
    }
    report("no machine's paths in the tree", broken);
}
