// SPDX-License-Identifier: Apache-2.0
//! What can go wrong, as the host is told. One closed set; the words say what failed and why.

use std::fmt;

use tonic::{Code, Status};

/// The host's next move differs between these, and only between these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Invalid,
    NotFound,
    Exists,
    WrongState,
    Exhausted,
    TimedOut,
    /// It changed under the call: asked again it may succeed.
    Aborted,
    Unsupported,
    Internal,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub kind: Kind,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }
    pub fn wrong_state(message: impl Into<String>) -> Self {
        Self::new(Kind::WrongState, message)
    }
    /// The same, of something named.
    #[must_use]
    pub fn of(self, subject: impl fmt::Display) -> Self {
        Self::new(self.kind, format!("{subject}: {}", self.message))
    }
    /// The same, of a path in a container, unless it is told already.
    #[must_use]
    pub fn at(self, path: &[u8]) -> Self {
        let path = format!("/{}", String::from_utf8_lossy(path));
        if self.message.contains(&path) { self } else { self.of(path) }
    }
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match error.kind {
            Kind::Invalid => Code::InvalidArgument,
            Kind::NotFound => Code::NotFound,
            Kind::Exists => Code::AlreadyExists,
            Kind::WrongState => Code::FailedPrecondition,
            Kind::Exhausted => Code::ResourceExhausted,
            Kind::TimedOut => Code::DeadlineExceeded,
            Kind::Aborted => Code::Aborted,
            Kind::Unsupported => Code::Unimplemented,
            Kind::Internal => Code::Internal,
        };
        Status::new(code, error.message)
    }
}

/// `.what("mount /proc")`: the evidence behind the words.
pub trait Context<T> {
    fn what(self, what: impl fmt::Display) -> Result<T>;
    /// As `what`, of something that the host asked for: where the kernel says that it cannot be, the request is wrong.
    fn asked(self, what: impl fmt::Display) -> Result<T>;
}

impl<T> Context<T> for rustix::io::Result<T> {
    fn what(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(std::io::Error::from).what(what)
    }
    fn asked(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(std::io::Error::from).asked(what)
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn what(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|cause| Error::internal(format!("{what}: {}", describe(&cause))))
    }
    fn asked(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|cause| {
            let kind = if is_refusal(&cause) { Kind::Invalid } else { Kind::Internal };
            Error::new(kind, format!("{what}: {}", describe(&cause)))
        })
    }
}

/// The kernel has understood and will say the same again; it is not out of anything.
fn is_refusal(cause: &std::io::Error) -> bool {
    use libc::{EEXIST, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, ERANGE, EROFS};
    let errno = cause.raw_os_error().unwrap_or_default();
    [EEXIST, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, ERANGE, EROFS].contains(&errno)
}

/// The kernel's words without Rust's "(os error 2)".
pub fn describe(cause: &std::io::Error) -> String {
    let text = cause.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}
