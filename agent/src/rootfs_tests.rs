// SPDX-License-Identifier: Apache-2.0
use std::os::unix::fs::symlink;

use super::*;
use crate::mount::recording::Recorder;
use crate::path::tests::Scratch;
use crate::proto::{Isolation, ProcessSpec, RootFilesystem};

struct Image {
    scratch: Scratch,
    files: Scratch,
    /// Made by the tests that are about it.
    share: std::path::PathBuf,
}

impl Image {
    fn new() -> Self {
        let files = Scratch::new();
        for name in NAME_FILES {
            std::fs::write(files.0.join(name), name).unwrap();
        }
        let share = files.0.join("share");
        Self { scratch: Scratch::new(), files, share }
    }

    fn build(&self, request: &CreateContainerRequest) -> Result<Vec<String>> {
        let kernel = Recorder::below(&self.scratch.0);
        let root = Root::new(std::fs::File::open(&self.scratch.0).unwrap().into());
        Builder {
            kernel: &kernel,
            root: &root,
            request,
            files: &self.files.0,
            share: &self.share,
            ahead: &Ahead::default(),
        }
        .build()?;
        Ok(kernel.log.into_inner())
    }
}

fn asked(mounts: Vec<Mount>) -> CreateContainerRequest {
    CreateContainerRequest { mounts, ..Default::default() }
}

fn tmpfs(destination: &str, options: &[&str]) -> Mount {
    Mount {
        source: String::new(),
        destination: destination.into(),
        r#type: "tmpfs".into(),
        options: options.iter().map(|&o| o.into()).collect(),
        ..Default::default()
    }
}

#[test]
fn the_standard_mounts_come_first_and_in_order() {
    let log = Image::new().build(&asked(vec![])).unwrap();
    let expected = [
        "/proc <- proc [] nosuid,nodev,noexec",
        "/dev <- tmpfs [mode=755,size=65536k] nosuid,strictatime",
        "/dev/pts <- devpts [ptmxmode=0666,mode=0620,gid=5] nosuid,noexec",
        "/sys <- sysfs [] rdonly,nosuid,nodev,noexec",
        "/sys/fs/cgroup <- cgroup2 [] rdonly,nosuid,nodev,noexec",
        "/dev/mqueue <- mqueue [] nosuid,nodev,noexec",
        "/dev/shm <- tmpfs [mode=1777,size=67108864] nosuid,nodev,noexec",
        "/dev/null c 1:3 666",
        "/dev/zero c 1:5 666",
        "/dev/full c 1:7 666",
        "/dev/random c 1:8 666",
        "/dev/urandom c 1:9 666",
        "/dev/tty c 5:0 666",
    ];
    assert_eq!(log[..expected.len()], expected);
    assert_eq!(log.len(), expected.len() + NAME_FILES.len());
    assert!(log[expected.len()].starts_with("/etc/hosts <- bind "));
}

#[test]
fn standard_links_are_there() {
    let image = Image::new();
    image.build(&asked(vec![])).unwrap();
    for (name, target) in LINKS {
        assert_eq!(std::fs::read_link(image.scratch.0.join("dev").join(name)).unwrap(), Path::new(target));
    }
}

#[test]
fn asked_mounts_go_parents_first_and_with_their_options() {
    let image = Image::new();
    let log = image
        .build(&asked(vec![tmpfs("/data/cache/deep", &[]), tmpfs("/data", &["size=1m", "noexec", "ro"])]))
        .unwrap();
    let mine: Vec<&String> = log.iter().filter(|line| line.starts_with("/data")).collect();
    assert_eq!(mine, ["/data <- tmpfs [size=1m] rdonly,noexec", "/data/cache/deep <- tmpfs [] "]);
}

#[test]
fn ids_that_were_given_cover_the_images_and_cannot_be_written() {
    let image = Image::new();
    std::fs::write(image.files.0.join(MACHINE_ID), "id").unwrap();
    std::fs::write(image.files.0.join(BOOT_ID), "id").unwrap();
    std::fs::create_dir_all(image.scratch.0.join("proc/sys/kernel/random")).unwrap();
    let isolation = Isolation { readonly_paths: vec!["/proc/sys".into()], ..Default::default() };
    let log = image.build(&CreateContainerRequest { isolation: Some(isolation), ..Default::default() }).unwrap();
    let own = image.files.0.display();
    for (name, place) in [(MACHINE_ID, "/etc/machine-id"), (BOOT_ID, BOOT_ID_PLACE)] {
        let at = log.iter().position(|line| *line == format!("{place} <- bind {own}/{name}")).unwrap();
        assert_eq!(log[at - 1], format!("bind {own}/{name} set rdonly"));
    }
    assert_eq!(log[log.len() - 1], "/proc/sys <- bind /proc/sys");
}

#[test]
fn an_image_without_a_place_for_an_id_is_none_the_worse() {
    let image = Image::new();
    std::fs::write(image.files.0.join(MACHINE_ID), "id").unwrap();
    std::fs::create_dir_all(image.scratch.0.join("etc")).unwrap();
    symlink("/nowhere/id", image.scratch.0.join("etc/machine-id")).unwrap();
    let log = image.build(&asked(vec![])).unwrap();
    assert!(!log.iter().any(|line| line.contains("machine-id <-")), "{log:?}");
}

#[test]
fn forkpoint_is_seen_on_top_of_what_is_mounted_on_run() {
    let image = Image::new();
    std::fs::create_dir(&image.share).unwrap();
    let log = image.build(&asked(vec![tmpfs("/a/b/c", &[]), tmpfs("/run", &[])])).unwrap();
    let own = image.share.display();
    let mine = [
        "/run <- tmpfs [] ".to_owned(),
        format!("bind {own} set rdonly,nosuid,nodev"),
        format!("/run/hyper <- bind {own}"),
        "/a/b/c <- tmpfs [] ".to_owned(),
    ];
    assert_eq!(log[log.len() - 4..], mine);
}

#[test]
fn what_somebody_wants_at_our_place_is_theirs() {
    let image = Image::new();
    std::fs::create_dir(&image.share).unwrap();
    let log = image.build(&asked(vec![tmpfs("/run/hyper/", &[])])).unwrap();
    assert_eq!(log.last().unwrap(), "/run/hyper <- tmpfs [] ");
}

#[test]
fn a_hostile_destination_stays_in_the_image() {
    let image = Image::new();
    symlink("/../../../../../../etc", image.scratch.0.join("out")).unwrap();
    let log = image.build(&asked(vec![tmpfs("/out/x", &[]), tmpfs("/../../y", &[])])).unwrap();
    assert!(log.iter().any(|line| line.starts_with("/etc/x <- ")), "{log:?}");
    assert!(log.iter().any(|line| line.starts_with("/y <- ")), "{log:?}");
}

#[test]
fn a_symlink_in_place_of_a_standard_directory_is_refused() {
    for name in ["proc", "dev", "sys"] {
        let image = Image::new();
        std::fs::create_dir(image.scratch.0.join("elsewhere")).unwrap();
        symlink("/elsewhere", image.scratch.0.join(name)).unwrap();
        let error = image.build(&asked(vec![])).unwrap_err();
        assert_eq!(error.message, format!("/{name} of the image is a symbolic link"));
    }
}

#[test]
fn paths_are_masked_and_made_readonly_last_and_only_where_they_exist() {
    let image = Image::new();
    std::fs::create_dir_all(image.scratch.0.join("proc/scsi")).unwrap();
    std::fs::create_dir_all(image.scratch.0.join("proc/sys")).unwrap();
    std::fs::create_dir_all(image.scratch.0.join("dev")).unwrap();
    std::fs::write(image.scratch.0.join("proc/kcore"), "").unwrap();
    std::fs::write(image.scratch.0.join("dev/null"), "").unwrap();
    let isolation = Isolation {
        masked_paths: ["/proc/kcore", "/proc/scsi", "/proc/absent"].map(String::from).to_vec(),
        readonly_paths: vec!["/proc/sys".into(), "/proc/bus".into()],
        ..Default::default()
    };
    let request = CreateContainerRequest {
        isolation: Some(isolation.clone()),
        root: Some(RootFilesystem { readonly: true, ..Default::default() }),
        ..Default::default()
    };
    let log = image.build(&request).unwrap();
    assert_eq!(
        log[log.len() - 5..],
        [
            "bind /proc/sys set rdonly",
            "/proc/sys <- bind /proc/sys",
            "/proc/kcore <- bind /dev/null",
            "/proc/scsi <- tmpfs [size=4k] rdonly",
            " set rdonly",
        ]
    );
    let privileged =
        CreateContainerRequest { isolation: Some(Isolation { privileged: true, ..isolation }), ..Default::default() };
    let open = Image::new().build(&privileged).unwrap();
    assert!(!open.iter().any(|line| line.contains("rdonly")), "{open:?}");
}

#[test]
fn the_working_directory_is_made() {
    let image = Image::new();
    let request = CreateContainerRequest {
        process: Some(ProcessSpec { working_directory: "/srv/app".into(), ..Default::default() }),
        ..Default::default()
    };
    image.build(&request).unwrap();
    assert!(image.scratch.0.join("srv/app").is_dir());
}

#[test]
fn sysctls_are_written_below_proc_sys() {
    let image = Image::new();
    std::fs::create_dir_all(image.scratch.0.join("proc/sys")).unwrap();
    let sysctls = [("kernel.shmmax".to_owned(), "1000".to_owned())].into();
    let request =
        CreateContainerRequest { isolation: Some(Isolation { sysctls, ..Default::default() }), ..Default::default() };
    let log = image.build(&request).unwrap();
    assert!(log.contains(&"/proc/sys/kernel/shmmax = 1000".to_owned()), "{log:?}");
    for bad in ["", "a..b", "../x", "a/../../b", ".a"] {
        assert!(sysctl_path(bad).is_err(), "{bad:?}");
    }
    assert_eq!(sysctl_path("net/ipv4/conf/eth0.1/forwarding").unwrap(), "net/ipv4/conf/eth0.1/forwarding");
}

#[test]
fn mounts_of_unknown_kind_or_without_a_place_are_refused() {
    let image = Image::new();
    assert!(image.build(&asked(vec![tmpfs("relative", &[])])).is_err());
    assert!(
        image
            .build(&asked(vec![Mount { r#type: "nfs".into(), destination: "/x".into(), ..Default::default() }]))
            .is_err()
    );
    assert!(
        image
            .build(&asked(vec![Mount {
                r#type: "bind".into(),
                source: "/no/such/source".into(),
                destination: "/x".into(),
                ..Default::default()
            }]))
            .is_err()
    );
}
