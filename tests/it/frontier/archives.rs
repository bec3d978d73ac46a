//! Archives: what is refused, and that packing twice gives the same bytes.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use factoryline::frontier::{CheckOptions, Container, Limits, Packing, Report, check, pack, unpack};
use factoryline::units::Bytes;

use super::{Place, Shape, outcome};

fn open(place: &Place, artifact: &Path) -> Report {
    check(artifact, &place.terms(), None, &CheckOptions::default(), &|_| ()).unwrap()
}

/// The message of an artifact that cannot be judged.
fn flaw(place: &Place, artifact: &Path) -> String {
    let report = open(place, artifact);
    assert_eq!(outcome(&report), "error (-)", "{:?}", report.message);
    report.message.unwrap()
}

/// One entry of a tar file, with whatever name and kind.
fn tar_entry(name: &str, kind: tar::EntryType, link: Option<&str>, data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    if let Some(link) = link {
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    }
    header.set_cksum();
    let mut out = header.as_bytes().to_vec();
    out.extend(data);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

fn tar_file(place: &Place, entries: &[Vec<u8>]) -> PathBuf {
    let path = place.path("made.tar");
    fs::write(&path, [entries.concat(), vec![0; 1024]].concat()).unwrap();
    path
}

fn zip_file(place: &Place, entries: &[(&str, &[u8])]) -> PathBuf {
    let path = place.path("made.zip");
    let mut archive = rawzip::ZipArchiveWriter::new(fs::File::create(&path).unwrap());
    for (name, data) in entries {
        let name = rawzip::path::EntryPath::verbatim(name.as_bytes());
        let (mut entry, config) =
            archive.new_file(name).compression_method(rawzip::CompressionMethod::DEFLATE).start().unwrap();
        let encoder = flate2::write::DeflateEncoder::new(&mut entry, flate2::Compression::best());
        let mut writer = config.wrap(encoder);
        writer.write_all(data).unwrap();
        let (encoder, descriptor) = writer.finish().unwrap();
        encoder.finish().unwrap();
        entry.finish(descriptor).unwrap();
    }
    archive.finish().unwrap();
    path
}

#[test]
fn case_28_what_is_no_archive_of_a_model_is_an_error() {
    let place = Place::new();
    let text = place.path("a.txt");
    fs::write(&text, "just a text, longer than a header of a tar file would be\n".repeat(40)).unwrap();
    assert!(flaw(&place, &text).contains("neither a folder nor a zip or tar file"));
    let zip = place.packed(&place.model(&Shape::default()), Container::Zip);
    let bytes = fs::read(&zip).unwrap();
    fs::write(&zip, &bytes[..bytes.len() - 40]).unwrap();
    assert!(flaw(&place, &zip).contains("neither a folder nor a zip or tar file"));
    assert!(flaw(&place, &zip_file(&place, &[("readme", b"x")])).contains("no config.json"));
    assert!(flaw(&place, &tar_file(&place, &[])).contains("neither"));
    // Every other archive that is cut off says so.
    for container in [Container::TarXz, Container::TarGz, Container::TarBz2, Container::Tar] {
        let path = place.packed(&place.path("m"), container);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        flaw(&place, &path);
        assert!(open(&place, &path).hint.unwrap().contains("damaged or cut off"), "{container:?}");
    }
    // A changed byte is found by the archive's own sum.
    let mut changed = bytes.clone();
    changed[bytes.len() / 2] ^= 1;
    fs::write(&zip, changed).unwrap();
    assert!(flaw(&place, &zip).contains("cannot be unpacked"));
}

#[test]
fn case_29_entries_that_would_land_outside_are_refused() {
    let place = Place::new();
    let file = tar::EntryType::Regular;
    for (name, why) in [
        ("../evil", "leaves the folder"),
        ("a/../../evil", "leaves the folder"),
        ("/etc/evil", "an absolute path"),
        ("a\\..\\evil", "read as another path"),
        ("C:/evil", "read as another path"),
    ] {
        let said = flaw(&place, &tar_file(&place, &[tar_entry(name, file, None, b"x")]));
        assert!(said.contains(why), "tar {name}: {said}");
        let said = flaw(&place, &zip_file(&place, &[(name, b"x")]));
        assert!(said.contains(why), "zip {name}: {said}");
    }
    let link = |kind, to: &str| tar_file(&place, &[tar_entry("a/link", kind, Some(to), b"")]);
    for to in ["/etc/passwd", "../../x", "../.."] {
        assert!(flaw(&place, &link(tar::EntryType::Symlink, to)).contains("outside the archive"), "{to}");
    }
    assert!(flaw(&place, &link(tar::EntryType::Link, "../x")).contains("outside the archive"));
    assert!(flaw(&place, &link(tar::EntryType::Symlink, "missing")).contains("no file of the archive"));
    assert!(flaw(&place, &link(tar::EntryType::Fifo, "")).contains("not a file"));
    // A link to a folder, then a file through it.
    let through = [
        tar_entry("d/", tar::EntryType::Directory, None, b""),
        tar_entry("l", tar::EntryType::Symlink, Some("d"), b""),
        tar_entry("l/x", file, None, b"x"),
    ];
    assert!(flaw(&place, &tar_file(&place, &through)).contains("no file of the archive"));
    assert!(!place.path("evil").exists() && !place.dir.path().parent().unwrap().join("evil").exists());
}

#[test]
fn case_29_links_inside_become_second_names() {
    let place = Place::new();
    let entries = [
        tar_entry("blobs/one", tar::EntryType::Regular, None, b"{}"),
        tar_entry("config.json", tar::EntryType::Symlink, Some("blobs/one"), b""),
    ];
    let unpacked = unpack(&tar_file(&place, &entries), place.dir.path(), Limits::default()).unwrap();
    let config = unpacked.model.join("config.json");
    assert!(fs::symlink_metadata(&config).unwrap().is_file(), "no link is left");
    assert_eq!(fs::read(&config).unwrap(), b"{}");
    let folder = unpacked.model.clone();
    drop(unpacked);
    assert!(!folder.exists(), "the scratch folder goes");
}

#[test]
fn case_30_bombs_and_repeated_names_are_refused() {
    let place = Place::new();
    let limits = Limits { bytes: Bytes(1 << 20), files: 3 };
    let refused = |path: &Path| {
        let error = unpack(path, place.dir.path(), limits).unwrap_err().to_string();
        assert!(fs::read_dir(place.dir.path()).unwrap().all(|e| !e.unwrap().path().is_dir()), "nothing is left");
        error
    };
    let zeros = vec![0u8; 3 << 20];
    assert!(refused(&zip_file(&place, &[("config.json", &zeros)])).contains("its directory of 1 files claims 3.1 MB"));
    let bomb = [tar_entry("config.json", tar::EntryType::Regular, None, &zeros)];
    assert!(refused(&tar_file(&place, &bomb)).contains("claims 3.1 MB"));
    // What a header claims is believed only when it is too much.
    let mut lying = tar_entry("config.json", tar::EntryType::Regular, None, b"{}");
    lying[124..136].copy_from_slice(b"77777777777\0");
    let sum: u32 = lying[..148].iter().chain(&[b' '; 8]).chain(&lying[156..512]).map(|&b| u32::from(b)).sum();
    lying[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert!(refused(&tar_file(&place, &[lying])).contains("claims 8.59 GB"));
    // A zip whose directory understates a member: the real bytes count.
    let path = zip_file(&place, &[("config.json", &zeros)]);
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    bytes[at + 24..at + 28].copy_from_slice(&10u32.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let said = refused(&path);
    assert!(said.contains("holds more than it may") || said.contains("cannot be unpacked"), "{said}");
    // Skipped entries come out of the same stream.
    let extended = tar_entry("x", tar::EntryType::new(b'V'), None, &zeros);
    assert!(refused(&tar_file(&place, &[extended.clone(), extended])).contains("not a file"));
    let twice = [0, 1].map(|_| tar_entry("config.json", tar::EntryType::Regular, None, b"{}"));
    assert!(refused(&tar_file(&place, &twice)).contains("comes twice"));
    assert!(refused(&zip_file(&place, &[("a", b"1"), ("./a", b"2")])).contains("comes twice"));
    let many: Vec<Vec<u8>> = (0..4).map(|i| tar_entry(&format!("f{i}"), tar::EntryType::Regular, None, b"")).collect();
    assert!(refused(&tar_file(&place, &many)).contains("more than 3 files"));
}

#[test]
fn packing_the_same_files_gives_the_same_bytes() {
    let place = Place::new();
    let model = place.model(&Shape::default());
    for container in [Container::TarXz, Container::TarBz2, Container::TarGz, Container::Tar, Container::Zip] {
        let packing = Packing { container, width: 4 };
        let first = pack(&model, &place.path("one"), packing).unwrap();
        // Times, modes and the order of creation are not the archive's.
        let copy = place.path(&format!("copy-{}", container.as_str()));
        fs::create_dir(&copy).unwrap();
        for name in ["model.safetensors", "config.json"] {
            fs::copy(model.join(name), copy.join(name)).unwrap();
        }
        let mut permissions = fs::metadata(copy.join("config.json")).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(copy.join("config.json"), permissions).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let second = pool.install(|| pack(&copy, &place.path("two"), packing)).unwrap();
        assert_eq!(first.sha256, second.sha256, "{container:?}");
    }
}
