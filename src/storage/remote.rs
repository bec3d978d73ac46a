//! What a network tier has of a model: the files, their sizes and hashes, and the address of each. Whatever a server says
//! is held against bounds before it is believed.

use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body, Error};

use crate::fault::{Fault, Outcome};
use crate::node::{NetworkKind, NetworkTier};
use crate::units::Sha;

/// Largest listing that is read, bytes.
const MOST_LISTING: u64 = 16 << 20;
/// Most files of one model.
const MOST_FILES: usize = 4096;
/// Longest path of one file, bytes.
const MOST_PATH: usize = 240;
/// Folders a file may lie in, its own name counted.
const MOST_DEPTH: usize = 4;
/// Largest model, bytes; also keeps sums of sizes from overflowing.
const MOST_BYTES: u64 = 1 << 50;

/// How long a connection may take, and how long a server may be silent. The whole may take as long as it takes.
const CONNECT: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(60);
const REDIRECTS: u32 = 5;

/// The schema of an artifact's `manifest.json`.
const MANIFEST_SCHEMA: &str = "factoryline.manifest.v1";

/// Formats that run code when they are loaded, and code.
const NEVER: &[&str] = &["bin", "pt", "pth", "pkl", "pickle", "ckpt", "py"];

const TOKENIZER: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
];

/// A model as a network tier offers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Offer {
    /// Where the model is: the address of the repository at its commit, or of the folder.
    pub address: String,
    /// What was asked for, and what the hub says it is now.
    pub revision: Option<String>,
    pub commit: Option<String>,
    pub files: Vec<OfferedFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OfferedFile {
    /// Relative, of plain names only.
    pub path: String,
    pub size: u64,
    /// Absent when only the size is known.
    pub sha256: Option<Sha>,
    pub url: String,
}

impl Offer {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// What a tier answers.
pub(super) enum Asked {
    Has(Offer),
    /// It knows no such model: a fault that says where was asked.
    Lacks(Fault),
}

/// A server that speaks HTTP/1.1.
pub(super) struct Remote<'a> {
    tier: &'a NetworkTier,
    address: &'a str,
    agent: Agent,
    token: Option<String>,
}

impl<'a> Remote<'a> {
    /// `None` for a tier without an address.
    pub fn of(tier: &'a NetworkTier) -> Option<Remote<'a>> {
        let address = tier.address()?;
        let is_encrypted = address.starts_with("https://");
        let host = address.split("//").nth(1).unwrap_or_default();
        let is_here = ["127.", "localhost", "[::1]"].iter().any(|here| host.starts_with(here));
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // What begins encrypted stays so.
            .https_only(is_encrypted)
            .max_redirects(REDIRECTS)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("factoryline/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE));
        if is_here {
            config = config.proxy(None);
        }
        // The token is for the hub alone, and never goes over an open wire.
        let token = std::env::var("HF_TOKEN").ok().map(|token| token.trim().to_owned());
        let token = token.filter(|token| !token.is_empty() && is_encrypted && tier.kind == NetworkKind::Hf);
        Some(Remote { tier, address, agent: config.build().new_agent(), token })
    }

    /// Name of the tier.
    pub fn name(&self) -> &str {
        &self.tier.name
    }

    /// What the tier has under `name`; `revision` matters to the hub only.
    pub fn offer(&self, name: &str, revision: Option<&str>) -> Outcome<Asked> {
        match self.tier.kind {
            NetworkKind::Hf => self.hub_offer(name, revision.unwrap_or("main")),
            NetworkKind::Peer => self.peer_offer(name),
        }
    }

    fn hub_offer(&self, name: &str, revision: &str) -> Outcome<Asked> {
        if revision.is_empty() || revision.len() > 200 || revision.contains("..") {
            let fault =
                Fault::recipe(format!("source.revision {revision:?} is no name of a branch, a tag or a commit"));
            return Err(fault.hint("write the revision as the hub shows it, or leave it out for main"));
        }
        let url = format!("{}/api/models/{name}/revision/{}?blobs=true", self.address, encoded(revision));
        let listing: Listing = match self.read_json(&url)? {
            Ok(listing) => listing,
            Err(lacks) => return Ok(Asked::Lacks(lacks)),
        };
        let commit = listing.sha;
        if commit.is_empty() || commit.len() > 64 || !commit.bytes().all(|c| c.is_ascii_alphanumeric()) {
            return Err(Fault::source(format!("{url}: its commit is {commit:?}")));
        }
        let address = format!("{}/{name}/resolve/{commit}", self.address);
        let mut files = Vec::new();
        // Every name is checked, also of files nobody wants: such a listing is not to be trusted.
        for sibling in bounded(&url, listing.siblings)? {
            let path = plain(&url, &sibling.rfilename)?;
            if !is_wanted(&path) {
                continue;
            }
            let size = sibling.lfs.as_ref().map(|lfs| lfs.size).or(sibling.size);
            let size = size.ok_or_else(|| Fault::source(format!("{url}: no size is given for {path}")))?;
            let sha256 = sibling.lfs.map(|lfs| lfs.sha256);
            files.push(OfferedFile { url: format!("{address}/{}", encoded(&path)), path, size, sha256 });
        }
        // Some repositories hold the same weights a second time, under another layout.
        if files.iter().any(|file| file.path.starts_with("model") && file.path.contains(".safetensors")) {
            files.retain(|file| !file.path.starts_with("consolidated"));
        }
        let revision = Some(revision.to_owned());
        Ok(Asked::Has(whole(&url, Offer { address, revision, commit: Some(commit), files })?))
    }

    fn peer_offer(&self, name: &str) -> Outcome<Asked> {
        let address = format!("{}/{name}", self.address);
        let url = format!("{address}/manifest.json");
        let manifest: PeerManifest = match self.read_json(&url)? {
            Ok(manifest) => manifest,
            Err(lacks) => return Ok(Asked::Lacks(lacks)),
        };
        if manifest.schema != MANIFEST_SCHEMA {
            let message = format!("{url}: its schema is {:?}", manifest.schema);
            return Err(Fault::source(message).hint(format!("this build reads {MANIFEST_SCHEMA}")));
        }
        let mut files = Vec::new();
        for file in bounded(&url, manifest.file_hashes)? {
            let path = plain(&url, &file.filename)?;
            if is_never(&path) || path.split('/').any(|part| part.starts_with('.')) {
                continue;
            }
            let url = format!("{address}/{}", path.split('/').map(encoded).collect::<Vec<_>>().join("/"));
            files.push(OfferedFile { path, size: file.size, sha256: Some(file.sha256), url });
        }
        Ok(Asked::Has(whole(&url, Offer { address, revision: None, commit: None, files })?))
    }

    /// A small document; the inner error says that the server has none.
    fn read_json<T: for<'de> Deserialize<'de>>(&self, url: &str) -> Outcome<Result<T, Fault>> {
        let mut answer = self.get(url, 0)?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(Err(self.refused(url, answer.status())));
        }
        self.granted(url, &answer)?;
        let mut text = Vec::new();
        let mut body = answer.body_mut().as_reader().take(MOST_LISTING + 1);
        body.read_to_end(&mut text).map_err(|error| cut(url, error))?;
        if text.len() as u64 > MOST_LISTING {
            return Err(Fault::source(format!("{url}: the listing has more than {MOST_LISTING} bytes")));
        }
        match serde_json::from_slice(&text) {
            Ok(document) => Ok(Ok(document)),
            Err(error) => Err(Fault::source(format!("{url}: not the expected listing: {error}"))
                .hint("is the endpoint of the network tier right?")),
        }
    }

    /// Asks for a file from byte `from` on. Any status is an answer.
    pub fn get(&self, url: &str, from: u64) -> Outcome<Response<Body>> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        request.call().map_err(|error| match error {
            // The error itself would show the header.
            Error::Http(_) => Fault::source(format!("GET {url}: no valid request")).hint("is HF_TOKEN well formed?"),
            Error::RequireHttpsOnly(_) => {
                Fault::source(format!("GET {url}: it leads to an address without encryption"))
            }
            Error::BadUri(_) => Fault::source(format!("GET {url}: no valid address"))
                .hint("correct the endpoint under [[storage.network]] in factory_node.toml"),
            error => cut(url, error.into_io()).hint(
                "is the address right and reachable, and may the service use the network (docs/OPERATOR.md, Models)?",
            ),
        })
    }

    /// Whether a body follows that is what was asked for.
    pub fn granted(&self, url: &str, answer: &Response<Body>) -> Outcome<()> {
        if answer.status().is_success() { Ok(()) } else { Err(self.refused(url, answer.status())) }
    }

    fn refused(&self, url: &str, status: StatusCode) -> Fault {
        let message = format!("GET {url}: the server says {status}");
        match (status, self.tier.kind) {
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, NetworkKind::Hf) => Fault::source(message)
                .hint("accept the model's licence on the hub, and set HF_TOKEN for the service (sent over https only)"),
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, NetworkKind::Peer) => {
                Fault::source(message).hint("the peer must serve its models without a login")
            }
            (StatusCode::NOT_FOUND, _) => Fault::source(message)
                .hint("check source.baseModel and source.revision, and the endpoint of the network tier"),
            _ if status.is_server_error() || status == 408 || status == 429 => {
                Fault::infra(message).hint("tried again by itself")
            }
            _ => Fault::source(message),
        }
    }
}

/// A transfer that failed on its way.
pub(super) fn cut(url: &str, error: std::io::Error) -> Fault {
    Fault::infra(format!("GET {url}"))
        .caused_by(error)
        .hint("what has arrived is kept; the next try goes on from there")
}

/// `GET /api/models/{repo}/revision/{revision}?blobs=true`.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Sha,
    size: u64,
}

/// As much of an artifact's manifest as is needed here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PeerManifest {
    schema: String,
    file_hashes: Vec<PeerFile>,
}

#[derive(Deserialize)]
struct PeerFile {
    filename: String,
    sha256: Sha,
    size: u64,
}

fn bounded<T>(url: &str, files: Vec<T>) -> Outcome<Vec<T>> {
    if files.len() > MOST_FILES {
        return Err(Fault::source(format!("{url}: {} files; a model may have {MOST_FILES}", files.len())));
    }
    Ok(files)
}

/// A name that stays in its folder and is written in one way only.
fn plain(url: &str, name: &str) -> Outcome<String> {
    let parts: Vec<Component<'_>> = Path::new(name).components().collect();
    let is_plain = !name.is_empty()
        && name.len() <= MOST_PATH
        && parts.len() <= MOST_DEPTH
        && parts.iter().all(|part| matches!(part, Component::Normal(_)))
        && parts.iter().collect::<PathBuf>().as_os_str() == name
        && !name.chars().any(|c| c.is_control() || c == '\\');
    if is_plain { Ok(name.to_owned()) } else { Err(Fault::source(format!("{url}: {name:?} is no name of a file"))) }
}

fn is_never(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|e| NEVER.iter().any(|never| e.eq_ignore_ascii_case(never)))
}

/// What a model is read from: weights, configuration, tokenizer; nothing below a folder.
fn is_wanted(path: &str) -> bool {
    let is_config = path == "config.json" || path == "generation_config.json";
    let is_weights = path.ends_with(".safetensors") || path.ends_with(".safetensors.index.json");
    let is_text = TOKENIZER.contains(&path) || path.starts_with("chat_template");
    let is_hidden = path.starts_with('.');
    !path.contains('/') && !is_hidden && !is_never(path) && (is_config || is_weights || is_text)
}

/// An offer that is a model, with every name once.
fn whole(url: &str, mut offer: Offer) -> Outcome<Offer> {
    offer.files.sort_by(|a, b| a.path.cmp(&b.path));
    if let Some(pair) = offer.files.windows(2).find(|pair| pair[0].path == pair[1].path) {
        return Err(Fault::source(format!("{url}: names {} twice", pair[0].path)));
    }
    let total = offer.files.iter().try_fold(0u64, |sum, file| sum.checked_add(file.size));
    if total.is_none_or(|total| total > MOST_BYTES) {
        return Err(Fault::source(format!("{url}: the sizes it gives are those of no model")));
    }
    let is_weights = |file: &OfferedFile| file.path.ends_with(".safetensors") || file.path.ends_with(".gguf");
    if !offer.files.iter().any(is_weights) {
        return Err(Fault::source(format!("{url}: no weights that are read here (safetensors) are among its files"))
            .hint("weights in pickles are never fetched; name a repository that has safetensors"));
    }
    Ok(offer)
}

/// Percent-encoded as one segment of a path.
fn encoded(text: &str) -> String {
    let byte = |b: u8| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(b).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}
