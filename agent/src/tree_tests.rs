// SPDX-License-Identifier: Apache-2.0
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;

use super::*;
use crate::error::Kind;
use crate::path::tests::Scratch;
use crate::pax::Entry;
use crate::pax::tests::{Collected, entries};
use crate::proto::WriteTreeOptions;
use crate::tree_write::write_tree;

/// `root` is the container's; `outside/secret` lies beside it.
fn scene() -> (Scratch, std::fs::File) {
    let scratch = Scratch::new();
    std::fs::create_dir_all(scratch.0.join("root/data")).unwrap();
    std::fs::create_dir(scratch.0.join("outside")).unwrap();
    std::fs::write(scratch.0.join("outside/secret"), "secret").unwrap();
    let root = std::fs::File::open(scratch.0.join("root")).unwrap();
    (scratch, root)
}

fn archive(list: &[(Entry<'_>, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (entry, content) in list {
        bytes.extend(Entry { size: content.len() as u64, mode: 0o640, ..entry.clone() }.render());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn file(path: &str) -> Entry<'_> {
    Entry { path: path.as_bytes(), kind: b'0', ..Entry::default() }
}

fn link<'a>(path: &'a str, link: &'a str, kind: u8) -> Entry<'a> {
    Entry { path: path.as_bytes(), link: link.as_bytes(), kind, ..Entry::default() }
}

fn write(root: &std::fs::File, list: &[(Entry<'_>, &[u8])]) -> Result<()> {
    let options = WriteTreeOptions { path: b"/data".to_vec(), ..WriteTreeOptions::default() };
    write_tree(root.as_fd(), &options, &archive(list)[..])
}

#[test]
fn a_path_is_read_as_a_tree_and_links_stay_inside() {
    let (scratch, root) = scene();
    std::fs::write(scratch.0.join("root/data/f"), "content").unwrap();
    symlink("../../outside", scratch.0.join("root/data/out")).unwrap();
    let place = Place::find(root.as_fd(), b"/data/../data", false).unwrap();
    assert_eq!(place.stat().unwrap().name, b"data");
    let mut out = Collected::default();
    place.write(&mut out).unwrap();
    let names: Vec<Vec<u8>> = entries(&out.0).into_iter().map(|(entry, _)| entry.path).collect();
    assert_eq!(names, [&b"data/"[..], b"data/f", b"data/out"]);
    assert_eq!(Place::find(root.as_fd(), b"data/out", true).err().unwrap().kind, Kind::NotFound);
    let stat = Place::find(root.as_fd(), b"data/out", false).unwrap().stat().unwrap();
    assert_eq!(stat.link_target, b"../../outside");
}

#[test]
fn hostile_archives_write_nothing_outside() {
    let (scratch, root) = scene();
    for name in ["../x", "a/../../x", "/../x"] {
        assert_eq!(write(&root, &[(file(name), b"x")]).unwrap_err().kind, Kind::Invalid, "{name}");
    }
    for target in ["../../outside", "/outside", "/../../outside"] {
        let _ = write(&root, &[(link("l", target, b'2'), b""), (file("l/secret"), b"lost"), (file("l/new"), b"x")]);
    }
    assert!(write(&root, &[(link("h", "../../outside/secret", b'1'), b"")]).is_err());
    let outside: Vec<_> = std::fs::read_dir(scratch.0.join("outside")).unwrap().flatten().collect();
    assert_eq!(outside.len(), 1);
    assert_eq!(std::fs::read(scratch.0.join("outside/secret")).unwrap(), b"secret");
}

#[test]
fn what_is_there_is_replaced_and_never_written_through() {
    let (scratch, root) = scene();
    let data = scratch.0.join("root/data");
    std::fs::write(scratch.0.join("root/kept"), "kept").unwrap();
    symlink("/kept", data.join("f")).unwrap();
    std::fs::create_dir_all(data.join("d/e/f")).unwrap();
    write(
        &root,
        &[(file("f"), b"new"), (file("d"), b"a file now"), (file("g/h"), b"deep"), (link("i", "f", b'1'), b"")],
    )
    .unwrap();
    for (path, content) in
        [("kept", "kept"), ("data/f", "new"), ("data/d", "a file now"), ("data/g/h", "deep"), ("data/i", "new")]
    {
        assert_eq!(std::fs::read_to_string(scratch.0.join("root").join(path)).unwrap(), content, "{path}");
    }
    let options = WriteTreeOptions { path: b"data".to_vec(), no_overwrite_dir_non_dir: true, ..Default::default() };
    let error = write_tree(root.as_fd(), &options, &archive(&[(file("g"), b"")])[..]).unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
}

#[test]
fn an_owner_that_chown_would_not_set_is_refused() {
    let (scratch, root) = scene();
    let options = WriteTreeOptions { path: b"data".to_vec(), keep_owner: true, ..Default::default() };
    let bytes = archive(&[(Entry { uid: u32::MAX, ..file("f") }, b"x")]);
    assert_eq!(write_tree(root.as_fd(), &options, &bytes[..]).unwrap_err().kind, Kind::Invalid);
    assert!(!scratch.0.join("root/data/f").exists());
}

#[test]
fn a_cut_archive_leaves_no_half_of_a_file() {
    let (scratch, root) = scene();
    let bytes = archive(&[(file("f"), &[7; 5000])]);
    let options = WriteTreeOptions { path: b"data".to_vec(), ..Default::default() };
    for cut in [100, 600, 4000] {
        assert_eq!(write_tree(root.as_fd(), &options, &bytes[..cut]).unwrap_err().kind, Kind::Invalid, "{cut}");
    }
    assert!(!scratch.0.join("root/data/f").exists());
    let nowhere = WriteTreeOptions { path: b"absent".to_vec(), ..Default::default() };
    assert_eq!(write_tree(root.as_fd(), &nowhere, &bytes[..]).unwrap_err().kind, Kind::NotFound);
}
