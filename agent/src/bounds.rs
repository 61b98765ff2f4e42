// SPDX-License-Identifier: Apache-2.0
//! What a request may ask for at all, whoever sent it.

use crate::error::{Error, Result};
use crate::guest;
use crate::proto::CreateContainerRequest;

const MAX_ID: usize = 128;
const MAX_MOUNTS: usize = 512;
const MAX_PATHS: usize = 1024;

pub fn check_id(what: &str, id: &str) -> Result<()> {
    let sane = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if id.is_empty() || id.len() > MAX_ID || !id.chars().all(sane) || id.starts_with('.') {
        return Err(Error::invalid(format!("bad {what} id {id:?}")));
    }
    Ok(())
}

pub fn check_create(request: &CreateContainerRequest) -> Result<()> {
    check_id("container", &request.container_id)?;
    let isolation = request.isolation.clone().unwrap_or_default();
    if request.process.is_none() {
        return Err(Error::invalid("no process given"));
    }
    guest::check_hostname(&request.hostname)?;
    if request.mounts.len() > MAX_MOUNTS
        || isolation.masked_paths.len() > MAX_PATHS
        || isolation.readonly_paths.len() > MAX_PATHS
    {
        return Err(Error::invalid("too many mounts or paths"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::proto::{Isolation, Mount, ProcessSpec};

    #[test]
    fn ids_are_names_and_never_paths() {
        assert!(check_id("container", "web-1_2.3").is_ok());
        for bad in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(129), "a\0"] {
            assert!(check_id("container", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn requests_are_bounded() {
        let good = CreateContainerRequest {
            container_id: "a".into(),
            process: Some(ProcessSpec::default()),
            ..Default::default()
        };
        assert!(check_create(&good).is_ok());
        let bad = [
            CreateContainerRequest { process: None, ..good.clone() },
            CreateContainerRequest { container_id: "../x".into(), ..good.clone() },
            CreateContainerRequest { hostname: "a\nb".into(), ..good.clone() },
            CreateContainerRequest { mounts: vec![Mount::default(); MAX_MOUNTS + 1], ..good.clone() },
            CreateContainerRequest {
                isolation: Some(Isolation { masked_paths: vec![String::new(); MAX_PATHS + 1], ..Default::default() }),
                ..good
            },
        ];
        for request in bad {
            assert_eq!(check_create(&request).unwrap_err().kind, Kind::Invalid);
        }
    }
}
