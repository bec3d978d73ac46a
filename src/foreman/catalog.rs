//! The catalogue: recipes for published models, in the program itself, so that an installed `foreman` has them.
//!
//! Enters: nothing, or a folder of recipes to take instead. Leaves: [`Entry`]s, in the order of their file names.
//! `docs/CATALOG.md` tells what each is and why.

use std::path::Path;

use crate::fault::Fault;
use crate::foreman::exit::Problem;

/// A recipe to seed a line with.
pub struct Entry {
    /// Name of the part.
    pub name: String,
    pub bytes: Vec<u8>,
}

/// (name, text) of every recipe in the program.
pub const CATALOG: &[(&str, &str)] = include!("../../recipes/catalog/index.in");

/// The recipes of the program.
pub fn built_in() -> Vec<Entry> {
    let entry = |(name, text): &(&str, &str)| Entry { name: (*name).to_owned(), bytes: text.as_bytes().to_vec() };
    CATALOG.iter().map(entry).collect()
}

/// The `*.alloy.json` of a folder.
pub fn of_folder(folder: &Path) -> Result<Vec<Entry>, Problem> {
    let failed = |error| Problem::io(format!("read {}", folder.display()), &error);
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".alloy.json"));
        let Some(name) = name else { continue };
        // Reads with the limits of every recipe; what it says is checked with the others.
        let file = crate::recipe::RecipeFile::read(&path).map_err(Fault::from)?;
        entries.push(Entry { name: name.to_owned(), bytes: file.bytes().to_vec() });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_holds_every_recipe_of_the_folder_and_each_names_itself() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/catalog");
        let entries = of_folder(&folder).unwrap();
        let on_disk: Vec<(&str, &str)> =
            entries.iter().map(|e| (e.name.as_str(), std::str::from_utf8(&e.bytes).unwrap())).collect();
        assert_eq!(on_disk, CATALOG);
        for (name, text) in CATALOG {
            let recipe: serde_json::Value = serde_json::from_str(text).unwrap();
            assert_eq!(recipe["name"], *name);
        }
    }
}
