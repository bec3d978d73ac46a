//! `scripts/bootstrap-node.sh` run whole into a folder: what it says it would do, what it does, and that doing it again
//! changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Node {
    dir: tempfile::TempDir,
    /// Both binaries, as a release has them.
    bin: PathBuf,
}

impl Node {
    fn new() -> Node {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        for (name, built) in [("foreman", env!("CARGO_BIN_EXE_foreman")), ("factoryd", env!("CARGO_BIN_EXE_factoryd"))]
        {
            std::os::unix::fs::symlink(built, bin.join(name)).unwrap();
        }
        Node { dir, bin }
    }

    fn prefix(&self) -> PathBuf {
        self.dir.path().join("node")
    }

    /// Exit code and everything it said.
    fn bootstrap(&self, words: &[&str]) -> (i32, String) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/bootstrap-node.sh");
        let output = Command::new("bash")
            .arg(script)
            .args(["--bin".as_ref(), self.bin.as_os_str(), "--prefix".as_ref(), self.prefix().as_os_str()])
            .args(words)
            .env("PATH", format!("{}:{}", self.dir.path().join("tools").display(), std::env::var("PATH").unwrap()))
            .env_remove("FACTORY_ROOT")
            .output()
            .unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (
            output.status.code().unwrap(),
            text.replace(&self.dir.path().canonicalize().unwrap().display().to_string(), "DIR"),
        )
    }

    /// As [`Node::bootstrap`], which must end well; what it said. That a small disk is below the reserve is the
    /// machine's affair.
    fn made(&self) -> String {
        let (code, said) = self.bootstrap(&[]);
        let is_small = code == 11 && said.matches("error ").count() == said.matches("the reserve is").count();
        assert!(code == 0 || is_small, "exit {code}\n{said}");
        said
    }

    /// Every file below the prefix: inode, change time, length.
    fn everything(&self) -> BTreeMap<PathBuf, (u64, i64, u64)> {
        let mut out = BTreeMap::new();
        let mut open = vec![self.prefix()];
        while let Some(path) = open.pop() {
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if meta.is_dir() {
                open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                // `foreman doctor` makes and removes a file in each folder: that a folder changed says nothing.
                out.insert(path, (meta.ino(), 0, 0));
            } else {
                out.insert(path, (meta.ino(), meta.mtime(), meta.len()));
            }
        }
        out
    }
}

#[test]
fn a_node_is_made_once_and_left_alone_after() {
    let node = Node::new();
    let (code, said) = node.bootstrap(&["--dry-run"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("would: install DIR/node/usr/local/bin/factoryd"), "{said}");
    assert!(said.contains("would: make the stations of the line in DIR/node/var/lib/factoryline"), "{said}");
    assert!(node.everything().is_empty(), "a dry run changes nothing");

    let said = node.made();
    assert!(said.contains("done: "), "{said}");
    let root = node.prefix().join("var/lib/factoryline");
    let example = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("factory_node.toml.example")).unwrap();
    assert_eq!(fs::read_to_string(root.join("factory_node.toml")).unwrap(), example);
    assert!(root.join("line/intake").is_dir());
    let unit = fs::read_to_string(node.prefix().join("etc/systemd/system/factoryd.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/local/bin/factoryd --root /var/lib/factoryline\n"), "{unit}");
    assert!(node.prefix().join("etc/logrotate.d/factoryd").is_file());

    let before = node.everything();
    let said = node.made();
    assert!(said.contains("everything was in order: nothing was changed"), "{said}");
    assert_eq!(node.everything(), before);

    // A changed configuration is the operator's: the version that comes with the script is put beside it, once.
    let config = root.join("factory_node.toml");
    fs::write(&config, "[forge]\nmax_retries = 1\n").unwrap();
    node.made();
    assert_eq!(fs::read_to_string(&config).unwrap(), "[forge]\nmax_retries = 1\n");
    assert_eq!(fs::read_to_string(root.join("factory_node.toml.new")).unwrap(), example);
    let before = node.everything();
    let said = node.made();
    assert!(said.contains("nothing was changed"), "{said}");
    assert_eq!(node.everything(), before);

    // One that cannot be used is found by the examination at the end.
    fs::write(&config, "[forge]\nmax_retry = 1\n").unwrap();
    let (code, said) = node.bootstrap(&[]);
    assert_eq!(code, 11, "{said}");
    assert!(said.contains("did you mean `forge.max_retries`?"), "{said}");
}

#[test]
fn what_it_cannot_do_is_said_before_anything_is_changed() {
    let node = Node::new();
    let (code, said) = node.bootstrap(&["--root", "line"]);
    assert_eq!((code, said.as_str()), (2, "bootstrap-node: --root must be an absolute path\n"));
    assert_eq!(node.bootstrap(&["--what"]).0, 2);
    fs::remove_file(node.bin.join("factoryd")).unwrap();
    let (code, said) = node.bootstrap(&[]);
    assert_eq!(code, 3);
    assert!(said.contains("cargo build --release, or --bin DIR"), "{said}");
    assert!(node.everything().is_empty());
}

#[test]
fn a_line_on_a_windows_drive_is_refused_with_the_remedy() {
    let node = Node::new();
    // What `stat -f` says of /mnt/c in WSL2.
    let tools = node.dir.path().join("tools");
    fs::create_dir(&tools).unwrap();
    fs::write(tools.join("stat"), "#!/bin/sh\necho v9fs\n").unwrap();
    fs::set_permissions(tools.join("stat"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (code, said) = node.bootstrap(&[]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("would lie on v9fs: a Windows drive seen from WSL2"), "{said}");
    assert!(said.contains("choose a folder of the Linux disk: --root /var/lib/factoryline"), "{said}");
    assert!(node.everything().is_empty());
}
