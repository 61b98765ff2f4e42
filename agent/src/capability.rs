// SPDX-License-Identifier: Apache-2.0
//! Capability names and sets. A set is the kernel's own mask: bit n is capability n.

use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::{Context, Error, Result};
use crate::sys;

/// In the kernel's numbering (linux/capability.h), without CAP_.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What `docker run` gives a container.
const DOCKER_DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set(u64);

impl Set {
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);

    pub fn docker_default() -> Self {
        DOCKER_DEFAULT.iter().fold(Self(0), |set, name| Self(set.0 | bit(name).unwrap_or(0)))
    }

    /// Names with or without CAP_, in any case.
    pub fn parse<S: AsRef<str>>(names: &[S]) -> Result<Self> {
        names.iter().try_fold(Self(0), |set, name| {
            let name = name.as_ref().to_ascii_uppercase();
            let bare = name.strip_prefix("CAP_").unwrap_or(&name);
            bit(bare).map(|bit| Self(set.0 | bit)).ok_or_else(|| Error::invalid(format!("unknown capability {name}")))
        })
    }

    pub fn has(self, name: &str) -> bool {
        bit(name).is_some_and(|bit| self.0 & bit != 0)
    }

    /// Narrows the bounding set; only while CAP_SETPCAP is held.
    pub fn bound(self) -> Result<()> {
        sys::keep_bounding(self.0).what("drop capabilities from the bounding set")
    }

    /// The process's own sets, for root; a user without privileges keeps none (the bounding set stays for setuid programs).
    pub fn apply(self, root: bool) -> Result<()> {
        let own = CapabilitySet::from_bits_retain(if root { self.0 } else { 0 });
        let sets = CapabilitySets { effective: own, permitted: own, inheritable: CapabilitySet::empty() };
        rustix::thread::clear_ambient_capability_set().what("clear ambient capabilities")?;
        rustix::thread::set_capabilities(None, sets).what("set capabilities")
    }
}

fn bit(name: &str) -> Option<u64> {
    NAMES.iter().position(|&known| known == name).map(|number| 1 << number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_dockers() {
        // CapEff of a container of Docker's, from /proc/self/status.
        assert_eq!(Set::docker_default().0, 0x0000_0000_a804_25fb);
    }

    #[test]
    fn all_is_every_capability_of_the_kernel() {
        assert_eq!(Set::ALL.0, 0x0000_01ff_ffff_ffff);
    }

    #[test]
    fn names_are_read_with_and_without_prefix() {
        assert_eq!(Set::parse(&["CAP_CHOWN", "kill"]).unwrap().0, 0b10_0001);
        assert_eq!(Set::parse::<&str>(&[]).unwrap().0, 0);
        assert_eq!(Set::parse(&["CAP_FLY"]).unwrap_err().message, "unknown capability CAP_FLY");
    }
}
