//! Whether a patch touches only what a contract lets it touch: what the benchmarks' runner checks before it runs anything.

use serde::Serialize;

use super::contract::Contract;

/// Why a patch is rejected, by the runner's code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum PatchFlaw {
    PatchTooLarge { bytes: u64, most: u64 },
    UnparseablePatchSurface,
    GeneratedPythonCachePaths { paths: Vec<String> },
    DisallowedPatchPaths { paths: Vec<String> },
}

const DEFAULT_MOST: u64 = 262_144;

/// Checks a patch as `git diff` writes it. A blank patch is none and passes.
pub fn check_patch(patch: &str, contract: &Contract) -> Result<(), PatchFlaw> {
    let (bytes, most) = (patch.len() as u64, contract.max_patch_bytes.unwrap_or(DEFAULT_MOST));
    if bytes > most {
        return Err(PatchFlaw::PatchTooLarge { bytes, most });
    }
    if patch.trim().is_empty() {
        return Ok(());
    }
    let paths = paths(patch);
    if paths.is_empty() {
        return Err(PatchFlaw::UnparseablePatchSurface);
    }
    let of = |holds: &dyn Fn(&str) -> bool| paths.iter().filter(|path| holds(path)).cloned().collect::<Vec<String>>();
    let cached = of(&|path| [".pyc", ".pyo"].iter().any(|ending| path.to_lowercase().ends_with(ending)));
    if !cached.is_empty() {
        return Err(PatchFlaw::GeneratedPythonCachePaths { paths: cached });
    }
    let allowed = &contract.allowed_patch_paths;
    let outside = of(&|path| !allowed.iter().any(|pattern| matches(pattern.as_bytes(), path.as_bytes())));
    match outside.is_empty() {
        true => Ok(()),
        false => Err(PatchFlaw::DisallowedPatchPaths { paths: outside }),
    }
}

/// Every path the lines of a patch name, each once. As the runner reads them, a removed line that begins with `-- `
/// looks like the name of a file.
fn paths(patch: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for line in patch.lines() {
        let names: Vec<&str> = if let Some(both) = line.strip_prefix("diff --git ") {
            both.split(' ').collect()
        } else {
            let heads = ["--- ", "+++ ", "rename from ", "rename to ", "copy from ", "copy to "];
            heads.iter().filter_map(|head| line.strip_prefix(head)).collect()
        };
        for name in names {
            let name = name.split('\t').next().unwrap_or_default().trim().trim_matches('"');
            let bare = name.strip_prefix("a/").or_else(|| name.strip_prefix("b/")).unwrap_or(name);
            if !bare.is_empty() && bare != "/dev/null" && !found.iter().any(|known| known == bare) {
                found.push(bare.to_owned());
            }
        }
    }
    found
}

/// Shell patterns as Python's `fnmatch` has them, without character classes: `*` crosses `/`.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => (0..=name.len()).any(|skip| matches(rest, &name[skip..])),
        Some((b'?', rest)) => name.split_first().is_some_and(|(_, name)| matches(rest, name)),
        Some((byte, rest)) => name.split_first().is_some_and(|(first, name)| first == byte && matches(rest, name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontier::Contracts;

    const OWN: &str = "competition_packs/qwen3_27b_ternary_frontier/train.py";

    fn diff(path: &str) -> String {
        format!("diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-a = 1\n+a = 2\n")
    }

    fn check(patch: &str) -> Result<(), PatchFlaw> {
        let contracts = Contracts::builtin().unwrap();
        check_patch(patch, contracts.terms("qwen3-27b-ternary-frontier").unwrap().contract)
    }

    #[test]
    fn case_23_patches_of_the_own_file_pass_up_to_the_limit() {
        assert_eq!(check(&diff(OWN)), Ok(()));
        assert_eq!(check(""), Ok(()));
        assert_eq!(check(" \n"), Ok(()));
        let mut full = diff(OWN);
        full.push_str(&" x\n".repeat((DEFAULT_MOST as usize - full.len()) / 3));
        full.push_str(&"\n".repeat(DEFAULT_MOST as usize - full.len()));
        assert_eq!((full.len(), check(&full)), (262_144, Ok(())));
        full.push('\n');
        assert_eq!(check(&full), Err(PatchFlaw::PatchTooLarge { bytes: 262_145, most: 262_144 }));
    }

    #[test]
    fn case_41_everything_else_is_rejected_by_its_code() {
        let other = PatchFlaw::DisallowedPatchPaths { paths: vec!["benchmark.py".into()] };
        assert_eq!(check(&diff("benchmark.py")), Err(other));
        let renamed = format!("diff --git a/x.py b/{OWN}\nsimilarity index 100%\nrename from x.py\nrename to {OWN}\n");
        assert_eq!(check(&renamed), Err(PatchFlaw::DisallowedPatchPaths { paths: vec!["x.py".into()] }));
        for cache in ["__pycache__/x.pyc", "a/b.PYO"] {
            let flaw = PatchFlaw::GeneratedPythonCachePaths { paths: vec![cache.into()] };
            assert_eq!(check(&diff(cache)), Err(flaw));
        }
        assert_eq!(check("not a patch"), Err(PatchFlaw::UnparseablePatchSurface));
        // A removed line of SQL or Haskell comment reads as a file name.
        let quirk = diff(OWN).replace("-a = 1", "--- a comment");
        assert_eq!(check(&quirk), Err(PatchFlaw::DisallowedPatchPaths { paths: vec!["a comment".into()] }));
        assert!(matches(b"a/*.py", b"a/b/c.py") && !matches(b"a/?.py", b"a/bc.py") && matches(b"a/?.py", b"a/b.py"));
    }
}
