// SPDX-License-Identifier: Apache-2.0
//! What a container's mounts stand on: disks and shares, mounted once by the agent, become binds; a volume that is used
//! for the first time gets what the image has at its place. Blocking.

use std::path::Path;

use crate::disk::Lease;
use crate::error::Result;
use crate::files::Layers;
use crate::growth;
use crate::mount;
use crate::path::Root;
use crate::proto::{CreateContainerRequest, Mount};
use crate::volume;
use crate::workshop::Workshop;

impl Workshop {
    /// Disks and shares among the mounts become binds of where the agent mounted them.
    pub fn mount_sources(&self, request: &mut CreateContainerRequest) -> Result<Vec<Lease>> {
        let mut leases = Vec::new();
        // A disk that is mounted in several places is mounted for writing when one of them writes.
        let written: Vec<String> =
            request.mounts.iter().filter(|mount| !is_readonly(mount)).map(|mount| mount.source.clone()).collect();
        for mount in &mut request.mounts {
            let is_share = mount.r#type == "virtiofs";
            let lease = if let Some(filesystem) = mount.r#type.strip_prefix("block:") {
                let attributes = if written.contains(&mount.source) {
                    mount::Attributes::empty()
                } else {
                    mount::Attributes::MOUNT_ATTR_RDONLY
                };
                let lease = self
                    .disks
                    .lease(&mount.source, 0, filesystem, attributes)
                    .map_err(|error| error.of(format_args!("volume at {}", mount.destination)))?;
                if attributes.is_empty() {
                    growth::fill_disk(&lease.path);
                }
                lease
            } else if is_share {
                self.disks
                    .lease_share(&mount.source)
                    .map_err(|error| error.of(format_args!("share at {}", mount.destination)))?
            } else {
                continue;
            };
            "bind".clone_into(&mut mount.r#type);
            let found = if is_share { volume::entry } else { volume::directory };
            let source = found(&lease.path, &mount.subdirectory)
                .map_err(|error| error.of(format_args!("volume at {}", mount.destination)))?;
            mount.source = source.to_string_lossy().into_owned();
            leases.push(lease);
        }
        Ok(leases)
    }

    /// With what is the image's own: neither with places for mounts nor with what the container changed.
    pub fn fill_volumes(&self, request: &CreateContainerRequest, layers: &Layers) -> Result<()> {
        let filled: Vec<&Mount> =
            request.mounts.iter().filter(|mount| mount.copy_image && !is_readonly(mount)).collect();
        if filled.is_empty() {
            return Ok(());
        }
        let Some(image) = self.disks.mount_image(&layers.lower)? else { return Ok(()) };
        let image = Root::new(image);
        filled.iter().try_for_each(|mount| volume::fill(Path::new(&mount.source), &image, &mount.destination))
    }
}

fn is_readonly(mount: &Mount) -> bool {
    mount::parse_options(&mount.options)
        .is_ok_and(|(attributes, _)| attributes.contains(mount::Attributes::MOUNT_ATTR_RDONLY))
}
