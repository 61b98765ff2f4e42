// SPDX-License-Identifier: Apache-2.0
//! container-init: the agent's own binary, run again as the first thing in a container. One thread; it was born
//! in its namespaces and its cgroup. It builds the root, becomes the user, and turns into the user's program.
//!
//!     config --> build root, pivot, find user --> ready --start--> limits, seccomp, user --> execve
//!                                                                  (or: fork that, and stay as init)
//! The socket it reports on closes at execve: end of file means that the program runs.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use prost::Message;
use rustix::fs::{Mode, OFlags};

use crate::capability;
use crate::error::{Context, Error, Kind, Result};
use crate::exec;
use crate::mount::{Kernel, Linux};
use crate::nursery::{self, Inheritance};
use crate::path::Root;
use crate::proto::{CreateContainerRequest, ProcessSpec};
use crate::rootfs::{Ahead, Builder};
use crate::spare;
use crate::terminal;
use crate::user;
use crate::{seccomp, sys};

pub const ARGUMENT: &str = "container-init";
/// Descriptors other than the socket come over the socket.
pub const SPARE_ARGUMENT: &str = "container-init-spare";
/// Descriptors that the agent passes.
pub const SOCKET: i32 = 3;
pub const ROOT: i32 = 4;
pub const TARGET: i32 = 5;

/// The byte that a terminal's master travels with.
pub const TERMINAL: &[u8] = b"t";

/// Those of a container that is there; who joins it was born in its pid namespace.
const OLD_NAMESPACES: i32 = libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWCGROUP;
const MAX_MESSAGE: usize = 8 * 1024 * 1024;

/// What the agent asks for.
#[derive(Clone, PartialEq, Message)]
pub struct Config {
    /// Set for a container's first process.
    #[prost(message, optional, tag = "1")]
    pub create: Option<CreateContainerRequest>,
    #[prost(message, optional, tag = "2")]
    pub process: Option<ProcessSpec>,
    #[prost(string, tag = "3")]
    pub files: String,
    /// An empty directory on which the root is attached before the pivot.
    #[prost(string, tag = "4")]
    pub stage: String,
    #[prost(bool, tag = "5")]
    pub privileged: bool,
    #[prost(bool, tag = "6")]
    pub init: bool,
    /// Go on after `ready` without waiting.
    #[prost(bool, tag = "7")]
    pub start: bool,
    /// The directory that every container finds as /run/hyper.
    #[prost(string, tag = "8")]
    pub share: String,
}

/// What comes back: ready, or why not.
#[derive(Clone, PartialEq, Message)]
pub struct Report {
    #[prost(bool, tag = "1")]
    pub ready: bool,
    #[prost(int32, tag = "2")]
    pub code: i32,
    #[prost(string, tag = "3")]
    pub message: String,
    #[prost(bool, tag = "4")]
    pub invalid: bool,
}

impl Report {
    /// Whether it is ready.
    pub fn check(self) -> Result<()> {
        match (self.ready, self.invalid) {
            (true, _) => Ok(()),
            (false, true) => Err(Error::invalid(self.message)),
            (false, false) => Err(Error::internal(self.message)),
        }
    }
}

pub fn frame(message: &impl Message) -> Vec<u8> {
    let mut frame = Vec::with_capacity(4 + message.encoded_len());
    frame.extend_from_slice(&(message.encoded_len() as u32).to_le_bytes());
    frame.extend_from_slice(&message.encode_to_vec());
    frame
}

pub fn write_message(mut socket: &UnixStream, message: &impl Message) -> std::io::Result<()> {
    socket.write_all(&frame(message))
}

/// `begun` is the message's first byte, where that was read already.
pub fn read_message<M: Message + Default>(mut socket: &UnixStream, begun: Option<u8>) -> std::io::Result<M> {
    let mut length = [begun.unwrap_or(0), 0, 0, 0];
    socket.read_exact(&mut length[usize::from(begun.is_some())..])?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_MESSAGE {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body)?;
    M::decode(&body[..]).map_err(|_| std::io::ErrorKind::InvalidData.into())
}

/// Whether it has the capabilities and the filter that nearly all have.
pub fn is_usual(spec: &ProcessSpec, privileged: bool) -> bool {
    let usual = capability::Set::docker_default();
    let given = spec.capabilities.as_ref().map(|given| capability::Set::parse(&given.names));
    !privileged
        && spec.seccomp() != crate::proto::SeccompMode::Unconfined
        && given.is_none_or(|given| given.is_ok_and(|given| given == usual))
}

/// Never returns but with the status to exit with.
pub fn main(is_spare: bool) -> i32 {
    seclude();
    let Ok(socket) = sys::inherited(SOCKET).map(UnixStream::from) else { return 125 };
    carry_out(socket, |socket| run(socket, is_spare))
}

/// What the nursery bore.
pub fn be_born(report: UnixStream, target: &OwnedFd, inheritance: Option<Inheritance>) -> i32 {
    carry_out(report, |report| {
        let Some(socket) = report.as_ref() else { return Ok(125) };
        let own = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty());
        let own = own.what("open its own handle")?;
        let config: Config = read_message(socket, None).what("read the configuration")?;
        nursery::setns(target, OLD_NAMESPACES, inheritance.as_ref()).what("enter the container's namespaces")?;
        // From here on it knows no more than any other process.
        let filter = inheritance.map_or(Filter::ToMake, |it| Filter::Installed(it.capabilities));
        become_process(report, &config, filter, Some(own))
    })
}

/// What is so for all that runs before a container's processes.
pub fn seclude() {
    // Nothing of the container may look into us, nor find the agent's binary through /proc/PID/exe.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    // A container is killed before the agent is.
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    sys::reset_signals();
    rustix::process::umask(Mode::from_raw_mode(0o022));
}

fn carry_out(
    socket: UnixStream,
    work: impl FnOnce(&mut Option<UnixStream>) -> std::result::Result<i32, Failure>,
) -> i32 {
    let mut socket = Some(socket);
    let (code, message, invalid) = match work(&mut socket) {
        Ok(code) => return code,
        Err(Failure::Start(error)) => (error.code, error.message, false),
        Err(Failure::Setup(error)) => (125, error.message, error.kind == Kind::Invalid),
    };
    if let Some(socket) = socket {
        let _ = write_message(&socket, &Report { ready: false, code, message, invalid });
    }
    code
}

enum Failure {
    Setup(Error),
    Start(exec::Refusal),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Setup(error)
    }
}

impl From<exec::Refusal> for Failure {
    fn from(error: exec::Refusal) -> Self {
        Self::Start(error)
    }
}

fn run(report: &mut Option<UnixStream>, is_spare: bool) -> std::result::Result<i32, Failure> {
    let Some(socket) = report.as_ref() else { return Ok(125) };
    let usual = is_spare.then(|| seccomp::program(capability::Set::docker_default()));
    let ahead = if is_spare { Some(prepare()?) } else { None };
    let spare_root = if is_spare { Some(spare::receive(socket)?) } else { None };
    let config: Config = read_message(socket, None).what("read the configuration")?;

    match &config.create {
        Some(request) => {
            let root = spare_root.map_or_else(|| sys::inherited(ROOT).what("take the root"), Ok)?;
            let ahead = ahead.map_or_else(enter_namespaces, Ok)?;
            enter_new(&config, request, &root, &ahead)?;
        }
        None => {
            let target = sys::inherited(TARGET).what("take the container's handle")?;
            sys::setns(target.as_fd(), OLD_NAMESPACES).what("enter the container's namespaces")?;
        }
    }
    become_process(report, &config, usual.map_or(Filter::ToMake, Filter::Usual), None)
}

/// What there is of the seccomp filter.
enum Filter {
    ToMake,
    /// That which nearly all have is made already.
    Usual(Vec<libc::sock_filter>),
    /// It was born with that of these capabilities, and with their bounding set.
    Installed(capability::Set),
}

/// `own`: its pidfd, which the agent is told with the report that it is ready.
fn become_process(
    report: &mut Option<UnixStream>,
    config: &Config,
    usual: Filter,
    own: Option<OwnedFd>,
) -> std::result::Result<i32, Failure> {
    let Some(socket) = report.as_ref() else { return Ok(125) };
    let process = config.process.clone().unwrap_or_default();
    let root = Root::new(
        rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .what("open the root")?,
    );
    let passwd = root.read("/etc/passwd", user::DATABASE_LIMIT)?;
    let group = root.read("/etc/group", user::DATABASE_LIMIT)?;
    let user = user::resolve(&process.user, &process.additional_groups, &passwd, &group)?;
    let capabilities = match &process.capabilities {
        _ if config.privileged => capability::Set::ALL,
        Some(given) => capability::Set::parse(&given.names)?,
        None => capability::Set::docker_default(),
    };
    let unconfined = config.privileged || process.seccomp() == crate::proto::SeccompMode::Unconfined;
    let confinement = match usual {
        Filter::Installed(had) if unconfined || had != capabilities => {
            return Err(Error::internal("born with another confinement than its own").into());
        }
        Filter::Installed(_) => exec::Confinement::Inherited,
        _ if unconfined => exec::Confinement::Bounds(None),
        Filter::Usual(usual) if capabilities == capability::Set::docker_default() => {
            exec::Confinement::Bounds(Some(usual))
        }
        _ => exec::Confinement::Bounds(Some(seccomp::program(capabilities))),
    };
    let program = exec::Program::prepare(&process, user, capabilities, confinement)?;

    let ready = Report { ready: true, ..Report::default() };
    let slave = if process.terminal {
        let (master, slave) = terminal::open(process.terminal_size.as_ref(), &program.user)?;
        if config.create.is_some() {
            bind_console(&root, &slave)?;
        }
        terminal::send(socket, TERMINAL, &master).what("send the terminal")?;
        Some(slave)
    } else {
        None
    };
    match own {
        Some(own) => terminal::send(socket, &frame(&ready), &own).what("report")?,
        None => write_message(socket, &ready).what("report")?,
    }
    if !config.start {
        let mut go = [0];
        let mut reader = socket;
        if reader.read_exact(&mut go).is_err() {
            return Ok(125);
        }
    }
    if config.init {
        return stay_as_init(report, &program, slave);
    }
    Err(program.run(slave).into())
}

/// Its cgroup is the root of what it sees of cgroups: it is in that one from here on.
fn enter_namespaces() -> Result<Ahead> {
    sys::unshare(libc::CLONE_NEWCGROUP).what("unshare the cgroup namespace")?;
    // Nothing that is mounted here may show up in the guest's own namespace.
    rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC,
    )
    .what("make mounts private")?;
    Ok(Ahead::default())
}

/// What a spare can do before it knows its container.
fn prepare() -> Result<Ahead> {
    enter_namespaces()?;
    Ahead::make(&Linux)
}

fn enter_new(config: &Config, request: &CreateContainerRequest, mount: &OwnedFd, ahead: &Ahead) -> Result<()> {
    rustix::system::sethostname(request.hostname.as_bytes()).what("set the host name")?;
    let stage = rustix::fs::open(config.stage.as_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .what("open the stage")?;
    Linux.attach(mount.as_fd(), stage.as_fd())?;
    let directory: OwnedFd =
        rustix::fs::open(config.stage.as_str(), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .what("open the root")?;
    let root = Root::new(directory);
    let (files, share) = (Path::new(&config.files), Path::new(&config.share));
    Builder { kernel: &Linux, root: &root, request, files, share, ahead }.build()?;

    // The old root ends up beneath the new one, where it is let go.
    rustix::process::fchdir(root.fd()).what("enter the root")?;
    rustix::process::pivot_root(".", ".").what("pivot_root")?;
    rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH).what("let the old root go")?;
    rustix::process::chdir("/").what("chdir /")
}

fn bind_console(root: &Root, slave: &OwnedFd) -> Result<()> {
    use std::os::fd::AsRawFd;
    let path = std::fs::read_link(format!("/proc/self/fd/{}", slave.as_raw_fd())).what("name the terminal")?;
    let source = root.open(&path.to_string_lossy(), OFlags::PATH).what("open the terminal")?;
    let place = root.file("/dev/console")?;
    let copy = Linux.copy(source.as_fd(), false)?;
    Linux.attach(copy.as_fd(), place.as_fd())
}

/// PID 1 of the container: reaps what it inherits, hands signals on, ends with its child's status.
fn stay_as_init(
    socket: &mut Option<UnixStream>,
    program: &exec::Program,
    slave: Option<OwnedFd>,
) -> std::result::Result<i32, Failure> {
    sys::block_signals();
    let Some(child) = sys::fork().what("fork")? else {
        sys::reset_signals();
        return Err(program.run(slave).into());
    };
    drop(slave);
    let _ = rustix::thread::set_name(c"hyper-init");
    // All it needs from here on is to signal the user's processes.
    capability::Set::parse(&["KILL"])?.apply(true)?;
    // Our copies would keep the pipes and the report open.
    *socket = None;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).what("open /dev/null")?;
    let quiet =
        [rustix::stdio::dup2_stdin(&null), rustix::stdio::dup2_stdout(&null), rustix::stdio::dup2_stderr(&null)];
    quiet.into_iter().collect::<rustix::io::Result<()>>().what("leave the streams")?;
    loop {
        match sys::wait_signal() {
            libc::SIGCHLD => {
                while let Some((pid, status)) = sys::reap() {
                    if pid == child {
                        return Ok(sys::decode_status(status).0);
                    }
                }
            }
            signal if signal > 0 => {
                let _ = sys::kill(child as i32, signal);
            }
            _ => {}
        }
    }
}
