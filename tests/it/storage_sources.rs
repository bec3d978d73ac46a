//! Models that are cached and models that peers have.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use factoryline::line::Station;
use factoryline::node::{FoundBy, Resolver};
use factoryline::recipe::RecipeFile;
use factoryline::storage::sources::STAMP;
use factoryline::storage::{NoSteps, fetch, touch_source};
use serde_json::{Value, json};

use crate::storage::{Bench, names, write_old};
use crate::storage_moves::Cut;
use crate::worker::fixture;

const PEER: &str = "[[storage.network]]\nname = \"p\"\nkind = \"peer\"\nendpoint = \"file://HOME/peer\"\n";

fn model(dir: &Path, weights: &str) {
    write_old(&dir.join("config.json"), "{}");
    write_old(&dir.join("model.safetensors"), weights);
}

fn used(path: &Path, days_ago: u64) {
    touch_source(path).unwrap();
    let then = SystemTime::now() - Duration::from_secs(86_400 * days_ago);
    fs::File::options().write(true).open(path.join(STAMP)).unwrap().set_modified(then).unwrap();
}

fn recipe(bench: &Bench, base: &str, model: &str) -> RecipeFile {
    bench.part(Station::Assembly, base, model);
    RecipeFile::read(&bench.layout.station(Station::Assembly).join(format!("{base}.alloy.json"))).unwrap()
}

#[test]
fn the_least_recently_used_leave_a_cache_that_is_over_its_budget() {
    let cache = |name: &str| {
        format!("[[storage.cold]]\nname = \"{name}\"\npath = \"HOME/cold/{name}\"\npurpose = [\"source-cache\"]\n")
    };
    let budget = "[storage]\nsource_cache_gb = 0.000000260\n";
    let bench = Bench::new(&format!("{budget}{}{}{PEER}", cache("a"), cache("b")));
    let a = bench.home.join("cold/a");
    let big = "w".repeat(100);
    for (name, days) in [("org/needed", 90), ("org/at-peer", 80), ("org/only-here", 70), ("new", 3), ("org/fresh", 0)] {
        model(&a.join(name), &big);
        used(&a.join(name), days);
    }
    model(&bench.home.join("peer/org/at-peer"), &big);
    // Of the same size, and another model.
    model(&bench.home.join("peer/org/only-here"), &big.replace('w', "v"));
    bench.part(Station::Deferred, "x", "org/needed");

    let before = names(&bench.home.join("cold"));
    let planned = bench.gc_with(true, &NoSteps);
    assert_eq!(names(&bench.home.join("cold")), before);
    assert!(!planned.evicted.is_empty());
    let report = bench.gc();
    let said: Vec<String> = report.evicted.iter().map(|e| format!("{} {}", e.path.display(), e.action)).collect();
    let moved = bench.home.join("cold/b/org/only-here");
    assert_eq!(
        said,
        [
            format!("{} deleted", a.join("org/at-peer").display()),
            format!("{} moved_to_cold:{}", a.join("org/only-here").display(), moved.display()),
            // Still over: the next one goes as well, though it is younger.
            format!("{} moved_to_cold:{}", a.join("new").display(), bench.home.join("cold/b/new").display()),
        ]
    );
    assert_eq!(names(&moved)["model.safetensors"], big);
    assert!(a.join("org/needed").exists() && a.join("org/fresh").exists());
    // A model that moved is still found by its name.
    let node = bench.node();
    let found = Resolver::new(&node, bench.layout.root()).with_hub(None).model("org/only-here", None).unwrap();
    assert_eq!(found.how, FoundBy::ColdTier { name: "b".into() });
}

#[test]
fn a_recipe_that_cannot_be_read_keeps_every_model() {
    let bench = Bench::new(
        "[storage]\nsource_cache_gb = 0.000000001\n[[storage.cold]]\nname = \"a\"\npath = \"HOME/cold/a\"\n\
         purpose = [\"source-cache\"]\n[[storage.cold]]\nname = \"b\"\npath = \"HOME/cold/b\"\npurpose = [\"source-cache\"]\n\
         [[storage.network]]\nname = \"p\"\nkind = \"peer\"\nendpoint = \"HOME/peer\"\n",
    );
    for place in ["cold/a/m", "peer/m"] {
        model(&bench.home.join(place), "weights");
    }
    used(&bench.home.join("cold/a/m"), 9);
    let torn = bench.layout.station(Station::Intake).join("x.alloy.json");
    fs::write(&torn, "{").unwrap();
    let report = bench.gc();
    assert!(report.evicted.is_empty(), "{:?}", report.evicted);
    assert!(report.kept[0].because[0].contains("could name it"), "{:?}", report.kept);
    fs::remove_file(torn).unwrap();
    assert_eq!(bench.gc().evicted[0].action, "deleted");
}

#[test]
fn a_model_of_a_peer_is_copied_here_before_it_is_used() {
    for (cold, cache) in [
        ("[[storage.cold]]\nname = \"a\"\npath = \"HOME/cold/a\"\npurpose = [\"source-cache\"]\n", "cold/a"),
        ("", "root/cache/sources"),
    ] {
        let mut step = 1;
        loop {
            let bench = Bench::new(&format!("{cold}{PEER}"));
            let there = bench.home.join("peer/org/m");
            model(&there, "weights");
            // As a hub cache is laid out.
            fs::rename(there.join("model.safetensors"), bench.home.join("peer/blob")).unwrap();
            std::os::unix::fs::symlink(bench.home.join("peer/blob"), there.join("model.safetensors")).unwrap();
            let recipe = recipe(&bench, "x", "org/m");
            let node = bench.node();
            let here = bench.home.join(cache).join("org/m");
            let cut = Cut::at(step);
            let done = fetch::bring(&recipe, &node, &bench.layout, &cut, &|_, _| {});
            if done.is_ok() {
                break;
            }
            // Whole or not to be seen.
            if here.exists() {
                assert_eq!(names(&here)["model.safetensors"], "weights", "step {step}");
            }
            fetch::bring(&recipe, &node, &bench.layout, &NoSteps, &|_, _| {}).unwrap();
            assert_eq!(names(&here)["model.safetensors"], "weights", "step {step}");
            assert!(here.join(STAMP).exists() && !here.join("model.safetensors").is_symlink(), "step {step}");
            let left: Vec<String> =
                names(here.parent().unwrap()).into_keys().filter(|n| n.contains("incoming")).collect();
            assert_eq!(left, Vec::<String>::new(), "step {step}");
            let found = Resolver::new(&node, bench.layout.root()).with_hub(None).model("org/m", None).unwrap();
            assert_eq!(found.path, here);
            assert!(!matches!(found.how, FoundBy::Peer { .. }));
            step += 1;
        }
        assert!(step > 5, "only {step} steps were cut");
    }
}

#[test]
fn two_workers_bring_one_model_once() {
    let bench = Bench::new(PEER);
    model(&bench.home.join("peer/m"), "weights");
    let recipe = recipe(&bench, "x", "m");
    let node = bench.node();
    let brought: usize = std::thread::scope(|scope| {
        let bring = || fetch::bring(&recipe, &node, &bench.layout, &NoSteps, &|_, _| {}).unwrap().is_some();
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(bring)).collect();
        workers.into_iter().map(|worker| usize::from(worker.join().unwrap())).sum()
    });
    assert_eq!(brought, 1);
    assert_eq!(names(&bench.layout.root().join("cache/sources/m"))["model.safetensors"], "weights");
}

#[test]
fn a_tier_by_address_is_shown_with_what_it_is_good_for() {
    let bench = Bench::new(
        "[[storage.network]]\nname = \"far\"\nkind = \"peer\"\nendpoint = \"http://far:7100/\"\n\
         [[storage.network]]\nname = \"hub\"\nkind = \"hf\"\n\
         [[storage.network]]\nname = \"odd\"\nkind = \"peer\"\nendpoint = \"tailscale://far:7100\"\n\
         [[storage.network]]\nname = \"secret\"\nkind = \"hf\"\nendpoint = \"https://me:word@hub\"\n",
    );
    let (code, document) = bench.foreman(&["storage"]);
    assert_eq!(code, 0);
    let tiers = document["network"].as_array().unwrap();
    let notes: Vec<String> = tiers.iter().map(|t| format!("{} {}", t["usable"], t["note"].as_str().unwrap())).collect();
    insta::assert_snapshot!(notes.join("\n"), @r"
    true http://far:7100 is asked for models that are nowhere here
    true https://huggingface.co is asked for models that are nowhere here
    false its endpoint is neither a directory nor a plain http:// or https:// address; nothing is fetched from it
    false its endpoint is neither a directory nor a plain http:// or https:// address; nothing is fetched from it
    ");
}

#[test]
fn a_part_is_built_from_a_peers_model_and_its_artifact_demoted() {
    let bench = Bench::new(&format!("[[storage.cold]]\nname = \"a\"\npath = \"HOME/cold/a\"\n{PEER}"));
    for (name, bytes) in fs::read_dir(fixture("llama")).unwrap().map(|entry| {
        let entry = entry.unwrap();
        (entry.file_name(), fs::read(entry.path()).unwrap())
    }) {
        fs::create_dir_all(bench.home.join("peer/org/tiny")).unwrap();
        fs::write(bench.home.join("peer/org/tiny").join(name), bytes).unwrap();
    }
    let recipe = json!({
        "name": "tiny", "version": "1.0.0", "source": {"baseModel": "org/tiny", "architecture": "llama"},
        "stages": [{"type": "quant", "format": "gguf", "quantTypes": ["Q8_0"]}],
    });
    fs::write(bench.layout.station(Station::Intake).join("tiny.alloy.json"), recipe.to_string()).unwrap();
    let (code, document) = bench.foreman(&["run", "--drain"]);
    assert_eq!((code, &document["finished"]), (0, &json!(1)), "{document} {}", names_in(&bench, "rework"));
    let plan = fs::read_to_string(bench.layout.work_root().join("tiny/plan.json")).unwrap();
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["source"]["path"], json!(bench.layout.root().join("cache/sources/org/tiny")));
    let events = fs::read_to_string(bench.layout.events()).unwrap();
    assert_eq!(events.matches("\"line/fetched\"").count(), 1);

    let (code, document) = bench.foreman(&["demote", "tiny"]);
    assert_eq!(code, 0, "{document}");
    let (code, verified) = bench.foreman(&["verify", "tiny"]);
    assert_eq!((code, &verified["artifact"]), (0, &document["to"]), "{verified}");
    // Its work is kept for a week, and its model as long as it stands here.
    let report = bench.gc();
    assert!(report.evicted.is_empty(), "{:?}", report.evicted);
    assert_eq!(bench.foreman(&["storage"]).1["caches"][0]["models"][0]["name"], "org/tiny");
}

fn names_in(bench: &Bench, station: &str) -> String {
    format!("{:?}", names(&bench.layout.line().join(station)))
}
