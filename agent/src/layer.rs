// SPDX-License-Identifier: Apache-2.0
//! Changes in the two forms that are asked for: an OCI layer, and a list as `docker diff` has it.

use std::os::fd::BorrowedFd;

use crate::changes::{Change, Changes};
use crate::error::Result;
use crate::pax::{Entry, Outlet, PIECE, Tar};
use crate::proto::{self, ChangeKind};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A layer cannot say it: the name would mean another thing.
fn is_unspeakable(path: &[u8]) -> bool {
    path.split(|&byte| byte == b'/').any(|part| part.starts_with(WHITEOUT))
}

/// `upper` is absent where nothing can be changed. Blocking.
pub fn write_layer<O: Outlet>(
    upper: Option<BorrowedFd<'_>>,
    image: Option<BorrowedFd<'_>>,
    outlet: &mut O,
) -> Result<()> {
    let mut tar = Tar::new(outlet);
    if let Some(upper) = upper {
        Changes::new(upper, image, false).tell(&mut |change| match change {
            Change::Looked => tar.wanted(),
            Change::Set { path, .. } | Change::Emptied { path } | Change::Gone { path, .. } if is_unspeakable(path) => {
                Ok(())
            }
            Change::Set { path, node, .. } => tar.add(node, path),
            Change::Emptied { path } => put_mark(&mut tar, &[path, b"/", OPAQUE].concat()),
            Change::Gone { told: true, .. } => Ok(()),
            Change::Gone { path, .. } => {
                let name = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
                put_mark(&mut tar, &[&path[..name], WHITEOUT, &path[name..]].concat())
            }
        })?;
    }
    tar.finish()
}

fn put_mark<O: Outlet>(tar: &mut Tar<'_, O>, path: &[u8]) -> Result<()> {
    tar.wanted()?;
    tar.put(&Entry { path, kind: b'0', mode: 0o600, ..Entry::default() }.render())
}

/// Hands out lists of at most 256 KiB of paths. Blocking.
pub fn list_changes<O: Outlet<Vec<proto::Change>>>(
    upper: Option<BorrowedFd<'_>>,
    image: Option<BorrowedFd<'_>>,
    outlet: &mut O,
) -> Result<()> {
    let (mut list, mut size) = (Vec::new(), 0);
    let Some(upper) = upper else { return Ok(()) };
    Changes::new(upper, image, true).tell(&mut |change| {
        let (kind, path) = match change {
            Change::Looked => return outlet.wanted(),
            Change::Emptied { .. } => return Ok(()),
            Change::Gone { path, .. } => (ChangeKind::Deleted, path),
            Change::Set { path, is_new: true, .. } => (ChangeKind::Added, path),
            Change::Set { path, .. } => (ChangeKind::Modified, path),
        };
        // Some bytes for the message around it.
        let cost = path.len() + 16;
        if size + cost > PIECE {
            size = 0;
            outlet.piece(std::mem::take(&mut list))?;
        }
        size += cost;
        list.push(proto::Change { kind: kind.into(), path: [b"/", path].concat() });
        Ok(())
    })?;
    if list.is_empty() { Ok(()) } else { outlet.piece(list) }
}
