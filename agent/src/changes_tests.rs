// SPDX-License-Identifier: Apache-2.0
//! On real overlays, in no namespace but their own: these tests need root.
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::PathBuf;

use super::*;
use crate::disk::Disks;
use crate::error::{Error, Kind};
use crate::layer::{list_changes, write_layer};
use crate::mount::Linux;
use crate::path::Root;
use crate::path::tests::Scratch;
use crate::pax::Outlet;
use crate::pax::tests::{Collected, entries};
use crate::proto::{Change as Told, CreateContainerRequest, Layer, RootFilesystem, WritableLayer};
use crate::untar::Entry;

pub struct Overlay {
    _scratch: Scratch,
    pub root: OwnedFd,
    layers: crate::files::Layers,
    disks: Disks<Linux>,
}

/// What is in the image: a path that ends in a slash is a directory.
pub fn overlay(image: &[&str]) -> Overlay {
    let scratch = Scratch::new();
    let (image_path, writable) = (scratch.0.join("image"), scratch.0.join("writable"));
    std::fs::create_dir_all(&image_path).unwrap();
    for path in image {
        let place = image_path.join(path);
        std::fs::create_dir_all(if path.ends_with('/') { &place } else { place.parent().unwrap() }).unwrap();
        if !path.ends_with('/') {
            std::fs::write(place, path).unwrap();
        }
    }
    let disks = Disks::new(Linux, &scratch.0.join("state"), true);
    let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let root = RootFilesystem {
        layers: vec![Layer { disk_serial: text(&image_path), partition: 0, filesystem: "dir".into() }],
        writable: Some(WritableLayer { disk_serial: text(&writable), filesystem: "dir".into(), directory: "c".into() }),
        readonly: false,
    };
    let request = CreateContainerRequest { root: Some(root), ..CreateContainerRequest::default() };
    let made = disks.mount_root(&request, &scratch.0.join("files")).unwrap();
    Overlay { _scratch: scratch, root: made.mount, layers: made.layers, disks }
}

impl Outlet<Vec<Told>> for Vec<Told> {
    fn piece(&mut self, changes: Vec<Told>) -> Result<()> {
        self.extend(changes);
        Ok(())
    }
    fn wanted(&self) -> Result<()> {
        Ok(())
    }
}

/// Nobody listens.
struct Deaf;

impl<T> Outlet<T> for Deaf {
    fn piece(&mut self, _: T) -> Result<()> {
        panic!("given to nobody")
    }
    fn wanted(&self) -> Result<()> {
        Err(Error::new(Kind::Aborted, "nobody listens"))
    }
}

impl Overlay {
    pub fn at(&self, path: &str) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}/{path}", self.root.as_raw_fd()))
    }

    fn write(&self, path: &str, content: &str) {
        std::fs::write(self.at(path), content).unwrap();
    }

    fn tar(&self) -> Vec<u8> {
        let mut out = Collected::default();
        let upper = self.layers.open_upper().unwrap();
        let image = self.disks.mount_image(&self.layers.lower).unwrap();
        write_layer(upper.as_ref().map(AsFd::as_fd), image.as_ref().map(AsFd::as_fd), &mut out).unwrap();
        out.0
    }

    fn entries(&self) -> Vec<(Entry, Vec<u8>)> {
        entries(&self.tar())
    }

    fn layer(&self) -> Vec<String> {
        self.entries().iter().map(|(entry, _)| String::from_utf8_lossy(&entry.path).into_owned()).collect()
    }

    fn diff(&self) -> Vec<String> {
        let mut told: Vec<Told> = Vec::new();
        let upper = self.layers.open_upper().unwrap();
        let image = self.disks.mount_image(&self.layers.lower).unwrap();
        list_changes(upper.as_ref().map(AsFd::as_fd), image.as_ref().map(AsFd::as_fd), &mut told).unwrap();
        let letter = |change: &Told| ["?", "A", "C", "D"][change.kind as usize];
        told.iter().map(|change| format!("{} {}", letter(change), String::from_utf8_lossy(&change.path))).collect()
    }

    /// A place for a mount, as the agent makes it.
    fn stub(&self, path: &str) {
        let root = Root::new(crate::node::open_below(self.root.as_fd(), b"").unwrap());
        if path.ends_with('/') {
            root.directory(path).unwrap()
        } else {
            root.file(path).unwrap()
        };
    }
}

#[test]
fn added_changed_and_deleted() {
    let box_ = overlay(&["etc/passwd", "etc/old", "usr/bin/x", "var/log/"]);
    assert_eq!((box_.layer(), box_.diff()), (Vec::<String>::new(), Vec::new()));
    box_.write("etc/passwd", "changed");
    box_.write("etc/new", "new");
    std::fs::remove_file(box_.at("etc/old")).unwrap();
    std::fs::remove_dir_all(box_.at("usr/bin")).unwrap();
    std::fs::create_dir(box_.at("var/log/deep")).unwrap();
    let layer =
        ["etc/", "etc/new", "etc/.wh.old", "etc/passwd", "usr/", "usr/.wh.bin", "var/", "var/log/", "var/log/deep/"];
    assert_eq!(box_.layer(), layer);
    let diff = [
        "C /etc",
        "A /etc/new",
        "D /etc/old",
        "C /etc/passwd",
        "C /usr",
        "D /usr/bin",
        "C /var",
        "C /var/log",
        "A /var/log/deep",
    ];
    assert_eq!(box_.diff(), diff);
    assert_eq!(box_.tar(), box_.tar());
}

#[test]
fn a_directory_that_was_made_anew_is_opaque_and_only_then() {
    let box_ = overlay(&["d/a", "d/b", "d/sub/c", "f"]);
    std::fs::remove_dir_all(box_.at("d")).unwrap();
    std::fs::create_dir_all(box_.at("d/sub/new")).unwrap();
    box_.write("d/b", "again");
    std::fs::create_dir(box_.at("fresh")).unwrap();
    assert_eq!(box_.layer(), ["d/", "d/.wh..wh..opq", "d/b", "d/sub/", "d/sub/new/", "fresh/"]);
    let diff = ["C /d", "D /d/a", "C /d/b", "C /d/sub", "D /d/sub/c", "A /d/sub/new", "A /fresh"];
    assert_eq!(box_.diff(), diff);
}

#[test]
fn one_kind_of_thing_replaces_another() {
    let box_ = overlay(&["d/a", "f"]);
    std::fs::remove_dir_all(box_.at("d")).unwrap();
    box_.write("d", "a file now");
    std::fs::remove_file(box_.at("f")).unwrap();
    std::fs::create_dir(box_.at("f")).unwrap();
    assert_eq!(box_.layer(), ["d", "f/"]);
    assert_eq!(box_.diff(), ["C /d", "C /f"]);
}

#[test]
fn hard_links_are_one_file_and_names_of_it() {
    let box_ = overlay(&["a/", "b/"]);
    box_.write("b/one", "content");
    std::fs::hard_link(box_.at("b/one"), box_.at("a/two")).unwrap();
    std::fs::hard_link(box_.at("b/one"), box_.at("z")).unwrap();
    let entries = box_.entries();
    let found: Vec<_> = entries.iter().filter(|(entry, _)| entry.kind != b'5').collect();
    assert_eq!((&found[0].0.path[..], found[0].0.kind, &found[0].1[..]), (&b"a/two"[..], b'0', &b"content"[..]));
    for (entry, path) in [(&found[1].0, &b"b/one"[..]), (&found[2].0, b"z")] {
        assert_eq!((&entry.path[..], entry.kind, &entry.link[..]), (path, b'1', &b"a/two"[..]));
    }
}

#[test]
fn all_that_a_file_is_comes_along() {
    use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};
    let box_ = overlay(&["x"]);
    box_.write("x", "setuid");
    chown(box_.at("x"), Some(3_000_000), Some(4)).unwrap();
    std::fs::set_permissions(box_.at("x"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    setxattr(box_.at("x"), "security.capability", &capability, XattrFlags::empty()).unwrap();
    setxattr(box_.at("x"), "user.a", b"1\n2", XattrFlags::empty()).unwrap();
    setxattr(box_.at("x"), "trusted.b", b"3", XattrFlags::empty()).unwrap();
    let time = rustix::fs::Timespec { tv_sec: 1000, tv_nsec: 123_456_789 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, box_.at("x"), &times, rustix::fs::AtFlags::empty()).unwrap();
    mknodat(CWD, box_.at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let number = rustix::fs::makedev(1, 3);
    mknodat(CWD, box_.at("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o600), number).unwrap();
    symlink("t".repeat(200), box_.at("link")).unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"\xff\xfe");
    std::fs::write(box_.at("").join(odd), "").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(box_.at("socket")).unwrap();
    let found: Vec<Entry> = box_.entries().into_iter().map(|(entry, _)| entry).collect();
    let by_name = |name: &[u8]| found.iter().find(|entry| entry.path == name).unwrap();
    let x = by_name(b"x");
    assert_eq!((x.mode, x.uid, x.gid, x.mtime), (0o4755, 3_000_000, 4, (1000, 123_456_789)));
    let kept = [(b"security.capability".to_vec(), capability.to_vec()), (b"user.a".to_vec(), b"1\n2".to_vec())];
    assert_eq!(x.xattrs, kept);
    assert_eq!(by_name(b"fifo").kind, b'6');
    assert_eq!((by_name(b"null").kind, by_name(b"null").device), (b'3', (1, 3)));
    assert_eq!(by_name(b"link").link, "t".repeat(200).as_bytes());
    assert_eq!(by_name(b"\xff\xfe").kind, b'0');
    assert_eq!(found.len(), 5, "{found:?}");
}

#[test]
fn places_for_mounts_are_nobodys_change_until_somebody_changes_them() {
    let box_ = overlay(&["etc/passwd", "usr/"]);
    for place in ["/etc/hosts", "/proc/", "/run/hyper/", "/usr/share/data/", "/etc/resolv.conf"] {
        box_.stub(place);
    }
    assert_eq!((box_.layer(), box_.diff()), (Vec::<String>::new(), Vec::new()));
    box_.write("run/pid", "1");
    std::fs::set_permissions(box_.at("proc"), std::fs::Permissions::from_mode(0o700)).unwrap();
    box_.write("etc/hosts", "not empty");
    assert_eq!(box_.diff(), ["C /etc", "A /etc/hosts", "A /proc", "A /run", "A /run/pid"]);
    assert_eq!(box_.layer(), ["etc/", "etc/hosts", "proc/", "run/", "run/pid"]);
}

#[test]
fn places_beneath_the_image_are_neither_its_nor_a_change() {
    let box_ = overlay(&["bin/sh", "etc/passwd", "data/"]);
    assert!(box_.at("etc/hosts").exists() && box_.at("run/hyper").exists());
    // Copied up with their mark, and gone as if they had never been.
    std::fs::remove_file(box_.at("etc/hosts")).unwrap();
    box_.write("run/pid", "1");
    std::fs::remove_file(box_.at("run/pid")).unwrap();
    assert_eq!((box_.layer(), box_.diff()), (Vec::<String>::new(), Vec::new()));
    // Another thing in the place of one, and something in one.
    std::fs::remove_dir_all(box_.at("dev")).unwrap();
    box_.write("dev", "");
    std::fs::remove_file(box_.at("etc/passwd")).unwrap();
    box_.write("run/pid", "1");
    assert_eq!(box_.diff(), ["A /dev", "C /etc", "D /etc/passwd", "A /run", "A /run/pid"]);
    assert_eq!(box_.layer(), ["dev", "etc/", "etc/.wh.passwd", "run/", "run/pid"]);
}

#[test]
fn a_directory_counts_by_itself_when_it_differs() {
    let box_ = overlay(&["a/", "b/", "c/x", "d/"]);
    std::fs::set_permissions(box_.at("a"), std::fs::Permissions::from_mode(0o700)).unwrap();
    // Its time is another one then.
    box_.write("b/file", "");
    std::fs::remove_file(box_.at("b/file")).unwrap();
    // Copied up, and the same.
    let mode = std::fs::metadata(box_.at("d")).unwrap().mode();
    std::fs::set_permissions(box_.at("d"), std::fs::Permissions::from_mode(mode)).unwrap();
    assert_eq!(box_.diff(), ["C /a", "C /b"]);
    assert_eq!(box_.layer(), ["a/", "b/"]);
}

#[test]
fn names_that_mean_something_else_in_a_layer_are_left_out_of_it() {
    let box_ = overlay(&["a"]);
    box_.write(".wh.a", "");
    std::fs::create_dir(box_.at(".wh.d")).unwrap();
    box_.write(".wh.d/f", "");
    box_.write("b", "");
    assert_eq!(box_.layer(), ["b"]);
    assert_eq!(box_.diff(), ["A /.wh.a", "A /.wh.d", "A /.wh.d/f", "A /b"]);
}

#[test]
fn a_root_that_cannot_change_has_an_empty_layer() {
    let mut out = Collected::default();
    write_layer(None, None, &mut out).unwrap();
    assert_eq!(out.0, [0; 1024]);
}

#[test]
fn nothing_is_looked_at_for_somebody_who_has_gone() {
    let box_ = overlay(&["a/"]);
    // Copied up, and the same: there is nothing to tell.
    std::fs::set_permissions(box_.at("a"), std::fs::metadata(box_.at("a")).unwrap().permissions()).unwrap();
    let upper = box_.layers.open_upper().unwrap().unwrap();
    let image = box_.disks.mount_image(&box_.layers.lower).unwrap();
    let image = image.as_ref().map(AsFd::as_fd);
    for end in [write_layer(Some(upper.as_fd()), image, &mut Deaf), list_changes(Some(upper.as_fd()), image, &mut Deaf)]
    {
        assert_eq!(end.unwrap_err().kind, Kind::Aborted);
    }
}

#[test]
fn a_deep_tree_takes_neither_stack_nor_descriptors() {
    let box_ = overlay(&["a"]);
    let deep = "d/".repeat(1500);
    let mut made = crate::node::open_below(box_.root.as_fd(), b"").unwrap();
    for _ in 0..1500 {
        rustix::fs::mkdirat(&made, "d", rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
        made = crate::node::open_below(made.as_fd(), b"d").unwrap();
    }
    let layer = box_.layer();
    assert_eq!((layer.len(), layer.last()), (1500, Some(&deep)));
}
