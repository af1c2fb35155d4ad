//! Exit codes, and the one place where an error is printed.

use std::fmt;
use std::process::ExitCode;

/// Why a program ends without success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It was tried and did not work.
    Failed,
    /// The command line does not fit.
    Usage,
    /// An input file is wrong.
    InvalidInput,
    /// A tool, a right or a resource of the machine is missing.
    Environment,
    /// A signature, a rollback, an expired or used permission.
    Refused,
}

impl Kind {
    /// Returns the process's exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::InvalidInput => 3,
            Self::Environment => 4,
            Self::Refused => 5,
        }
    }
}

/// An error with its kind, on its way out of the program.
#[derive(Debug)]
pub struct Failure {
    kind: Kind,
    error: anyhow::Error,
}

impl Failure {
    /// An error of the given kind.
    pub fn new(kind: Kind, error: impl Into<anyhow::Error>) -> Self {
        Self {
            kind,
            error: error.into(),
        }
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The error itself.
    pub fn error(&self) -> &anyhow::Error {
        &self.error
    }

    /// Says what was going on.
    #[must_use]
    pub fn context(self, context: impl fmt::Display + Send + Sync + 'static) -> Self {
        Self {
            kind: self.kind,
            error: self.error.context(context),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

impl From<anyhow::Error> for Failure {
    /// A kind that was given deeper down is kept.
    fn from(error: anyhow::Error) -> Self {
        let kind = error
            .chain()
            .find_map(|cause| cause.downcast_ref::<Marked>())
            .map_or(Kind::Failed, |marked| marked.0);
        Self { kind, error }
    }
}

/// A link of an error chain that carries the kind through `anyhow`.
#[derive(Debug)]
struct Marked(Kind, String);

impl fmt::Display for Marked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.1)
    }
}

impl std::error::Error for Marked {}

/// Makes an error whose kind survives `?` through functions that return `anyhow::Result`.
pub fn marked(kind: Kind, message: impl fmt::Display) -> anyhow::Error {
    anyhow::Error::new(Marked(kind, message.to_string()))
}

/// Gives a result's error its kind.
pub trait Classify<T> {
    /// An input file is wrong: exit code 3.
    fn invalid_input(self) -> Result<T, Failure>;
    /// A tool, a right or a resource is missing: exit code 4.
    fn environment(self) -> Result<T, Failure>;
    /// Refused for a signature, a rollback or an expiry: exit code 5.
    fn refused(self) -> Result<T, Failure>;
    /// The command line does not fit: exit code 2.
    fn usage(self) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> Classify<T> for Result<T, E> {
    fn invalid_input(self) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(Kind::InvalidInput, error))
    }

    fn environment(self) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(Kind::Environment, error))
    }

    fn refused(self) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(Kind::Refused, error))
    }

    fn usage(self) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(Kind::Usage, error))
    }
}

/// A next step for the operator, carried in the error chain.
#[derive(Debug)]
struct Hint {
    hint: String,
    error: anyhow::Error,
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl std::error::Error for Hint {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // The wrapped error repeats this one's line; printing leaves repetitions out.
        Some(self.error.as_ref())
    }
}

/// Adds the next step that the operator can take. It is printed as `hint: …`.
pub fn hint(error: impl Into<anyhow::Error>, hint: impl fmt::Display) -> anyhow::Error {
    anyhow::Error::new(Hint {
        hint: hint.to_string(),
        error: error.into(),
    })
}

/// Renders an error with its causes, one a line, and its hints.
pub fn render(error: &anyhow::Error) -> String {
    let mut text = String::from("error: ");
    let mut hints = Vec::new();
    let mut last = String::new();
    for (depth, cause) in error.chain().enumerate() {
        if let Some(hint) = cause.downcast_ref::<Hint>() {
            hints.push(hint.hint.clone());
        }
        let line = cause.to_string();
        // A layer that only repeats its cause says nothing.
        if line == last {
            continue;
        }
        if depth > 0 {
            text.push_str("\n  because: ");
        }
        text.push_str(&line);
        last = line;
    }
    for hint in hints {
        text.push_str("\nhint: ");
        text.push_str(&hint);
    }
    text
}

/// Prints an error once, on standard error, and returns the exit code.
#[allow(
    clippy::print_stderr,
    reason = "the one place where a program's error is printed"
)]
pub fn report(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}", render(&failure.error));
            ExitCode::from(failure.kind.code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn exit_codes_are_pinned() {
        let kinds = [
            Kind::Failed,
            Kind::Usage,
            Kind::InvalidInput,
            Kind::Environment,
            Kind::Refused,
        ];
        assert_eq!(kinds.map(Kind::code), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn the_chain_and_the_hint_are_printed_once() {
        let error = anyhow::anyhow!("mksquashfs is missing");
        let error = hint(error, "run make setup").context("build root");
        assert_eq!(
            render(&error),
            "error: build root\n  because: mksquashfs is missing\nhint: run make setup"
        );
    }

    #[test]
    fn a_kind_survives_anyhow() {
        let inner: anyhow::Result<()> = Err(marked(Kind::Refused, "used ticket"));
        let failure = Failure::from(inner.context("install").unwrap_err());
        assert_eq!(failure.kind(), Kind::Refused);
        assert_eq!(Failure::from(anyhow::anyhow!("x")).kind(), Kind::Failed);
    }
}
