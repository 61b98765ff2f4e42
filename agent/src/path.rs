// SPDX-License-Identifier: Apache-2.0
//! Paths inside an image, which is hostile: every look-up is the kernel's, confined to the root
//! (openat2 RESOLVE_IN_ROOT), so that a symlink leads at most elsewhere in the same image.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};

const PATH_MAX: usize = 4095;
/// On all that the agent makes in a root as a place for a mount: no change of the container's. Not to be seen without
/// CAP_SYS_ADMIN; where it cannot be set nothing is lost but that.
pub const MARK: &str = "trusted.hyper.stub";

fn mark(made: &OwnedFd) {
    if let Err(cause) = rustix::fs::fsetxattr(made, MARK, b"", rustix::fs::XattrFlags::empty()) {
        crate::debug!("mark a place for a mount: {}", std::io::Error::from(cause));
    }
}

pub struct Root {
    directory: OwnedFd,
}

impl Root {
    pub fn new(directory: OwnedFd) -> Self {
        Self { directory }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    pub fn open(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // openat2 is strict: a handle alone takes no further flag.
        let flags = if flags.contains(OFlags::PATH) { flags } else { flags | OFlags::NOCTTY };
        rustix::fs::openat2(&self.directory, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// What is at `path`, symlinks followed within the root; `None` when nothing is.
    pub fn find(&self, path: &str) -> Result<Option<OwnedFd>> {
        match self.open(path, OFlags::PATH) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(cause) => Err(cause).what(format_args!("look up {path}")),
        }
    }

    /// The directory at `path`, created with its parents when absent.
    pub fn directory(&self, path: &str) -> Result<OwnedFd> {
        check(path)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        if let Ok(fd) = self.open(path, flags) {
            return Ok(fd);
        }
        let mut parent = self.open("/", flags).what("open the root")?;
        let mut done = String::new();
        for name in path.split('/').filter(|name| !name.is_empty() && *name != ".") {
            done.push('/');
            done.push_str(name);
            parent = match self.open(&done, flags) {
                Err(Errno::NOENT) => {
                    // EEXIST would be a symlink into nowhere: no place to put a mount.
                    rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))
                        .asked(format_args!("create directory {done}"))?;
                    if let Ok(made) = self.open(&done, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW) {
                        mark(&made);
                    }
                    self.open(&done, flags).asked(format_args!("open directory {done}"))?
                }
                opened => opened.asked(format_args!("open directory {done}"))?,
            };
        }
        Ok(parent)
    }

    /// The file at `path` as a place for a mount, created empty with its parents when absent.
    pub fn file(&self, path: &str) -> Result<OwnedFd> {
        check(path)?;
        if let Ok(fd) = self.open(path, OFlags::PATH) {
            return Ok(fd);
        }
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if name.is_empty() || name == "." || name == ".." {
            return Err(Error::invalid(format!("{path:?} does not name a file")));
        }
        let parent = self.directory(parent)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644))
            .asked(format_args!("create file {path}"))?;
        mark(&made);
        self.open(path, OFlags::PATH).asked(format_args!("open {path}"))
    }

    /// The beginning of a file, at most `limit` bytes; empty when there is none or it is no regular file.
    pub fn read(&self, path: &str, limit: usize) -> Result<Vec<u8>> {
        use std::io::Read;
        // Not blocking: the image may have put a fifo there.
        let file = match self.open(path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(fd) => std::fs::File::from(fd),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::ACCESS) => return Ok(Vec::new()),
            Err(cause) => return Err(cause).what(format_args!("open {path}")),
        };
        let mut content = Vec::new();
        if file.metadata().what(format_args!("stat {path}"))?.is_file() {
            file.take(limit as u64).read_to_end(&mut content).what(format_args!("read {path}"))?;
        }
        Ok(content)
    }
}

fn check(path: &str) -> Result<()> {
    if path.len() > PATH_MAX || path.contains('\0') {
        return Err(Error::invalid(format!("bad path of {} bytes", path.len())));
    }
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};

    /// A directory that goes away with the test.
    pub struct Scratch(pub PathBuf);
    impl Scratch {
        pub fn new() -> Self {
            static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
            let n = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("hyper-agent-{}-{n}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path.canonicalize().unwrap())
        }
    }
    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn image() -> (Scratch, Root, PathBuf) {
        let scratch = Scratch::new();
        let root = scratch.0.join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::create_dir(scratch.0.join("outside")).unwrap();
        std::fs::write(scratch.0.join("outside/secret"), "secret").unwrap();
        let handle = Root::new(std::fs::File::open(&root).unwrap().into());
        (scratch, handle, root)
    }

    fn place(fd: &OwnedFd) -> PathBuf {
        use std::os::fd::AsRawFd;
        std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
    }

    #[test]
    fn symlinks_and_dots_never_lead_out() {
        let (scratch, handle, root) = image();
        symlink("../outside", root.join("up")).unwrap();
        symlink(scratch.0.join("outside"), root.join("absolute")).unwrap();
        symlink("/../../../../../outside", root.join("many")).unwrap();
        for path in ["up/secret", "absolute/secret", "many/secret", "../outside/secret", "/../../outside/secret"] {
            assert!(handle.find(path).unwrap().is_none(), "{path}");
            assert!(handle.read(path, 10).unwrap().is_empty(), "{path}");
        }
        for path in ["up/secret", "absolute/secret", "many/secret", "../outside/secret", "/../../outside/secret"] {
            if let Ok(made) = handle.directory(path) {
                assert!(place(&made).starts_with(&root), "{path}");
            }
            if let Ok(made) = handle.file(&format!("{path}.new")) {
                assert!(place(&made).starts_with(&root), "{path}");
            }
        }
        let outside: Vec<_> = std::fs::read_dir(scratch.0.join("outside")).unwrap().collect();
        assert_eq!(outside.len(), 1);
    }

    #[test]
    fn absolute_symlinks_mean_the_images_own_root() {
        let (_scratch, handle, root) = image();
        symlink("/etc", root.join("config")).unwrap();
        assert_eq!(place(&handle.file("/config/hosts").unwrap()), root.join("etc/hosts"));
        assert_eq!(place(&handle.directory("/config/a/b").unwrap()), root.join("etc/a/b"));
    }

    #[test]
    fn a_dangling_symlink_is_refused_and_stays() {
        let (_scratch, handle, root) = image();
        symlink("/nowhere", root.join("gone")).unwrap();
        assert!(handle.directory("/gone").is_err());
        assert!(handle.file("/gone").is_err());
        assert_eq!(std::fs::read_link(root.join("gone")).unwrap(), Path::new("/nowhere"));
    }

    #[test]
    fn reading_is_bounded_and_only_from_regular_files() {
        let (_scratch, handle, root) = image();
        std::fs::write(root.join("etc/passwd"), vec![b'x'; 5000]).unwrap();
        assert_eq!(handle.read("etc/passwd", 100).unwrap().len(), 100);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            root.join("etc/group"),
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(handle.read("etc/group", 100).unwrap().is_empty());
        assert!(handle.read("etc", 100).unwrap().is_empty());
        assert!(handle.read("etc/absent", 100).unwrap().is_empty());
    }

    #[test]
    fn bad_paths_are_refused() {
        let (_scratch, handle, _root) = image();
        assert!(handle.directory(&"a/".repeat(3000)).is_err());
        assert!(handle.directory("a\0b").is_err());
        assert!(handle.file("/absent/").is_err());
        assert!(handle.file("/absent/..").is_err());
    }
}
