use std::fs;
use std::path::{Path, PathBuf};

use super::*;

fn parse(text: &str) -> Result<Node, NodeError> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(NODE_FILE), text).unwrap();
    Node::read(dir.path())
}

fn complaint(text: &str) -> String {
    let error = parse(text).unwrap_err();
    let shown = error.to_string();
    let shown = shown.split_once("factory_node.toml").map_or(shown.as_str(), |(_, rest)| rest).to_owned();
    match error.hint() {
        Some(hint) => format!("{shown} | {hint}"),
        None => shown,
    }
}

#[test]
fn a_silent_node_is_detected() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::read(dir.path()).unwrap();
    assert!(node.ram > Bytes(0) && node.forge.memory_budget < node.ram && node.forge.threads > 0);
    assert_eq!((node.forge.max_retries, node.file), (3, None));
    assert!(node.roles == [Role::Forge]);
}

#[test]
fn every_key_arrives_in_its_type() {
    let node = parse(
        r#"
        [node]
        name = "bench"
        hostname = "bench.local"
        roles = ["ship"]
        [storage]
        hot = { path = ".", min_free_gb = 1.5 }
        [[storage.cold]]
        name = "spinner"
        path = "/nowhere/cold"
        fs_type = "xfs"
        write_mb_per_sec = 210
        read_mb_per_sec = 220
        purpose = ["source-cache"]
        [[storage.network]]
        name = "hub"
        kind = "hf"
        purpose = ["source-weights"]
        [forge]
        max_retries = 5
        stall_seconds = 90
        retry_backoff_seconds = 0.5
        rescan_seconds = 2
        stop_grace_seconds = 7
        memory_budget_gb = 0.5
        device = "cuda:1"
        threads = 2
        worker_log_mb = 3
        [grid]
        heartbeat_interval_seconds = 10
        [protocol]
        version = "0.2"
        [sources]
        smol = "models/smol"
        "#,
    )
    .unwrap();
    assert_eq!((node.name.as_str(), node.hostname.as_str()), ("bench", "bench.local"));
    assert!(!node.forges());
    assert_eq!(node.hot.min_free, Bytes(1_500_000_000));
    assert_eq!(node.cold[0].purpose, [ColdPurpose::SourceCache]);
    assert_eq!(node.network[0].kind, NetworkKind::Hf);
    assert_eq!(node.forge.retry_backoff, Duration::from_millis(500));
    assert_eq!((node.forge.device, node.forge.threads), (DeviceChoice::Cuda(1), 2));
    assert_eq!(node.forge.worker_log, Bytes::from_mb(3));
    assert_eq!(node.grid.heartbeat_interval, Duration::from_secs(10));
    assert!(node.sources["smol"].ends_with("models/smol"));
    assert!(node.notes.iter().any(|note| note.contains("spinner")), "{:?}", node.notes);
}

#[test]
fn what_cannot_be_used_is_refused_with_its_place() {
    let cases = [
        "[forge]\nmax_retry = 3\n",
        "[nodes]\nname = \"x\"\n",
        "[forge]\nmax_retries = \"three\"\n",
        "[forge]\n  max_retries = 101\n",
        "[forge]\ndevice = \"gpu\"\n",
        "[node]\nroles = [\"forge\", \"boss\"]\n",
        "[storage.hot]\npath = \"/not/mounted\"\n",
        "[[storage.cold]]\nname = \"a\"\n",
        "[[storage.network]]\nname = \"a\"\nkind = \"ftp\"\n",
        "[protocol]\nversion = \"2.0\"\n",
        "[grid\n",
        "[sources]\nsmol = 3\n",
        "[storage]\nrework_keep_day = 3\n",
        "[storage]\nallow_unfit_filesystems = [\"floppy\"]\n",
        "[[storage.cold]]\nname = \"a\"\npath = \"/x\"\nmount = \"yes\"\n",
    ];
    let shown: Vec<String> = cases.iter().map(|case| complaint(case)).collect();
    insta::assert_snapshot!(shown.join("\n"), @r#"
    :2:1: unknown key `forge.max_retry` | did you mean `forge.max_retries`?
    :1:2: unknown key `nodes` | did you mean `node`?
    :2:15: `forge.max_retries` must be a whole number, found the text "three" | factory_node.toml.example explains every key
    :2:17: `forge.max_retries` is 101; it must be between 0 and 100 | factory_node.toml.example explains every key
    :2:10: `forge.device` is "gpu"; it must be one of auto, cpu, cuda:0, cuda:1, … | factory_node.toml.example explains every key
    :2:9: `node.roles` is "boss"; it must be forge, ship or both | factory_node.toml.example explains every key
    :2:8: `storage.hot.path` names /not/mounted, which is not a directory | is the disk mounted? Create the directory, or mend the path
    :1:1: [[storage.cold]] needs the key `path`
    :3:8: `storage.network.kind` is "ftp"; it must be hf or peer | factory_node.toml.example explains every key
    :2:11: `protocol.version` is "2.0"; it must be 0.x or 1.x (this build speaks 1) | factory_node.toml.example explains every key
    :1:6: not valid TOML: unclosed table, expected `]` | factory_node.toml.example explains every key
    :2:8: `sources.smol` must be a path in quotes, found the number 3 | factory_node.toml.example explains every key
    :2:1: unknown key `storage.rework_keep_day` | did you mean `storage.rework_keep_days`?
    :2:27: `storage.allow_unfit_filesystems` is "floppy"; it must be 9p (drvfs), smb (cifs) or ntfs (ntfs-3g) | factory_node.toml.example explains every key
    :4:9: `storage.cold.mount` must be true or false, found the text "yes" | factory_node.toml.example explains every key
    "#);
}

#[test]
fn the_example_file_is_complete_and_valid() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("factory_node.toml.example")).unwrap();
    parse(&text).unwrap();
    // Commented-out keys must hold too: uncomment every `# key = value` line.
    let opened: String = text
        .lines()
        .map(|line| match line.strip_prefix("#") {
            Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let error = parse(&opened).err().map(|error| error.to_string());
    assert_eq!(error, None, "the example with every commented key switched on");
    for key in ["gpu_vram_gb", "min_free_gb", "write_mb_per_sec", "endpoint", "stop_grace_seconds", "coordinator"] {
        assert!(text.contains(key), "{key} is missing from the example");
    }
}

#[test]
fn what_fits_later_is_told_from_what_never_fits() {
    let mut node = parse("").unwrap();
    let (here, whole) = (Path::new("/no/such/yet"), filesystem::total_bytes(Path::new("/")).unwrap());
    assert_eq!(node.space_for(here, Bytes(1)).unwrap(), Space::Free);
    let free = free_bytes(here).unwrap();
    // Everything but the first bytes: no disk is that empty.
    assert!(matches!(node.space_for(here, Bytes(whole.0 - 1)).unwrap(), Space::Later { free: now } if now <= free));
    assert_eq!(node.space_for(here, Bytes(whole.0 + 1)).unwrap_err().class, crate::fault::FaultClass::Resource);
    node.hot.min_free = Bytes(u64::MAX / 2);
    let fault = node.space_for(here, Bytes(1)).unwrap_err();
    assert!(fault.hint.unwrap().contains("min_free_gb"));
}

struct Ground {
    _dir: tempfile::TempDir,
    root: PathBuf,
    hub: HubCache,
}

fn place_with(files: &[&str]) -> Ground {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().canonicalize().unwrap();
    for file in files {
        let path = base.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "c0ffee\n").unwrap();
    }
    fs::create_dir_all(base.join("root")).unwrap();
    Ground { _dir: dir, root: base.join("root"), hub: HubCache(base.join("hub")) }
}

#[test]
fn models_are_found_in_order_of_closeness() {
    let place = place_with(&[
        "root/models/m/config.json",
        "recipes/models/m/config.json",
        "named/config.json",
        "hub/models--org--tiny/refs/main",
        "hub/models--org--tiny/snapshots/c0ffee/config.json",
        "hub/models--org--tiny/snapshots/facade/config.json",
    ]);
    let base = place.root.parent().unwrap();
    let mut node = parse("").unwrap();
    node.sources.insert("smol".into(), base.join("named"));
    let recipe = base.join("recipes/r.alloy.json");
    let resolver = Resolver::new(&node, &place.root).for_recipe(&recipe).with_hub(Some(place.hub.clone()));

    let found = |name: &str, revision| resolver.model(name, revision).unwrap();
    assert_eq!(found("smol", None).how, FoundBy::NamedSource { name: "smol".into() });
    assert_eq!(found("models/m", None).how, FoundBy::RecipeFolder);
    let absolute = base.join("named").display().to_string();
    assert_eq!(found(&absolute, None).how, FoundBy::AbsolutePath);
    let hub = found("org/tiny", None);
    assert!(hub.path.ends_with("snapshots/c0ffee"));
    assert!(found("org/tiny", Some("facade")).path.ends_with("snapshots/facade"));

    let elsewhere = Resolver::new(&node, &place.root).with_hub(None);
    assert_eq!(elsewhere.model("models/m", None).unwrap().how, FoundBy::LineRoot);
}

#[test]
fn what_is_not_found_lists_where_it_was_looked_for() {
    let place = place_with(&["root/calibration/held.txt"]);
    let node = parse("").unwrap();
    let resolver = Resolver::new(&node, &place.root).with_hub(Some(place.hub.clone()));
    assert_eq!(resolver.text("held.txt").unwrap().how, FoundBy::CalibrationFolder);

    let fault = resolver.model("org/absent", Some("v2")).unwrap_err();
    assert_eq!(fault.class, crate::fault::FaultClass::Source);
    let shown = fault.message.replace(&place.root.parent().unwrap().display().to_string(), "BASE");
    insta::assert_snapshot!(shown, @r#"model "org/absent" is not here; looked at: BASE/root/org/absent, BASE/hub/models--org--absent (revision v2)"#);

    let fault = resolver.text("sub/../../etc/passwd").unwrap_err();
    assert_eq!(fault.class, crate::fault::FaultClass::Recipe);
    assert!(resolver.model("org/absent", Some("../../x")).is_err());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    /// A relative name is either refused or stays below the root, whatever it is made of.
    #[test]
    fn relative_names_never_leave_the_root(parts in proptest::collection::vec("(\\.\\.|\\.|a|b)", 1..6)) {
        let place = place_with(&["root/a/a/x", "root/b/a/x", "a/b", "b/a"]);
        let node = parse("").unwrap();
        let resolver = Resolver::new(&node, &place.root).with_hub(None);
        if let Ok(found) = resolver.model(&parts.join("/"), None) {
            proptest::prop_assert!(found.path.starts_with(&place.root), "{:?}", found);
        }
    }
}

#[test]
fn storage_keys_arrive_and_zero_days_is_for_ever() {
    let node = parse(
        r#"
        [storage]
        rework_keep_days = 0
        finished_keep_days = 2
        source_cache_gb = 0.5
        gc_threshold_pct = 70
        allow_unfit_filesystems = ["drvfs", "smb"]
        [[storage.cold]]
        name = "a"
        path = "/nowhere"
        mount = true
        device = "LABEL=cold"
        min_free_gb = 2
        "#,
    )
    .unwrap();
    let rules = &node.storage;
    assert_eq!((rules.rework_keep_days, rules.finished_keep_days), (None, Some(2)));
    assert_eq!((rules.source_cache, rules.gc_threshold_pct), (Some(Bytes(500_000_000)), 70.0));
    assert_eq!(rules.allow_unfit_filesystems, [FilesystemKind::NineP, FilesystemKind::Smb]);
    let tier = &node.cold[0];
    assert_eq!((tier.mount, tier.device.as_deref(), tier.min_free), (true, Some("LABEL=cold"), Bytes(2_000_000_000)));
    assert_eq!(parse("").unwrap().storage, StorageRules::default());
}

#[test]
fn weights_are_not_read_from_filesystems_that_hang() {
    let place = place_with(&["root/m/config.json"]);
    let node = parse("").unwrap();
    let mut found = Resolver::new(&node, &place.root).with_hub(None).model("m", None).unwrap();
    assert!(found.refusal(&[]).is_none(), "{:?}", found.filesystem);
    for kind in [FilesystemKind::NineP, FilesystemKind::Smb, FilesystemKind::Ntfs] {
        found.filesystem = kind;
        let fault = found.refusal(&[]).unwrap();
        assert_eq!(fault.class, crate::fault::FaultClass::Resource);
        assert!(fault.message.contains(&format!("lies on {}: ", kind.as_str())), "{fault}");
        assert!(fault.hint.unwrap().contains("storage.allow_unfit_filesystems"));
        assert!(found.refusal(&[kind]).is_none());
        assert!(found.refusal(&[FilesystemKind::Ext]).is_some());
    }
    found.filesystem = FilesystemKind::Nfs;
    assert!(found.refusal(&[]).is_none() && found.warning().unwrap().contains("NFS"));
    // What a peer has is copied here before it is read.
    found.filesystem = FilesystemKind::NineP;
    found.how = FoundBy::Peer { name: "p".into() };
    assert!(found.refusal(&[]).is_none());
}
