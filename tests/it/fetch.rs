//! Models that are fetched over the network: from a hub and from a peer by address, both played by a small server here.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use factoryline::fault::{Fault, FaultClass, Outcome};
use factoryline::line::Station;
use factoryline::node::{FoundBy, Resolver};
use factoryline::recipe::RecipeFile;
use factoryline::storage::{NoSteps, Receipt, Steps, fetch};
use factoryline::units::Sha;
use serde_json::{Value, json};

use crate::storage::{Bench, names};
use crate::storage_moves::Cut;
use crate::web_server::{Request, Server, answer, broken, first_byte_sent_to, no, part_of};
use crate::worker::fixture;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Lines whose only network tier is a server of these tests.
impl Server {
    fn hub(&self) -> Bench {
        Bench::new(&format!("[[storage.network]]\nname = \"hub\"\nkind = \"hf\"\nendpoint = \"http://{}\"\n", self.at))
    }

    fn peer(&self) -> Bench {
        let at = self.at;
        Bench::new(&format!(
            "[[storage.network]]\nname = \"far\"\nkind = \"peer\"\nendpoint = \"http://{at}/models/\"\n"
        ))
    }
}

/// Larger than any buffer on the way.
fn weights() -> Vec<u8> {
    (0..900_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn sibling(name: &str, body: &[u8], is_large: bool) -> Value {
    let lfs = is_large.then(|| json!({"sha256": Sha::of(body).hex(), "size": body.len(), "pointerSize": 134}));
    json!({"rfilename": name, "size": body.len(), "blobId": "x", "lfs": lfs})
}

/// What a hub says of `org/m`.
fn listing(files: &[Value]) -> Vec<u8> {
    answer("200 OK", "", json!({"id": "org/m", "sha": COMMIT, "siblings": files}).to_string().as_bytes())
}

/// The listing of a model of two files.
fn two_files() -> Vec<u8> {
    listing(&[sibling("config.json", b"{}", false), sibling("model.safetensors", &weights(), true)])
}

fn is_listing(request: &Request) -> bool {
    request.path.starts_with("/api/")
}

fn recipe_of(bench: &Bench, model: &str, revision: Option<&str>) -> RecipeFile {
    let mut source = json!({"baseModel": model, "architecture": "llama"});
    if let Some(revision) = revision {
        source["revision"] = json!(revision);
    }
    let stages = json!([{"type": "quant", "format": "gguf", "quantTypes": ["Q8_0"]}]);
    let recipe = json!({"name": "x", "version": "1.0.0", "source": source, "stages": stages});
    let path = bench.layout.station(Station::Assembly).join("x.alloy.json");
    fs::write(&path, recipe.to_string()).unwrap();
    RecipeFile::read(&path).unwrap()
}

fn bring_with(bench: &Bench, steps: &dyn Steps) -> Outcome<Option<Receipt>> {
    fetch::bring(&recipe_of(bench, "org/m", None), &bench.node(), &bench.layout, steps, &|_, _| {})
}

fn bring(bench: &Bench) -> Outcome<Option<Receipt>> {
    bring_with(bench, &NoSteps)
}

fn place(bench: &Bench) -> PathBuf {
    bench.layout.root().join("cache/sources/org/m")
}

/// Class, message and hint, with the server's address made equal everywhere.
fn said(server: &Server, fault: Fault) -> String {
    let hint = fault.hint.clone().unwrap_or_default();
    format!("{}: {} [{hint}]", fault.class, fault.one_line()).replace(&server.at.to_string(), "HOST")
}

/// Everything is there, and nothing of the way it came.
fn assert_whole(bench: &Bench) {
    let here = place(bench);
    assert_eq!(fs::read(here.join("model.safetensors")).unwrap(), weights());
    assert_eq!(fs::read(here.join("config.json")).unwrap(), b"{}");
    assert!(!here.with_file_name(".m.partial").exists());
}

#[test]
fn a_model_of_the_hub_is_fetched_whole_and_without_what_nobody_reads() {
    let server = Server::new(|request| match request.path.as_str() {
        "/api/models/org/m/revision/refs%2Fpr%2F1?blobs=true" => listing(&[
            sibling(".gitattributes", b"x", false),
            sibling("README.md", b"x", false),
            sibling("config.json", b"{}", false),
            sibling("consolidated.safetensors", b"twice", true),
            sibling("model.safetensors", &weights(), true),
            sibling("modeling_m.py", b"import os", false),
            sibling("onnx/model.safetensors", b"x", true),
            sibling("pytorch_model.bin", b"x", true),
            sibling("tokenizer.json", b"[]", false),
        ]),
        path => match path.strip_prefix(&format!("/org/m/resolve/{COMMIT}/")) {
            Some("config.json") => answer("200 OK", "", b"{}"),
            Some("tokenizer.json") => answer("307 Temporary Redirect", "Location: /api/cache/tokenizer.json\r\n", b""),
            Some("model.safetensors") => answer("302 Found", "Location: /cdn/w?signature=1\r\n", b"elsewhere"),
            _ if path == "/api/cache/tokenizer.json" => answer("200 OK", "", b"[]"),
            _ if path == "/cdn/w?signature=1" => part_of(&weights(), request.from),
            _ => no("500 Internal Server Error"),
        },
    });
    let bench = server.hub();
    let (node, recipe) = (bench.node(), recipe_of(&bench, "org/m", Some("refs/pr/1")));
    let most = AtomicU64::new(0);
    let told = |done, total| {
        assert_eq!(total, 900_004);
        most.fetch_max(done, Ordering::SeqCst);
    };
    let receipt = fetch::bring(&recipe, &node, &bench.layout, &NoSteps, &told).unwrap().unwrap();
    assert_eq!(most.load(Ordering::SeqCst), 900_004);
    assert_whole(&bench);
    let entries = fs::read_dir(place(&bench)).unwrap();
    let mut files: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    assert_eq!(files, [".last-used", "config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(server.asked().len(), 6);

    assert_eq!(receipt.from, PathBuf::from(format!("http://{}/org/m/resolve/{COMMIT}", server.at)));
    assert_eq!((receipt.revision.as_deref(), receipt.commit.as_deref()), (Some("refs/pr/1"), Some(COMMIT)));
    assert_eq!(receipt.size_only, [PathBuf::from("config.json"), PathBuf::from("tokenizer.json")]);
    let written = fs::read_to_string(place(&bench).with_file_name("m.receipt.json")).unwrap();
    assert_eq!(serde_json::from_str::<Receipt>(&written).unwrap(), receipt);
    assert!(!written.contains("signature"), "{written}");
    assert!(fs::read_to_string(bench.layout.events()).unwrap().contains("\"line/fetched\""));
    let found = Resolver::new(&node, bench.layout.root()).with_hub(None).model("org/m", None).unwrap();
    assert_eq!((found.path, found.how), (place(&bench), FoundBy::LineCache));

    // It is here now: nobody is asked again, under any of its names, and another revision is not taken for it.
    for same in [None, Some("refs/pr/1"), Some(COMMIT)] {
        let again = recipe_of(&bench, "org/m", same);
        assert_eq!(fetch::bring(&again, &node, &bench.layout, &NoSteps, &told).unwrap(), None);
    }
    let other = recipe_of(&bench, "org/m", Some("main"));
    let fault = fetch::bring(&other, &node, &bench.layout, &NoSteps, &told).unwrap_err();
    assert_eq!(fault.class, FaultClass::Source);
    assert_eq!(fault.message, r#""org/m" was fetched at revision "refs/pr/1", the recipe names "main""#);
    assert_eq!(server.asked(), Vec::<String>::new());
}

#[test]
fn other_bytes_than_were_announced_are_removed() {
    let is_mended = Arc::new(AtomicBool::new(false));
    let mended = Arc::clone(&is_mended);
    let server = Server::new(move |request| match request.path.rsplit('/').next() {
        _ if is_listing(request) => two_files(),
        Some("config.json") => answer("200 OK", "", b"{}"),
        _ if mended.load(Ordering::SeqCst) => part_of(&weights(), request.from),
        _ => answer("200 OK", "", &vec![7; 900_000]),
    });
    let bench = server.hub();
    let fault = said(&server, bring(&bench).unwrap_err());
    insta::assert_snapshot!(fault, @r#"source: http://HOST/org/m/resolve/0123456789abcdef0123456789abcdef01234567/model.safetensors: what arrived has SHA-256 8ada33f4b53b335a6b4caabb0339cef62b25865941a4a7f3d713494f66a4ea1a, it was said to be 4653224e12434a48b7c314189a8cc6c9e9a99a96f02001c9343be00b0db89218 [it was removed; `foreman retry` fetches it again]"#);
    assert!(!place(&bench).exists());
    let partial = place(&bench).with_file_name(".m.partial/content");
    assert_eq!(names(&partial).into_keys().collect::<Vec<_>>(), ["config.json"]);
    is_mended.store(true, Ordering::SeqCst);
    bring(&bench).unwrap().unwrap();
    assert_whole(&bench);
    // The file that was right was not fetched twice.
    assert_eq!(server.asked().iter().filter(|path| path.ends_with("config.json")).count(), 1);
}

#[test]
fn a_broken_transfer_goes_on_where_it_ended() {
    for knows_ranges in [true, false] {
        let tries = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&tries);
        let server = Server::new(move |request| match request.path.rsplit('/').next() {
            _ if is_listing(request) => two_files(),
            Some("config.json") => answer("200 OK", "", b"{}"),
            _ if counted.fetch_add(1, Ordering::SeqCst) == 0 => broken(part_of(&weights(), 0), 300_000),
            _ => part_of(&weights(), if knows_ranges { request.from } else { 0 }),
        });
        let bench = server.hub();
        let fault = bring(&bench).unwrap_err();
        assert_eq!(fault.class, FaultClass::Infra, "{fault}");
        let url = format!("GET http://{}/org/m/resolve/{COMMIT}/model.safetensors: ", server.at);
        assert!(fault.one_line().starts_with(&url), "{fault}");
        assert!(!place(&bench).exists());
        let partial = place(&bench).with_file_name(".m.partial/content/model.safetensors");
        assert_eq!(fs::metadata(&partial).unwrap().len(), 600_000);
        server.asked();
        bring(&bench).unwrap().unwrap();
        assert_whole(&bench);
        let asked = server.asked();
        assert!(asked.last().unwrap().ends_with("/model.safetensors from 600000"), "{asked:?}");
        assert_eq!(asked.len(), 2);
    }
}

#[test]
fn what_is_left_of_a_try_is_believed_only_when_the_whole_hashes_right() {
    let tries = AtomicU64::new(0);
    let server = Server::new(move |request| match request.path.rsplit('/').next() {
        _ if is_listing(request) => two_files(),
        Some("config.json") => answer("200 OK", "", b"{}"),
        _ if tries.fetch_add(1, Ordering::SeqCst) == 0 => broken(part_of(&weights(), 0), 300_000),
        _ => part_of(&weights(), request.from),
    });
    let bench = server.hub();
    bring(&bench).unwrap_err();
    let partial = place(&bench).with_file_name(".m.partial/content/model.safetensors");
    fs::write(&partial, vec![1; 600_000]).unwrap();
    assert_eq!(bring(&bench).unwrap_err().class, FaultClass::Source);
    assert!(!partial.exists() && !place(&bench).exists());
    bring(&bench).unwrap().unwrap();
    assert_whole(&bench);
}

#[test]
fn a_refusal_says_whose_job_it_is() {
    let statuses =
        ["401 Unauthorized", "403 Forbidden", "404 Not Found", "429 Too Many Requests", "503 Busy", "418 Pot"];
    let mut all = Vec::new();
    for status in statuses {
        let server = Server::new(move |_| no(status));
        all.push(said(&server, bring(&server.hub()).unwrap_err()));
    }
    // Of a file, after the listing.
    let server = Server::new(|request| if is_listing(request) { two_files() } else { no("403 Forbidden") });
    let bench = server.hub();
    all.push(said(&server, bring(&bench).unwrap_err()));
    assert!(!place(&bench).exists());
    // Nobody there at all.
    let gone = Server::new(|_| Vec::new());
    let (bench, at) = (gone.hub(), gone.at.to_string());
    drop(gone);
    let fault = bring(&bench).unwrap_err();
    all.push(format!("{}: {}", fault.class, fault.one_line().replace(&at, "HOST")));
    insta::assert_snapshot!(all.join("\n"), @r##"
    source: GET http://HOST/api/models/org/m/revision/main?blobs=true: the server says 401 Unauthorized [accept the model's licence on the hub, and set HF_TOKEN for the service (sent over https only)]
    source: GET http://HOST/api/models/org/m/revision/main?blobs=true: the server says 403 Forbidden [accept the model's licence on the hub, and set HF_TOKEN for the service (sent over https only)]
    source: GET http://HOST/api/models/org/m/revision/main?blobs=true: the server says 404 Not Found [check source.baseModel and source.revision, and the endpoint of the network tier]
    infra: GET http://HOST/api/models/org/m/revision/main?blobs=true: the server says 429 Too Many Requests [tried again by itself]
    infra: GET http://HOST/api/models/org/m/revision/main?blobs=true: the server says 503 Service Unavailable [tried again by itself]
    source: GET http://HOST/api/models/org/m/revision/main?blobs=true: the server says 418 I'm a teapot []
    source: GET http://HOST/org/m/resolve/0123456789abcdef0123456789abcdef01234567/config.json: the server says 403 Forbidden [accept the model's licence on the hub, and set HF_TOKEN for the service (sent over https only)]
    infra: GET http://HOST/api/models/org/m/revision/main?blobs=true: Connection refused (os error 111)
    "##);
}

#[test]
fn a_listing_that_is_not_one_of_a_model_is_refused() {
    let weights = || sibling("model.safetensors", &weights(), true);
    let listings = [
        listing(&[weights(), sibling("../../evil.safetensors", b"x", true)]),
        listing(&[weights(), sibling("/etc/passwd", b"x", true)]),
        listing(&[weights(), sibling("a//b.json", b"x", true)]),
        listing(&[weights(), sibling("a/b/c/d/e.json", b"x", true)]),
        listing(&[weights(), sibling(&"n".repeat(300), b"x", true)]),
        listing(&[weights(), weights()]),
        listing(&[json!({"rfilename": "model.safetensors"})]),
        listing(&[json!({"rfilename": "model.safetensors", "size": u64::MAX}), sibling("config.json", b"{}", false)]),
        listing(&[sibling("pytorch_model.bin", b"x", true)]),
        answer("200 OK", "", json!({"sha": "../..", "siblings": []}).to_string().as_bytes()),
        answer("200 OK", "", b"<html>"),
    ];
    let mut all = Vec::new();
    for listing in listings {
        let server =
            Server::new(move |request| if is_listing(request) { listing.clone() } else { no("404 Not Found") });
        let bench = server.hub();
        let fault = bring(&bench).unwrap_err();
        assert_eq!(fault.class, FaultClass::Source);
        all.push(said(&server, fault).replace(&"n".repeat(300), "NNN"));
        assert_eq!(server.asked().len(), 1);
        assert!(!bench.layout.root().join("cache").exists());
    }
    let url = "source: http://HOST/api/models/org/m/revision/main?blobs=true: ";
    insta::assert_snapshot!(all.join("\n").replace(url, ""), @r##"
    "../../evil.safetensors" is no name of a file []
    "/etc/passwd" is no name of a file []
    "a//b.json" is no name of a file []
    "a/b/c/d/e.json" is no name of a file []
    "NNN" is no name of a file []
    names model.safetensors twice []
    no size is given for model.safetensors []
    the sizes it gives are those of no model []
    no weights that are read here (safetensors) are among its files [weights in pickles are never fetched; name a repository that has safetensors]
    its commit is "../.." []
    not the expected listing: expected value at line 1 column 1 [is the endpoint of the network tier right?]
    "##);
}

#[test]
fn a_server_that_sends_too_much_is_cut_off() {
    let server = Server::new(|request| match request.path.rsplit('/').next() {
        _ if is_listing(request) => two_files(),
        Some("config.json") => answer("200 OK", "", &vec![b' '; 5_000_000]),
        _ => no("404 Not Found"),
    });
    let bench = server.hub();
    insta::assert_snapshot!(said(&server, bring(&bench).unwrap_err()), @"source: GET http://HOST/org/m/resolve/0123456789abcdef0123456789abcdef01234567/config.json: it sends more than the 2 bytes it was said to have [what was received of it was removed]");
    assert_eq!(names(&place(&bench).with_file_name(".m.partial/content")).len(), 0);
    assert!(!place(&bench).exists());
}

#[test]
fn a_model_that_does_not_fit_is_not_begun() {
    let size = 1u64 << 49;
    let server = Server::new(move |_| listing(&[json!({"rfilename": "model.safetensors", "size": size})]));
    let bench = server.hub();
    let fault = bring(&bench).unwrap_err();
    assert_eq!(fault.class, FaultClass::Resource, "{fault}");
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn a_peer_by_address_serves_what_its_manifest_lists() {
    let is_climbing = Arc::new(AtomicBool::new(false));
    let climbing = Arc::clone(&is_climbing);
    let server = Server::new(move |request| {
        let file =
            |name: &str, body: &[u8]| json!({"filename": name, "sha256": Sha::of(body).hex(), "size": body.len()});
        let mut files = vec![file("config.json", b"{}"), file("model.safetensors", &weights()), file("run.py", b"x")];
        files.push(file("sub/a b.txt", b"text"));
        if climbing.load(Ordering::SeqCst) {
            files.push(file("../other/model.safetensors", b"x"));
        }
        let manifest = json!({"schema": "factoryline.manifest.v1", "modelHash": "sha256:0", "fileHashes": files});
        match request.path.strip_prefix("/models/org/m/") {
            Some("manifest.json") => answer("200 OK", "", manifest.to_string().as_bytes()),
            Some("config.json") => answer("200 OK", "", b"{}"),
            Some("model.safetensors") => part_of(&weights(), request.from),
            Some("sub/a%20b.txt") => answer("200 OK", "", b"text"),
            _ => no("404 Not Found"),
        }
    });
    let bench = server.peer();
    is_climbing.store(true, Ordering::SeqCst);
    insta::assert_snapshot!(said(&server, bring(&bench).unwrap_err()), @r#"source: http://HOST/models/org/m/manifest.json: "../other/model.safetensors" is no name of a file []"#);
    is_climbing.store(false, Ordering::SeqCst);
    let receipt = bring(&bench).unwrap().unwrap();
    assert_whole(&bench);
    assert_eq!(fs::read(place(&bench).join("sub/a b.txt")).unwrap(), b"text");
    assert!(!place(&bench).join("run.py").exists());
    assert_eq!(receipt.from, PathBuf::from(format!("http://{}/models/org/m", server.at)));
    assert!(receipt.size_only.is_empty() && receipt.commit.is_none());
}

#[test]
fn the_next_tier_is_asked_for_what_one_lacks() {
    let poor = Server::new(|_| no("404 Not Found"));
    let rich = Server::new(|request| match request.path.rsplit('/').next() {
        _ if is_listing(request) => two_files(),
        Some("config.json") => answer("200 OK", "", b"{}"),
        _ => part_of(&weights(), request.from),
    });
    let bench = poor.peer();
    let both = format!(
        "[[storage.network]]\nname = \"a\"\nkind = \"peer\"\nendpoint = \"http://{}\"\n\
         [[storage.network]]\nname = \"b\"\nkind = \"hf\"\nendpoint = \"http://{}\"\n",
        poor.at, rich.at
    );
    bench.describe(&both);
    bring(&bench).unwrap().unwrap();
    assert_whole(&bench);
    assert_eq!(poor.asked(), ["/org/m/manifest.json"]);
}

#[test]
fn nothing_is_asked_that_was_not_declared_and_nothing_by_who_only_looks() {
    let server = Server::new(|_| two_files());
    let bench = Bench::new("");
    assert_eq!(bring(&bench).unwrap(), None);
    let part = bench.layout.station(Station::Assembly).join("x.alloy.json");
    let check = |bench: &Bench| bench.foreman(&["check", part.to_str().unwrap()]);
    let (code, document) = check(&bench);
    assert_ne!(code, 0, "{document}");

    bench.describe(&format!(
        "[[storage.network]]\nname = \"hub\"\nkind = \"hf\"\nendpoint = \"http://{}\"\n",
        server.at
    ));
    let (code, document) = check(&bench);
    assert_eq!(code, 0, "{document}");
    let told = document.to_string();
    assert!(told.contains("not here; network tier \\\"hub\\\" is asked for it when it is built"), "{told}");
    let (code, document) = bench.foreman(&["plan", part.to_str().unwrap()]);
    assert_ne!(code, 0);
    assert!(document.to_string().contains("network tier \\\"hub\\\" is asked for it when a part"), "{document}");
    // Names that are none of the hub's, and a recipe that will be refused, are not asked for either.
    for name in ["m", "a/b/c", "org/.m", "./m", "or g/m"] {
        let recipe = recipe_of(&bench, name, None);
        assert_eq!(fetch::bring(&recipe, &bench.node(), &bench.layout, &NoSteps, &|_, _| {}).unwrap(), None, "{name}");
    }
    assert_eq!(server.asked(), Vec::<String>::new());
}

#[test]
fn cut_short_anywhere_a_model_is_whole_or_not_there() {
    let server = Server::new(|request| match request.path.rsplit('/').next() {
        _ if is_listing(request) => two_files(),
        Some("config.json") => answer("200 OK", "", b"{}"),
        _ => part_of(&weights(), request.from),
    });
    let mut step = 1;
    loop {
        let bench = server.hub();
        if bring_with(&bench, &Cut::at(step)).is_ok() {
            break;
        }
        if place(&bench).exists() {
            assert_eq!(fs::read(place(&bench).join("model.safetensors")).unwrap(), weights(), "step {step}");
            assert!(place(&bench).with_file_name("m.receipt.json").exists(), "step {step}");
        }
        bring(&bench).unwrap();
        assert_whole(&bench);
        step += 1;
    }
    assert!(step > 8, "only {step} steps were cut");
}

#[test]
fn two_workers_fetch_one_model_once() {
    let server = Server::new(|request| match request.path.rsplit('/').next() {
        _ if is_listing(request) => two_files(),
        Some("config.json") => answer("200 OK", "", b"{}"),
        _ => part_of(&weights(), request.from),
    });
    let bench = server.hub();
    let (node, recipe) = (bench.node(), recipe_of(&bench, "org/m", None));
    let brought: usize = std::thread::scope(|scope| {
        let bring = || fetch::bring(&recipe, &node, &bench.layout, &NoSteps, &|_, _| {}).unwrap().is_some();
        let workers: Vec<_> = (0..3).map(|_| scope.spawn(bring)).collect();
        workers.into_iter().map(|worker| usize::from(worker.join().unwrap())).sum()
    });
    assert_eq!(brought, 1);
    assert_eq!(server.asked().iter().filter(|path| path.ends_with("/model.safetensors")).count(), 1);
}

#[test]
fn a_part_is_built_from_a_model_of_the_hub() {
    let files: Vec<(String, Vec<u8>)> = fs::read_dir(fixture("llama"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    let server = Server::new(move |request| {
        let siblings: Vec<Value> =
            files.iter().map(|(name, body)| sibling(name, body, name.ends_with("tensors"))).collect();
        let name = request.path.rsplit('/').next().unwrap();
        match files.iter().find(|(file, _)| file == name) {
            _ if is_listing(request) => listing(&siblings),
            Some((_, body)) => part_of(body, request.from),
            None => no("404 Not Found"),
        }
    });
    let bench = server.hub();
    let recipe = json!({
        "name": "tiny", "version": "1.0.0", "source": {"baseModel": "org/tiny", "architecture": "llama"},
        "stages": [{"type": "quant", "format": "gguf", "quantTypes": ["Q8_0"]}],
    });
    fs::write(bench.layout.station(Station::Intake).join("tiny.alloy.json"), recipe.to_string()).unwrap();
    let (code, document) = bench.foreman(&["run", "--drain"]);
    let rework = names(&bench.layout.station(Station::Rework));
    assert_eq!((code, &document["finished"]), (0, &json!(1)), "{document} {rework:?}");
    let plan = fs::read_to_string(bench.layout.work_root().join("tiny/plan.json")).unwrap();
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["source"]["path"], json!(bench.layout.root().join("cache/sources/org/tiny")));
    assert_eq!(bench.foreman(&["storage"]).1["caches"][0]["models"][0]["name"], "org/tiny");
}

#[test]
fn an_address_of_https_is_spoken_to_in_no_other_way() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    let bench = Bench::new(&format!("[[storage.network]]\nname = \"hub\"\nkind = \"hf\"\nendpoint = \"{endpoint}\"\n"));
    let first_byte = first_byte_sent_to(listener);
    let fault = bring(&bench).unwrap_err();
    // A handshake of TLS, and no fallback when nobody answers in kind.
    assert_eq!((first_byte.join().unwrap(), fault.class), (0x16, FaultClass::Infra), "{fault}");
}
