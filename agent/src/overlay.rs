// SPDX-License-Identifier: Apache-2.0
//! A container's root: the layers stacked under its writable directory. Each layer is mounted once per guest, by [`Disks`].

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use rustix::fs::{Mode, OFlags};

use crate::disk::{Disks, Lease, make_directory};
use crate::error::{Context, Error, Result};
use crate::files::Layers;
use crate::mount::{Attributes, Filesystem, Kernel};
use crate::proto::{CreateContainerRequest, WritableLayer};
use crate::rootfs::{MACHINE_ID, NAME_FILES, standard_directories};

const MAX_LAYERS: usize = 256;

/// A container's root, attached nowhere yet, and what it stands on.
pub struct RootMount {
    pub mount: OwnedFd,
    pub layers: Layers,
    pub leases: Vec<Lease>,
}

impl<K: Kernel> Disks<K> {
    /// Stacks the layers under the writable directory; `files` is the container's own directory of the agent.
    pub fn mount_root(&self, request: &CreateContainerRequest, files: &Path) -> Result<RootMount> {
        let root = request.root.clone().unwrap_or_default();
        if root.layers.len() > MAX_LAYERS {
            return Err(Error::invalid(format!("{} layers are more than {MAX_LAYERS}", root.layers.len())));
        }
        let mut leases = Vec::new();
        for layer in &root.layers {
            leases.push(self.lease_layer(layer)?);
        }
        // Overlayfs wants the topmost first.
        let mut lower: Vec<PathBuf> = leases.iter().rev().map(|lease| lease.path.clone()).collect();
        let mut layers = Layers { upper: None, lower: lower.clone() };
        let mut upper = None;
        match &root.writable {
            Some(writable) => {
                // Beneath all layers: a place that the image lacks is there without a write to the disk.
                lower.push(self.places()?);
                let lease = self.lease_writable(writable)?;
                upper = Some(prepare_upper(&lease.path, writable, &lower[0])?);
                layers.upper = upper.as_ref().map(|path| path.join("upper"));
                leases.push(lease);
            }
            // Nothing can be created in it later, so the places for mounts come as a layer of their own.
            None => lower.insert(0, make_skeleton(&files.join("skeleton"), request)?),
        }
        if upper.is_none() && lower.len() == 1 {
            lower.push(make_directory(self.state.join("empty"))?);
        }
        let mount =
            self.kernel.make(&overlay(&lower, upper.as_deref())?).map_err(|error| error.of("root file system"))?;
        Ok(RootMount { mount, layers, leases })
    }

    /// What is below a container's changes, as one tree. `None`: nothing is.
    pub fn mount_image(&self, lower: &[PathBuf]) -> Result<Option<OwnedFd>> {
        let mut lower = lower.to_vec();
        match lower.len() {
            0 => return Ok(None),
            // Overlayfs wants two.
            1 => lower.push(make_directory(self.state.join("empty"))?),
            _ => {}
        }
        self.kernel.make(&overlay(&lower, None)?).map(Some)
    }

    /// Of the standard mounts and files: a directory that every root may stand on.
    pub fn places(&self) -> Result<PathBuf> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.is_none() {
            *places = Some(make_skeleton(&self.state.join("places"), &CreateContainerRequest::default())?);
        }
        places.clone().ok_or_else(|| Error::internal("no places"))
    }
}

fn overlay(lower: &[PathBuf], upper: Option<&Path>) -> Result<Filesystem> {
    let text = |path: &Path| path.to_str().map(str::to_owned).ok_or_else(|| Error::invalid("a path that is not UTF-8"));
    let mut parameters = Vec::new();
    for path in lower {
        // One call a layer: a single lowerdir= string ends at a page, some 60 layers.
        parameters.push(("lowerdir+".to_owned(), text(path)?));
    }
    let mut attributes = Attributes::MOUNT_ATTR_RELATIME;
    match upper {
        Some(upper) => {
            parameters.push(("upperdir".to_owned(), text(&upper.join("upper"))?));
            parameters.push(("workdir".to_owned(), text(&upper.join("work"))?));
            // `commit` reads the upper directory as files, so none may be metadata only, and none be of another name below.
            parameters.push(("metacopy".to_owned(), "off".to_owned()));
            parameters.push(("redirect_dir".to_owned(), "nofollow".to_owned()));
            parameters.push(("index".to_owned(), "off".to_owned()));
            parameters.push(("xino".to_owned(), "auto".to_owned()));
        }
        None => attributes |= Attributes::MOUNT_ATTR_RDONLY,
    }
    Ok(Filesystem { kind: "overlay".to_owned(), parameters, attributes })
}

fn prepare_upper(disk: &Path, writable: &WritableLayer, topmost: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let relative = Path::new(&writable.directory);
    let inside = relative
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir));
    if !inside || writable.directory.len() > 255 || writable.directory.contains('\0') {
        return Err(Error::invalid(format!("bad writable directory {:?}", writable.directory)));
    }
    let path = disk.join(relative);
    let made = |directory: &Path| std::fs::create_dir_all(directory).what("create a directory on the writable disk");
    made(&path.join("work"))?;
    let upper = path.join("upper");
    if !upper.exists() {
        made(&upper)?;
        // The merged root shows the upper directory's own mode and owner.
        let made = std::fs::metadata(&upper).what("look at the upper directory")?;
        if let Ok(below) = std::fs::metadata(topmost) {
            if (made.uid(), made.gid()) != (below.uid(), below.gid()) {
                std::os::unix::fs::chown(&upper, Some(below.uid()), Some(below.gid()))
                    .what("chown the upper directory")?;
            }
            if made.mode() & 0o7777 != below.mode() & 0o7777 {
                std::fs::set_permissions(&upper, std::fs::Permissions::from_mode(below.mode() & 0o7777))
                    .what("chmod the upper directory")?;
            }
        }
    }
    Ok(path)
}

fn make_skeleton(path: &Path, request: &CreateContainerRequest) -> Result<PathBuf> {
    let skeleton = crate::path::Root::new(open_directory(&make_directory(path.to_owned())?)?);
    for directory in standard_directories() {
        skeleton.directory(directory)?;
    }
    for name in NAME_FILES.into_iter().chain([MACHINE_ID]) {
        skeleton.file(&format!("/etc/{name}"))?;
    }
    for mount in &request.mounts {
        let is_file = mount.r#type == "bind" && !Path::new(&mount.source).is_dir();
        if is_file {
            skeleton.file(&mount.destination)?
        } else {
            skeleton.directory(&mount.destination)?
        };
    }
    if let Some(process) = &request.process {
        skeleton.directory(&process.working_directory)?;
    }
    Ok(path.to_owned())
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .what("open a directory of the agent's")
}
