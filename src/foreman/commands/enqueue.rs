//! `foreman enqueue`: puts recipes into intake.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::moved::Moved;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, ExitKind, Problem};
use crate::line::PartName;
use crate::line::verbs::{self, OnTaken};
use crate::recipe::{MAX_BYTES, RecipeFile};

/// Put recipes into intake
///
/// Each file must read as a recipe; `foreman check` looks deeper. A copy is published whole and durable, and never
/// over another part.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman enqueue my.alloy.json\n  cat r.json | foreman enqueue - --name my-part")]
pub struct Args {
    /// Recipe files; - reads one from standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Name of the part (one file only) [default: the file's name, for - the recipe's]
    #[arg(long)]
    name: Option<String>,

    /// If the name is on the line already, use the first free NAME~2, NAME~3, …
    #[arg(long)]
    number: bool,

    /// Only show what would be moved
    #[arg(long)]
    dry_run: bool,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        if self.name.is_some() && self.files.len() > 1 {
            return Err(Problem::usage("--name fits one file only").hinted("enqueue the files one by one"));
        }
        // All are read before any is moved: a typo in the third name must not leave two behind.
        let recipes: Vec<(PartName, Vec<u8>)> =
            self.files.iter().map(|file| self.read(file)).collect::<Result<_, Problem>>()?;
        let on_taken = if self.number { OnTaken::Number } else { OnTaken::Refuse };
        let mut moves = Vec::with_capacity(recipes.len());
        let mut last = String::new();
        for (name, bytes) in recipes {
            let (name, change) = verbs::enqueue(&layout, &name, &bytes, on_taken, self.dry_run)?;
            last = name.base().to_owned();
            moves.push(change);
        }
        let next = desk.command(&format!("wait {}", crate::foreman::wording::shell_word(&last)));
        Moved { dry_run: self.dry_run, moves, next }.tell(desk)
    }
}

impl Args {
    fn read(&self, file: &Path) -> Result<(PartName, Vec<u8>), Problem> {
        let stdin = file == Path::new("-");
        let recipe = match stdin {
            true => {
                let mut bytes = Vec::new();
                let read = std::io::stdin().take(MAX_BYTES + 1).read_to_end(&mut bytes);
                read.map_err(|error| Problem::io("read standard input", &error))?;
                RecipeFile::parse(bytes, Path::new("standard input"))
            }
            false => RecipeFile::read(file),
        };
        let missing = !stdin && !file.exists();
        let recipe = recipe.map_err(|error| {
            let problem = Problem::from(crate::fault::Fault::from(error));
            if missing { problem.as_kind(ExitKind::NotFound) } else { problem }
        })?;
        let given = match (&self.name, stdin) {
            (Some(name), _) => name.clone(),
            (None, true) => recipe.recipe().name.clone(),
            (None, false) => file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        };
        let name = PartName::parse(&given).or_else(|_| PartName::new(&given)).map_err(crate::line::LineError::from)?;
        Ok((name, recipe.bytes().to_vec()))
    }
}
