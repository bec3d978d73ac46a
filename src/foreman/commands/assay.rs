//! `foreman assay`: measures a model.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::assay::{self, Convention, Data, Measurement, Request, Runner};
use crate::engine::{PassOptions, device_name, open_device};
use crate::family::{self, OpenModel};
use crate::fault::Fault;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, ExitKind, Problem};
use crate::foreman::printer::Printer;
use crate::foreman::progress::PassBar;
use crate::foreman::subject::{find_model, hash_model};
use crate::foreman::wording::{duration, figure};
use crate::node::{DeviceChoice, MOST_TEXT, Node, Resolver};
use crate::units::{Bytes, Sha, read_at_most};

/// Measure a model on a text, or on lists of token ids
///
/// Conventions: llama.cpp cuts the text into windows and scores the second half of each, as llama-perplexity does;
/// windowed scores every token but a window's first. Figures of different conventions cannot be compared.
///
/// With --against, both models are run over the same tokens in one pass, and the answer says how far MODEL strays from
/// the other: KL divergence, how often both think the same token best, and the perplexity of both.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  foreman assay models/m --data held-out.txt --context 512 --convention llama.cpp\n  foreman assay out.Q4_0.gguf --against models/m --data held-out.txt\n  foreman assay out.Q4_0.gguf --token-ids ids.json --json"
)]
pub struct Args {
    /// Hugging Face directory, GGUF file, entry of [sources] or hub id in the local cache
    model: String,

    /// What to measure; `foreman runners` lists them [default: perplexity, or divergence with --against]
    #[arg(long)]
    runner: Option<String>,

    /// The model to compare with, usually the one that MODEL was made from; named like MODEL
    #[arg(long, value_name = "MODEL")]
    against: Option<String>,

    /// A UTF-8 text: a path, or a name under calibration/ of the line
    #[arg(long, value_name = "FILE", required_unless_present = "token_ids", conflicts_with = "token_ids")]
    data: Option<String>,

    /// A JSON list of lists of token ids, each scored as one sequence from its second token
    #[arg(long, value_name = "FILE")]
    token_ids: Option<PathBuf>,

    /// Window length in tokens
    #[arg(long, default_value_t = 512, value_name = "TOKENS", conflicts_with = "token_ids")]
    context: usize,

    /// llama.cpp or windowed
    #[arg(long, default_value = "llama.cpp", value_parser = convention, conflicts_with = "token_ids")]
    convention: Convention,

    /// Stop after about this many tokens (whole windows or sequences)
    #[arg(long, value_name = "TOKENS")]
    max_tokens: Option<usize>,

    /// Threads for computing [default: one per processor]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Memory the pass may use, in GB (10^9 bytes)
    #[arg(long, value_name = "GB")]
    memory_budget: Option<f64>,

    /// auto, cpu, cuda:0, …
    #[arg(long, default_value = "auto", value_parser = device)]
    device: DeviceChoice,
}

fn convention(text: &str) -> Result<Convention, String> {
    let known = Convention::ALL.map(Convention::as_str).join(" or ");
    Convention::named(text).ok_or_else(|| format!("the conventions are {known}"))
}

fn device(text: &str) -> Result<DeviceChoice, String> {
    text.parse()
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let runner = self.runner()?;
        let path = find_model(desk, &self.model)?;
        let base = self.against.as_ref().map(|name| find_model(desk, name)).transpose()?;
        let data = self.data(desk)?;
        self.set_threads()?;
        let model = open(desk, &path)?;
        let against = base.as_ref().map(|path| open(desk, path)).transpose()?;
        let device = open_device(self.device).map_err(Fault::from)?;
        let name = device_name(&device);
        let request = Request {
            limit: self.limit(&data)?,
            data,
            against: against.as_ref(),
            options: PassOptions { device, memory_budget: self.budget()?, ..PassOptions::default() },
        };
        let bar = PassBar::new(&desk.printer, runner.name());
        let measured = runner.run(&model, &request, &|progress| bar.show(&progress)).map_err(Fault::from)?;
        bar.finish();
        let of = |model: &OpenModel| hash_model(&model.path, model.tensors.files()).map(|(_, hash)| hash);
        let hashes = (of(&model)?, against.as_ref().map(of).transpose()?);
        let document = document(&measured, hashes, &path, base.as_deref(), &name);
        desk.answer(&document, |_, printer| words(&measured, hashes, base.as_deref(), printer))
    }
}

fn open(desk: &mut Desk, path: &Path) -> Result<OpenModel, Problem> {
    let model = family::open(path).map_err(Fault::from)?;
    for warning in &model.warnings {
        desk.printer.warn(warning);
    }
    Ok(model)
}

impl Args {
    fn runner(&self) -> Result<&'static dyn Runner, Problem> {
        let by_need = if self.against.is_some() { "divergence" } else { "perplexity" };
        let named = self.runner.as_deref().unwrap_or(by_need);
        let runner = assay::runner(named).map_err(|e| Problem::from(Fault::from(e)).as_kind(ExitKind::Usage))?;
        match (runner.compares(), &self.against) {
            (true, None) => {
                Err(Problem::usage(format!("--runner {named} compares two models")).hinted("add --against MODEL"))
            }
            (false, Some(_)) => {
                Err(Problem::usage(format!("--runner {named} looks at one model, --against names another"))
                    .hinted("leave one of the two out"))
            }
            _ => Ok(runner),
        }
    }

    fn data(&self, desk: &Desk) -> Result<Data, Problem> {
        if let Some(path) = &self.token_ids {
            return match path.is_file() {
                true => Ok(Data::TokenIds { path: path.clone() }),
                false => Err(Problem::not_found(format!("{} is not a file", path.display()))),
            };
        }
        let name = self.data.as_deref().unwrap_or_default();
        let path = match Path::new(name).is_file() {
            true => PathBuf::from(name),
            false => {
                let layout = desk.layout();
                let node = Node::read(layout.root())?;
                let found = Resolver::new(&node, layout.root()).text(name);
                found.map_err(|fault| Problem::from(fault).as_kind(ExitKind::NotFound))?.path
            }
        };
        Ok(Data::Text { path, context: self.context, convention: self.convention })
    }

    /// Windows or sequences that hold about `--max-tokens`.
    fn limit(&self, data: &Data) -> Result<Option<usize>, Problem> {
        let Some(most) = self.max_tokens else { return Ok(None) };
        let path = match data {
            Data::Text { context, .. } => return Ok(Some((most / (*context).max(1)).max(1))),
            Data::TokenIds { path } => path,
        };
        let bytes =
            read_at_most(path, MOST_TEXT).map_err(|error| Problem::io(format!("read {}", path.display()), &error))?;
        // A file that is no list of lists is the runner's to refuse, with its own words.
        let sequences: Vec<Vec<u32>> = serde_json::from_slice(&bytes).unwrap_or_default();
        let mut tokens = 0;
        let fits = sequences.iter().take_while(|sequence| {
            tokens += sequence.len();
            tokens <= most
        });
        Ok(Some(fits.count().max(1)))
    }

    fn budget(&self) -> Result<Option<Bytes>, Problem> {
        match self.memory_budget {
            None => Ok(None),
            Some(gb) if gb > 0.0 && gb < 1e6 => Ok(Some(Bytes((gb * 1e9) as u64))),
            Some(gb) => Err(Problem::usage(format!("--memory-budget {gb} is not a size in GB"))),
        }
    }

    fn set_threads(&self) -> Result<(), Problem> {
        let Some(threads) = self.threads else { return Ok(()) };
        if threads == 0 {
            return Err(Problem::usage("--threads 0: at least one thread is needed"));
        }
        let built = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        built.map_err(|error| Problem::new(ExitKind::Unexpected, format!("start {threads} threads: {error}")))
    }
}

fn document(
    measured: &Measurement,
    (hash, base_hash): (Sha, Option<Sha>),
    path: &Path,
    base: Option<&Path>,
    device: &str,
) -> Map<String, Value> {
    let mut fields = match serde_json::to_value(measured) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    fields.insert("model_hash".into(), hash.tagged().into());
    fields.insert("model".into(), path.display().to_string().into());
    if let (Some(base), Some(hash)) = (base, base_hash) {
        fields.insert("against".into(), base.display().to_string().into());
        fields.insert("against_hash".into(), hash.tagged().into());
    }
    fields.insert("device".into(), device.into());
    fields
}

fn words(
    measured: &Measurement,
    (hash, base_hash): (Sha, Option<Sha>),
    base: Option<&Path>,
    printer: &mut Printer,
) -> Result<(), Problem> {
    let mut fact = |name: &str, value: String| printer.line(format!("{name:<13}{value}"));
    let (mean, error) = (measured.nll, measured.nll_stderr);
    let spread = measured.perplexity * error;
    fact("perplexity", format!("{} ± {}", figure(measured.perplexity), figure(spread)))?;
    fact("nll", format!("{mean:.5} ± {error:.5} nats per token"))?;
    if let (Some(base), Some(d)) = (base, &measured.divergence) {
        fact("against", format!("{}, perplexity {}", base.display(), figure(d.base_perplexity)))?;
        fact("ln ratio", format!("{:.5} ± {:.5} of the perplexities", d.ln_ratio, d.ln_ratio_stderr))?;
        fact("KLD", format!("{:.6} ± {:.6} nats per token", d.kld, d.kld_stderr))?;
        let (median, p99, p999, max) = (d.kld_median, d.kld_p99, d.kld_p999, d.kld_max);
        fact("", format!("median {median:.6}, 99 % {p99:.5}, 99.9 % {p999:.5}, max {max:.5}"))?;
        fact("same top-1", format!("{:.3} ± {:.3} %", 100.0 * d.same_top, 100.0 * d.same_top_stderr))?;
        fact("RMS Δp", format!("{:.3} % of the right token", 100.0 * d.rms_delta_p))?;
    }
    let (convention, context) = (&measured.convention, measured.context);
    fact("convention", format!("{convention}, context {context}"))?;
    fact("tokens", format!("{} read, {} scored", measured.tokens, measured.scored))?;
    fact("time", format!("{}, {:.0} tokens/s", duration(measured.seconds), measured.tokens_per_s))?;
    let (peak, predicted) = (Bytes(measured.peak_rss_bytes), Bytes(measured.predicted_peak_bytes));
    fact("memory", format!("peak {peak}, predicted {predicted}"))?;
    fact("data", format!("sha256:{}", measured.data_sha256))?;
    fact("model hash", hash.tagged())?;
    base_hash.map_or(Ok(()), |hash| fact("against hash", hash.tagged()))
}
