// SPDX-License-Identifier: Apache-2.0
//! A root, or a volume in a root's stead, that was mounted for its files alone: nothing runs in it, and nothing will.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::blocking::blocking;
use crate::disk::Lease;
use crate::error::{Context, Result};
use crate::files::{Files, Layers};
use crate::growth;
use crate::mount::{self, Kernel, Linux};
use crate::proto::{ContainerState, ContainerStatus, CreateContainerRequest, OpenVolumeRequest, RootFilesystem};
use crate::volume;
use crate::workshop::{Workshop, remove_files};

/// A root that was mounted, and nothing runs in it.
pub struct Opened {
    pub id: String,
    pub archived: Arc<Files>,
    files: PathBuf,
    _leases: Vec<Lease>,
}

impl Workshop {
    /// Blocking. Leaves nothing behind when it fails.
    pub fn open(&self, id: String, root: RootFilesystem) -> Result<Opened> {
        let files = self.state.join("containers").join(&id);
        std::fs::create_dir_all(&files).what("create the container's directory")?;
        let is_readonly = root.readonly;
        let request =
            CreateContainerRequest { container_id: id.clone(), root: Some(root), ..CreateContainerRequest::default() };
        let opened = self.disks.mount_root(&request, &files).and_then(|root| {
            if is_readonly {
                Linux.set_attributes(root.mount.as_fd(), false, mount::Attributes::MOUNT_ATTR_RDONLY)?;
            }
            Ok(root)
        });
        match opened {
            Ok(root) => {
                let archived = Arc::new(Files::new(root.mount, root.layers));
                Ok(Opened { id, archived, files, _leases: root.leases })
            }
            Err(error) => {
                remove_files(&files);
                Err(error)
            }
        }
    }

    /// Blocking. A volume in a root's stead. Leaves nothing behind when it fails.
    pub fn open_volume(&self, request: &OpenVolumeRequest) -> Result<Opened> {
        let attributes =
            if request.readonly { mount::Attributes::MOUNT_ATTR_RDONLY } else { mount::Attributes::empty() };
        let lease = self.disks.lease(&request.disk_serial, 0, &request.filesystem, attributes)?;
        if !request.readonly {
            growth::fill_disk(&lease.path);
        }
        let place = volume::directory(&lease.path, &request.subdirectory)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = rustix::fs::open(&place, flags, Mode::empty()).what("open the volume's directory")?;
        let root = Linux.copy(place.as_fd(), false)?;
        let id = request.container_id.clone();
        let files = self.state.join("containers").join(&id);
        std::fs::create_dir_all(&files).what("create the container's directory")?;
        Ok(Opened { id, archived: Arc::new(Files::new(root, Layers::default())), files, _leases: vec![lease] })
    }
}

impl Opened {
    /// Unmounts, when the last lease goes.
    pub async fn close(&self) -> Result<()> {
        self.archived.close().await;
        let files = self.files.clone();
        blocking(move || {
            remove_files(&files);
            Ok(())
        })
        .await
    }

    /// It has no process, and none will come.
    pub fn status(&self) -> ContainerStatus {
        let state = ContainerState::Exited.into();
        ContainerStatus { container_id: self.id.clone(), state, processes: Vec::new() }
    }
}
