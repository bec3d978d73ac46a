//! `docs/LESSONS.md` names the test that proves each rule: every test and file it names must be there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const PAGE: &str = "docs/LESSONS.md";
/// Rows whose test is still being written carry one of these marks.
const MARKS: [&str; 4] = ["storage", "watch", "resume", "limits"];

fn read(path: &str) -> Option<String> {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).ok()
}

/// Whether the file defines `name` as a test: the attribute stands between it and the function before.
fn is_test(text: &str, name: &str) -> bool {
    text.match_indices(&format!("fn {name}(")).any(|(at, _)| {
        let before = &text[..at];
        let since = before.rfind("fn ").map_or(0, |at| at + 3);
        before[since..].contains("#[test]")
    })
}

/// What stands between backticks on a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

#[test]
fn every_test_and_file_named_in_the_lessons_is_there() {
    let page = read(PAGE).unwrap();
    let mut named = BTreeSet::new();
    let mut broken = Vec::new();
    for (line, text) in page.lines().enumerate().map(|(index, text)| (index + 1, text)) {
        for word in quoted(text) {
            let is_path = ["src/", "tests/", "docs/", "scripts/"].iter().any(|folder| word.starts_with(folder));
            match word.split_once("::") {
                Some((file, test)) if is_path => {
                    named.insert(word);
                    if !read(file).is_some_and(|source| is_test(&source, test)) {
                        broken.push(format!("{PAGE}:{line}: no test {word}"));
                    }
                }
                None if is_path && read(word).is_none() => broken.push(format!("{PAGE}:{line}: no file {word}")),
                _ => {}
            }
        }
        for (at, _) in text.match_indices("TBD(") {
            let mark = text[at + 4..].split(')').next().unwrap_or_default();
            if !MARKS.contains(&mark) {
                broken.push(format!("{PAGE}:{line}: TBD({mark}) is none of {MARKS:?}"));
            }
        }
    }
    assert!(named.len() > 100, "only {} tests are named: is the page read?", named.len());
    assert!(broken.is_empty(), "the lessons name what is not there:\n  {}", broken.join("\n  "));
}

#[test]
fn every_bug_kink_and_gap_has_a_row_that_says_what_proves_it() {
    let page = read(PAGE).unwrap();
    let rows = |title: &str| -> Vec<Vec<String>> {
        let (_, section) = page.split_once(&format!("\n## {title}\n")).unwrap();
        let section = section.split("\n## ").next().unwrap_or_default();
        let rows = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| #"));
        let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
        rows.map(cells).collect()
    };
    let numbers = |title: &str| -> Vec<String> {
        let first = rows(title).into_iter().map(|row| row[0].clone());
        first.flat_map(|cell| cell.split(", ").map(str::to_owned).collect::<Vec<_>>()).collect()
    };
    let counted = |title: &str, most: usize| {
        let numbers = numbers(title);
        let missing: Vec<usize> = (1..=most).filter(|n| !numbers.contains(&n.to_string())).collect();
        assert!(missing.is_empty(), "{title}: rows {missing:?} are missing");
    };
    counted("The seventeen bugs", 17);
    counted("The kinks", 14);
    counted("What the forerunner left undone", 15);
    for title in [
        "The seventeen bugs",
        "The kinks",
        "Where the forerunner's code and its protocol disagreed",
        "What the forerunner left undone",
        "Lessons of our own",
    ] {
        for row in rows(title).iter().filter(|row| !row[0].starts_with("what ") && row[0] != "where") {
            let proof = row.last().unwrap();
            let says =
                proof.contains("::") || ["**open**", "does not apply", "TBD("].iter().any(|word| proof.contains(word));
            assert!(says, "{title}: the row {:?} names no test and does not say that it is open", row[..2].join(" | "));
        }
    }
}
