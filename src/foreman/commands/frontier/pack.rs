//! `foreman frontier pack`: a model directory as an archive that is the same bytes each time.

use std::path::PathBuf;

use serde::Serialize;

use super::problem;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, Problem};
use crate::frontier::{Container, Packing, pack};
use crate::units::Bytes;

/// Pack a model directory into an archive, the same bytes each time
///
/// The ending of TARGET says which kind: .tar.xz (smallest), .tar.bz2, .tar.gz, .tar or .zip.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman frontier pack models/tiny tiny.tar.xz")]
pub struct Args {
    /// The directory; its files stand at the root of the archive
    directory: PathBuf,

    /// The archive to write
    target: PathBuf,

    /// Bytes of a stored weight: 2 for f16 and bf16, 4 for f32
    #[arg(long, default_value_t = 2, value_name = "BYTES")]
    width: usize,
}

#[derive(Serialize)]
struct Packed {
    path: PathBuf,
    container: Container,
    artifact_sha256: String,
    artifact_size_bytes: u64,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let name = self.target.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let kinds = [Container::TarXz, Container::TarBz2, Container::TarGz, Container::Tar, Container::Zip];
        let container = kinds.into_iter().find(|kind| name.ends_with(&format!(".{}", kind.as_str())));
        let container = container.ok_or_else(|| {
            Problem::usage(format!("{} has no ending that says which archive", self.target.display()))
                .hinted("end it in .tar.xz, .tar.bz2, .tar.gz, .tar or .zip")
        })?;
        if !self.directory.join("config.json").is_file() {
            let directory = self.directory.display();
            return Err(Problem::not_found(format!("{directory} holds no config.json"))
                .hinted("name a Hugging Face model directory"));
        }
        if self.target.exists() {
            return Err(Problem::refused(format!("{} is there already", self.target.display())));
        }
        let hash = pack(&self.directory, &self.target, Packing { container, width: self.width }).map_err(problem)?;
        let packed = Packed {
            path: self.target.clone(),
            container,
            artifact_sha256: hash.sha256.hex(),
            artifact_size_bytes: hash.size,
        };
        desk.answer(&packed, |packed, printer| {
            printer.line(format!("{}  {}", packed.path.display(), Bytes(packed.artifact_size_bytes)))?;
            printer.line(format!("artifact_sha256      {}", packed.artifact_sha256))?;
            printer.line(format!("artifact_size_bytes  {}", packed.artifact_size_bytes))
        })
    }
}
