// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::path::tests::Scratch;
use std::os::unix::fs::symlink;

struct Place {
    scratch: Scratch,
    root: Root,
}

impl Place {
    fn new() -> Self {
        let scratch = Scratch::new();
        std::fs::create_dir_all(scratch.0.join("root/srv/data/deep")).unwrap();
        std::fs::create_dir_all(scratch.0.join("volume/data")).unwrap();
        let root = Root::new(File::open(scratch.0.join("root")).unwrap().into());
        Self { scratch, root }
    }
    fn image(&self, name: &str) -> PathBuf {
        self.scratch.0.join("root/srv/data").join(name)
    }
    fn data(&self) -> PathBuf {
        directory(&self.scratch.0.join("volume"), "data").unwrap()
    }
    fn fill(&self) -> Result<()> {
        fill(&self.data(), &self.root, "/srv/data")
    }
}

#[test]
fn an_empty_volume_gets_what_the_image_has_there() {
    let place = Place::new();
    std::fs::write(place.image("deep/file"), "content").unwrap();
    std::fs::hard_link(place.image("deep/file"), place.image("again")).unwrap();
    symlink("../../etc", place.image("link")).unwrap();
    std::fs::set_permissions(place.image("deep/file"), Permissions::from_mode(0o4711)).unwrap();
    std::fs::set_permissions(place.image(""), Permissions::from_mode(0o1770)).unwrap();
    let long_ago = Timestamps {
        last_access: Timespec { tv_sec: 1, tv_nsec: 2 },
        last_modification: Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 },
    };
    for name in ["deep/file", "deep"] {
        rustix::fs::utimensat(CWD, place.image(name), &long_ago, AtFlags::empty()).unwrap();
    }
    place.fill().unwrap();
    let data = place.data();
    assert_eq!(std::fs::read_to_string(data.join("deep/file")).unwrap(), "content");
    assert_eq!(std::fs::read_link(data.join("link")).unwrap(), Path::new("../../etc"));
    let file = std::fs::metadata(data.join("deep/file")).unwrap();
    assert_eq!(file.mode() & 0o7777, 0o4711);
    assert_eq!(file.ino(), std::fs::metadata(data.join("again")).unwrap().ino());
    assert_eq!((file.mtime(), file.mtime_nsec()), (1_000_000_000, 5));
    assert_eq!(std::fs::metadata(data.join("deep")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(std::fs::metadata(&data).unwrap().mode() & 0o7777, 0o1770);
    assert!(!data.parent().unwrap().join(FILLING).exists());
}

#[test]
fn a_volume_that_holds_something_stays_as_it_is() {
    let place = Place::new();
    std::fs::write(place.image("new"), "new").unwrap();
    std::fs::write(place.data().join("mine"), "mine").unwrap();
    place.fill().unwrap();
    assert!(!place.data().join("new").exists());
}

#[test]
fn what_a_killed_start_left_half_filled_is_done_anew() {
    let place = Place::new();
    std::fs::write(place.image("file"), "whole").unwrap();
    let half = place.scratch.0.join("volume").join(FILLING);
    std::fs::create_dir(&half).unwrap();
    std::fs::write(half.join("file"), "ha").unwrap();
    place.fill().unwrap();
    assert_eq!(std::fs::read_to_string(place.data().join("file")).unwrap(), "whole");
    assert!(!half.exists());
}

#[test]
fn an_image_without_that_directory_leaves_the_volume_empty() {
    let place = Place::new();
    fill(&place.data(), &place.root, "/no/such/place").unwrap();
    std::fs::write(place.scratch.0.join("root/file"), "").unwrap();
    fill(&place.data(), &place.root, "/file").unwrap();
    assert_eq!(std::fs::read_dir(place.data()).unwrap().count(), 0);
}

#[test]
fn a_link_in_the_image_leads_nowhere_else() {
    let place = Place::new();
    std::fs::create_dir(place.scratch.0.join("outside")).unwrap();
    std::fs::write(place.scratch.0.join("outside/secret"), "secret").unwrap();
    symlink("../../outside", place.scratch.0.join("root/srv/up")).unwrap();
    fill(&place.data(), &place.root, "/srv/up").unwrap();
    assert!(!place.data().join("secret").exists());
}

#[test]
fn a_volume_whose_directory_is_a_link_is_refused() {
    let place = Place::new();
    let volume = place.scratch.0.join("volume");
    std::fs::remove_dir(volume.join("data")).unwrap();
    symlink("/", volume.join("data")).unwrap();
    assert_eq!(directory(&volume, "data").unwrap_err().kind, Kind::Invalid);
    for name in ["..", "a/b", ".filling", "absent"] {
        assert_eq!(directory(&volume, name).unwrap_err().kind, Kind::Invalid, "{name}");
    }
    assert_eq!(directory(&volume, "").unwrap(), volume);
}
