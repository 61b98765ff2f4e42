// SPDX-License-Identifier: Apache-2.0
//! The last steps of a process before it is the user's: directory, limits, seccomp, user, capabilities, execve.
//! Refusals are told in Docker's words, with the status a shell would give.

use std::ffi::CString;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::process::{Gid, Uid};

use crate::capability;
use crate::error::{Context, Error, Result, describe};
use crate::proto::{ProcessSpec, Rlimit};
use crate::sys;
use crate::terminal;
use crate::user::User;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why the program does not run: 127 not found, 126 not executable, 125 anything else.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: i32,
    pub message: String,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { code: 125, message: error.message }
    }
}

pub struct Program {
    pub user: User,
    args: Vec<String>,
    env: Vec<String>,
    directory: String,
    limits: Vec<(u32, u64, u64)>,
    no_new_privileges: bool,
    capabilities: capability::Set,
    confinement: Confinement,
}

/// Bounding set and seccomp filter.
pub enum Confinement {
    /// To be narrowed, and installed unless it has none.
    Bounds(Option<Vec<libc::sock_filter>>),
    /// It was born with both.
    Inherited,
}

impl Program {
    pub fn prepare(
        spec: &ProcessSpec,
        user: User,
        capabilities: capability::Set,
        confinement: Confinement,
    ) -> Result<Self> {
        // An empty word is a command that is not found.
        if spec.args.is_empty() {
            return Err(Error::invalid("no command specified"));
        }
        Ok(Self {
            args: spec.args.clone(),
            env: environment(&spec.env, &user.home),
            directory: if spec.working_directory.is_empty() { "/".to_owned() } else { spec.working_directory.clone() },
            limits: spec.rlimits.iter().map(parse_limit).collect::<Result<_>>()?,
            no_new_privileges: spec.no_new_privileges,
            user,
            capabilities,
            confinement,
        })
    }

    /// Comes back only with the reason why the program does not run.
    pub fn run(&self, terminal: Option<OwnedFd>) -> Refusal {
        match self.become_user(terminal) {
            Ok(refusal) => refusal,
            Err(error) => error.into(),
        }
    }

    fn become_user(&self, terminal: Option<OwnedFd>) -> Result<Refusal> {
        // Already a session leader is fine.
        let _ = rustix::process::setsid();
        if let Some(slave) = terminal {
            terminal::take(&slave).what("take the terminal")?;
        }
        give_pipes(Uid::from_raw(self.user.uid));
        if let Err(refusal) = self.enter_directory() {
            return Ok(refusal);
        }
        for &(resource, soft, hard) in &self.limits {
            sys::set_rlimit(resource, soft, hard).what(format_args!("set rlimit {resource}"))?;
        }
        let program = self.to_strings(&self.args)?;
        let env = self.to_strings(&self.env)?;

        if self.no_new_privileges {
            rustix::thread::set_no_new_privs(true).what("set no_new_privs")?;
        }
        // While CAP_SYS_ADMIN is still there: without no_new_privs the kernel asks for it.
        if let Confinement::Bounds(filter) = &self.confinement {
            if let Some(filter) = filter {
                sys::install_seccomp(filter).what("install the seccomp filter")?;
            }
            self.capabilities.bound()?;
        }
        let groups: Vec<Gid> = self.user.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
        let (uid, gid) = (Uid::from_raw(self.user.uid), Gid::from_raw(self.user.gid));
        rustix::thread::set_thread_groups(&groups).what("set supplementary groups")?;
        rustix::thread::set_thread_res_gid(gid, gid, gid).what("set the group")?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).what("set the user")?;
        self.capabilities.apply(self.user.uid == 0)?;

        let path = match find_program(&self.args[0], &self.env) {
            Ok(path) => path,
            Err(refusal) => return Ok(refusal),
        };
        let file = CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::invalid("a NUL in the command"))?;
        let cause = sys::execve(&file, &program, &env);
        Ok(refuse(&format!("exec {}", path.display()), &cause))
    }

    /// A container's own directory was made with its root; one that is asked for later has to be there.
    fn enter_directory(&self) -> std::result::Result<(), Refusal> {
        if !self.directory.starts_with('/') {
            let message = format!("working directory {:?} is not absolute", self.directory);
            return Err(Error::invalid(message).into());
        }
        std::env::set_current_dir(&self.directory)
            .map_err(|cause| refuse(&format!("chdir to cwd ({:?})", self.directory), &cause))
    }

    fn to_strings(&self, list: &[String]) -> Result<Vec<CString>> {
        list.iter()
            .map(|text| {
                CString::new(text.as_str()).map_err(|_| Error::invalid("a NUL in the command or its environment"))
            })
            .collect()
    }
}

/// The user's own pipes, so that /dev/stdout can be opened again. Devices and files stay whose they are.
fn give_pipes(uid: Uid) {
    for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let is_anothers = |stat: rustix::fs::Stat| {
            rustix::fs::FileType::from_raw_mode(stat.st_mode).is_fifo() && stat.st_uid != uid.as_raw()
        };
        if rustix::fs::fstat(stream).is_ok_and(is_anothers) {
            let _ = rustix::fs::fchown(stream, Some(uid), None);
        }
    }
}

/// As given, with PATH and HOME when they are absent.
fn environment(given: &[String], home: &str) -> Vec<String> {
    let mut env = given.to_vec();
    for (name, default) in [("PATH", DEFAULT_PATH), ("HOME", home)] {
        if value_of(&env, name).is_none() {
            env.push(format!("{name}={default}"));
        }
    }
    env
}

fn value_of<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    env.iter().rev().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

fn find_program(name: &str, env: &[String]) -> std::result::Result<PathBuf, Refusal> {
    if name.contains('/') {
        let path = PathBuf::from(name);
        return match std::fs::metadata(&path) {
            Ok(data) if data.is_dir() => Err(Refusal { code: 126, message: format!("exec: {name:?}: is a directory") }),
            Ok(_) if !may_execute(&path) => {
                Err(Refusal { code: 126, message: format!("exec: {name:?}: permission denied") })
            }
            Ok(_) => Ok(path),
            Err(cause) if cause.kind() == ErrorKind::PermissionDenied => {
                Err(Refusal { code: 126, message: format!("exec: {name:?}: permission denied") })
            }
            Err(cause) => {
                Err(Refusal { code: 127, message: format!("exec: {name:?}: stat {name}: {}", describe(&cause)) })
            }
        };
    }
    let directories = value_of(env, "PATH").unwrap_or(DEFAULT_PATH);
    let candidates = directories
        .split(':')
        .map(|directory| Path::new(if directory.is_empty() { "." } else { directory }).join(name));
    let found = candidates.into_iter().find(|path| path.is_file() && may_execute(path));
    found.ok_or_else(|| Refusal { code: 127, message: format!("exec: {name:?}: executable file not found in $PATH") })
}

fn may_execute(path: &Path) -> bool {
    rustix::fs::accessat(rustix::fs::CWD, path, rustix::fs::Access::EXEC_OK, rustix::fs::AtFlags::EACCESS).is_ok()
}

fn refuse(what: &str, cause: &std::io::Error) -> Refusal {
    let code = match cause.raw_os_error() {
        Some(libc::ENOENT) => 127,
        Some(libc::EACCES | libc::ENOEXEC | libc::EISDIR | libc::ENOTDIR | libc::EPERM | libc::ETXTBSY) => 126,
        _ => 125,
    };
    Refusal { code, message: format!("{what}: {}", describe(cause)) }
}

fn parse_limit(limit: &Rlimit) -> Result<(u32, u64, u64)> {
    const NAMES: [&str; 16] = [
        "CPU",
        "FSIZE",
        "DATA",
        "STACK",
        "CORE",
        "RSS",
        "NPROC",
        "NOFILE",
        "MEMLOCK",
        "AS",
        "LOCKS",
        "SIGPENDING",
        "MSGQUEUE",
        "NICE",
        "RTPRIO",
        "RTTIME",
    ];
    let name = limit.name.to_ascii_uppercase();
    let bare = name.strip_prefix("RLIMIT_").unwrap_or(&name);
    let resource = NAMES.iter().position(|&known| known == bare);
    let resource = resource.ok_or_else(|| Error::invalid(format!("unknown rlimit {:?}", limit.name)))?;
    if limit.soft > limit.hard {
        return Err(Error::invalid(format!("rlimit {}: soft {} exceeds hard {}", limit.name, limit.soft, limit.hard)));
    }
    Ok((resource as u32, limit.soft, limit.hard))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::tests::Scratch;
    use std::os::unix::fs::PermissionsExt;

    fn env(path: &Path) -> Vec<String> {
        vec![format!("PATH=/nonexistent:{}", path.display())]
    }

    #[test]
    fn programs_are_found_in_the_containers_path() {
        let scratch = Scratch::new();
        let tool = scratch.0.join("tool");
        std::fs::write(&tool, "#!/bin/sh\n").unwrap();
        let refusal = find_program("tool", &env(&scratch.0)).unwrap_err();
        assert_eq!(
            refusal,
            Refusal { code: 127, message: "exec: \"tool\": executable file not found in $PATH".into() }
        );
        let named = tool.to_str().unwrap();
        assert_eq!(
            find_program(named, &[]).unwrap_err(),
            Refusal { code: 126, message: format!("exec: {named:?}: permission denied") }
        );
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_program("tool", &env(&scratch.0)).unwrap(), tool);
        let directory = scratch.0.to_str().unwrap();
        assert_eq!(find_program(directory, &[]).unwrap_err().code, 126);
        assert_eq!(
            find_program("/none/such", &[]).unwrap_err(),
            Refusal { code: 127, message: "exec: \"/none/such\": stat /none/such: no such file or directory".into() }
        );
    }

    #[test]
    fn home_and_path_are_added_but_never_replaced() {
        let given = ["A=1".to_owned(), "HOME=/x".to_owned()];
        assert_eq!(environment(&given, "/root"), ["A=1", "HOME=/x", &format!("PATH={DEFAULT_PATH}")]);
        assert_eq!(environment(&[], "/root")[1], "HOME=/root");
    }

    #[test]
    fn limits_are_known_by_name() {
        let limit = |name: &str, soft, hard| parse_limit(&Rlimit { name: name.into(), soft, hard });
        assert_eq!(limit("RLIMIT_NOFILE", 10, 20).unwrap(), (7, 10, 20));
        assert_eq!(limit("core", 0, u64::MAX).unwrap(), (4, 0, u64::MAX));
        assert!(limit("RLIMIT_FUN", 1, 1).is_err());
        assert!(limit("RLIMIT_NOFILE", 2, 1).is_err());
    }

    #[test]
    fn refusals_carry_a_shells_status() {
        let of = |errno| refuse("exec /x", &std::io::Error::from_raw_os_error(errno)).code;
        assert_eq!([libc::ENOENT, libc::EACCES, libc::ENOEXEC, libc::ENOMEM].map(of), [127, 126, 126, 125]);
        assert_eq!(
            refuse("exec /x", &std::io::Error::from_raw_os_error(libc::ENOEXEC)).message,
            "exec /x: exec format error"
        );
    }
}
