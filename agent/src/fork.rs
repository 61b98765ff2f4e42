// SPDX-License-Identifier: Apache-2.0
//! Forkpoints, both sides of them. The agent publishes a release; `/run/hyper/forkpoint`, which is this binary under
//! another name, waits for the next one and goes on with what it says.
//!
//!     /run/hyper/forkpoint    the program     (read-only in every container)
//!     /run/hyper/release      GENERATION \0 INDEX \0 COUNT \0 KEY=VALUE \0 ...    replaced as a whole
//!
//! A release counts if its generation is later than the one that was there when forkpoint began. That is read first of all,
//! and the directory is watched before the release is looked at again: whenever the guest is frozen from that first read on,
//! none is missed. A guest frozen between execve and that read, some milliseconds, has its forkpoint wait for the next one.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::inotify;

use crate::error::{Context, Result};
use crate::proto::ForkIdentity;

pub const PROGRAM: &str = "forkpoint";
/// Where containers find it.
pub const DIRECTORY: &str = "/run/hyper";
const HELP: &str = "--help";
const USAGE: &[u8] =
    b"usage: forkpoint [PROGRAM ARGUMENT...]    (sleeps until the next fork, then tells it or becomes PROGRAM)\n";
const RELEASE: &str = "release";
const STAGED: &str = "release.new";

/// The agent's side.
pub struct Releases {
    directory: PathBuf,
    generation: Mutex<u64>,
}

impl Releases {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, generation: Mutex::default() }
    }

    /// Lets every forkpoint that waits go on.
    pub fn publish(&self, fork: &ForkIdentity) -> Result<()> {
        let mut generation = self.generation.lock().unwrap_or_else(PoisonError::into_inner);
        let mut content = format!("{}\0{}\0{}\0", *generation + 1, fork.index, fork.count);
        for variable in &fork.env {
            content.push_str(variable);
            content.push('\0');
        }
        let staged = self.directory.join(STAGED);
        std::fs::write(&staged, content).what("write the release")?;
        std::fs::rename(&staged, self.directory.join(RELEASE)).what("publish the release")?;
        *generation += 1;
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Release {
    generation: u64,
    /// KEY=VALUE
    variables: Vec<Vec<u8>>,
}

impl Release {
    fn parse(content: &[u8]) -> Option<Self> {
        let mut fields = content.strip_suffix(b"\0")?.split(|&byte| byte == 0);
        let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse::<u64>().ok();
        let (generation, index, count) = (number()?, number()?, number()?);
        let mut variables: Vec<Vec<u8>> = fields.map(<[u8]>::to_vec).collect();
        // Last, so that nobody is told another one's place.
        variables.push(format!("HYPER_FORK_INDEX={index}").into_bytes());
        variables.push(format!("HYPER_FORK_COUNT={count}").into_bytes());
        Some(Self { generation, variables })
    }

    fn read(directory: &Path) -> Option<Self> {
        Self::parse(&std::fs::read(directory.join(RELEASE)).ok()?)
    }

    fn pairs(&self) -> impl Iterator<Item = (&OsStr, &[u8])> {
        self.variables.iter().filter_map(|variable| {
            let cut = variable.iter().position(|&byte| byte == b'=')?;
            Some((OsStr::from_bytes(&variable[..cut]), &variable[cut + 1..]))
        })
    }
}

/// A release later than `seen`. Sleeps until there is one.
fn wait_release(directory: &Path, seen: u64) -> std::io::Result<Release> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&watch, directory, inotify::WatchFlags::MOVED_TO)?;
    let mut space = [MaybeUninit::uninit(); 1024];
    loop {
        if let Some(release) = Release::read(directory).filter(|release| release.generation > seen) {
            return Ok(release);
        }
        match inotify::Reader::new(&watch, &mut space).next() {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(cause) => return Err(cause.into()),
        }
    }
}

/// `export KEY='VALUE'` lines for a POSIX shell's eval; what is no name there is left out.
fn render_exports(release: &Release) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in release.pairs() {
        let name = key.as_bytes();
        let sane = name.iter().all(|&c| c == b'_' || c.is_ascii_alphanumeric());
        if !sane || name.first().is_none_or(u8::is_ascii_digit) {
            continue;
        }
        text.extend_from_slice(b"export ");
        text.extend_from_slice(name);
        text.extend_from_slice(b"='");
        for (n, piece) in value.split(|&byte| byte == b'\'').enumerate() {
            if n > 0 {
                text.extend_from_slice(b"'\\''");
            }
            text.extend_from_slice(piece);
        }
        text.extend_from_slice(b"'\n");
    }
    text
}

/// The program. Returns the status to exit with, when it does not become another one.
pub fn main() -> i32 {
    if std::env::args_os().nth(1).is_some_and(|word| word == HELP) {
        return i32::from(std::io::stdout().write_all(USAGE).is_err());
    }
    let directory = Path::new(DIRECTORY);
    let seen = Release::read(directory).map_or(0, |release| release.generation);
    let release = match wait_release(directory, seen) {
        Ok(release) => release,
        Err(cause) => {
            eprintln!("forkpoint: {cause}");
            return 125;
        }
    };
    let mut words = std::env::args_os().skip(1);
    match words.next() {
        Some(program) => become_program(&release, &program, words),
        None => match std::io::stdout().write_all(&render_exports(&release)) {
            Ok(()) => 0,
            Err(cause) => {
                eprintln!("forkpoint: write: {cause}");
                1
            }
        },
    }
}

fn become_program(release: &Release, program: &OsStr, arguments: impl Iterator<Item = OsString>) -> i32 {
    let mut command = std::process::Command::new(program);
    command.args(arguments);
    for (key, value) in release.pairs() {
        command.env(key, OsStr::from_bytes(value));
    }
    let cause = command.exec();
    eprintln!("forkpoint: {}: {cause}", program.to_string_lossy());
    match cause.kind() {
        std::io::ErrorKind::NotFound => 127,
        std::io::ErrorKind::PermissionDenied => 126,
        _ => 125,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::tests::Scratch;

    fn fork(index: u32, env: &[&str]) -> ForkIdentity {
        ForkIdentity { index, count: 3, env: env.iter().map(|&it| it.to_owned()).collect() }
    }

    #[test]
    fn a_release_says_which_clone_this_is_and_no_variable_overrides_it() {
        let scratch = Scratch::new();
        let releases = Releases::new(scratch.0.clone());
        releases.publish(&fork(0, &[])).unwrap();
        releases.publish(&fork(2, &["HYPER_FORK_INDEX=9", "A=b=c"])).unwrap();
        let release = Release::read(&scratch.0).unwrap();
        assert_eq!(release.generation, 2);
        let text = String::from_utf8(render_exports(&release)).unwrap();
        let expected =
            "export HYPER_FORK_INDEX='9'\nexport A='b=c'\nexport HYPER_FORK_INDEX='2'\nexport HYPER_FORK_COUNT='3'\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn values_are_quoted_and_what_is_no_name_is_left_out() {
        let scratch = Scratch::new();
        let awkward = "Q=it's \"$HOME\" `id`\nand more";
        Releases::new(scratch.0.clone()).publish(&fork(0, &[awkward, "a.b=1", "1x=1", "; rm=1"])).unwrap();
        let text = String::from_utf8(render_exports(&Release::read(&scratch.0).unwrap())).unwrap();
        assert!(text.starts_with("export Q='it'\\''s \"$HOME\" `id`\nand more'\nexport HYPER_FORK_INDEX"), "{text}");
        let shell = std::process::Command::new("sh").arg("-c").arg(format!("{text}printf %s \"$Q\"")).output().unwrap();
        assert_eq!(shell.stdout, &awkward.as_bytes()[2..]);
    }

    #[test]
    fn an_earlier_release_is_not_ours_and_the_next_one_is() {
        let scratch = Scratch::new();
        let releases = Releases::new(scratch.0.clone());
        releases.publish(&fork(0, &[])).unwrap();
        let directory = scratch.0.clone();
        let waiting = std::thread::spawn(move || wait_release(&directory, 1).unwrap());
        releases.publish(&fork(1, &[])).unwrap();
        assert_eq!(waiting.join().unwrap().generation, 2);
    }

    #[test]
    fn a_release_between_the_first_look_and_the_watch_is_not_missed() {
        let scratch = Scratch::new();
        Releases::new(scratch.0.clone()).publish(&fork(1, &[])).unwrap();
        assert_eq!(wait_release(&scratch.0, 0).unwrap().generation, 1);
    }

    #[test]
    fn half_a_release_is_none() {
        for torn in [&b""[..], b"1", b"1\0", b"1\x002", b"1\x002\0", b"x\x002\x003\0"] {
            assert_eq!(Release::parse(torn), None, "{torn:?}");
        }
        assert!(Release::parse(b"1\x002\x003\0").is_some());
    }
}
