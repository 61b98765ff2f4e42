// SPDX-License-Identifier: Apache-2.0
//! hyper-agent: PID 1 of every guest. Boots, finds its two ports, and does what hyperd asks.
//!
//!     (as PID 1)                              a guest
//!     --serve-unix CONTROL_SOCK STREAM_SOCK   the same services on a host, for tests
//!     container-init                          run by itself, first thing in a container
//!     (called forkpoint)                      waits in a container for the next fork
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod archive;
mod birth;
mod blocking;
mod boot;
mod bounds;
mod capability;
mod cgroup;
mod changes;
mod container;
mod devices;
mod disk;
mod error;
mod exec;
mod files;
mod fork;
mod freeze;
mod growth;
mod guest;
mod init;
mod kept;
mod layer;
mod link;
mod log;
mod making;
mod mount;
mod names;
mod net;
mod node;
mod nursery;
mod nursing;
mod opened;
mod overlay;
mod path;
mod pax;
mod plugged;
mod power;
mod process;
mod reaper;
mod rootfs;
mod rpc;
mod rtnetlink;
mod run;
mod seccomp;
mod serve;
mod service;
mod sources;
mod spare;
mod stats;
mod stdio;
mod still;
mod streams;
mod sys;
mod terminal;
mod transport;
mod tree_read;
mod tree_write;
mod untar;
mod upkeep;
mod user;
mod virtio;
mod volume;
mod walk;
mod workshop;

/// Generated from proto/hyper/agent/v1/agent.proto.
#[allow(clippy::all, clippy::pedantic, clippy::unwrap_used, clippy::expect_used)]
pub mod proto {
    tonic::include_proto!("hyper.agent.v1");
}

fn main() {
    // In a container this may be PID 1 too.
    if std::env::args_os().next().is_some_and(|own| std::path::Path::new(&own).ends_with(fork::PROGRAM)) {
        std::process::exit(fork::main());
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if words == [init::ARGUMENT] || words == [init::SPARE_ARGUMENT] {
        std::process::exit(init::main(words == [init::SPARE_ARGUMENT]));
    }
    if words == [nursery::ARGUMENT] || words == [nursery::PLAIN_ARGUMENT] {
        std::process::exit(nursery::main(words == [nursery::PLAIN_ARGUMENT]));
    }
    sys::use_one_heap();
    let served = match words[..] {
        // The kernel may hand words of its command line to PID 1.
        _ if std::process::id() == 1 => serve::in_guest(),
        ["--serve-unix", control, stream] => serve::on_host(control.as_ref(), stream.as_ref()),
        _ => {
            eprintln!("usage: hyper-agent --serve-unix CONTROL_SOCKET STREAM_SOCKET (or as PID 1 of a guest)");
            std::process::exit(2);
        }
    };
    // For PID 1 this is a kernel panic, which ends the VM: the host sees it, and the console says why.
    if let Err(error) = served {
        log::write(2, &error.message);
        std::process::exit(1);
    }
}
