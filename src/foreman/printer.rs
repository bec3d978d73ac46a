//! The only place that writes to a terminal: data on stdout, messages on stderr.
//!
//! In JSON mode stdout carries exactly one document (or, for streams, one object per line) and nothing else.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use serde_json::{Map, Value};

use super::exit::Problem;

/// Version of every JSON document `foreman` writes. Grows only when a field changes its meaning or goes.
pub const SCHEMA_VERSION: u32 = 1;

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ColorWish {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    Always,
    Never,
}

impl ColorWish {
    fn holds(self, terminal: bool) -> bool {
        match self {
            ColorWish::Always => true,
            ColorWish::Never => false,
            ColorWish::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }
}

/// What a piece of text stands for; colours follow meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Heading,
    Good,
    Bad,
    Warning,
    /// Hints, paths, commands.
    Aside,
}

impl Tone {
    fn code(self) -> &'static str {
        match self {
            Tone::Heading => "1",
            Tone::Good => "32",
            Tone::Bad => "1;31",
            Tone::Warning => "33",
            Tone::Aside => "36",
        }
    }
}

pub struct Printer {
    json: bool,
    color_out: bool,
    color_err: bool,
    animate: bool,
    out: Box<dyn Write>,
    err: Box<dyn Write>,
}

impl Printer {
    pub fn new(json: bool, color: ColorWish) -> Self {
        let (out, err) = (io::stdout(), io::stderr());
        Printer {
            json,
            color_out: color.holds(out.is_terminal()),
            color_err: color.holds(err.is_terminal()),
            animate: err.is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb"),
            out: Box::new(io::BufWriter::new(out)),
            err: Box::new(err),
        }
    }

    pub fn is_json(&self) -> bool {
        self.json
    }

    /// True when stderr is a terminal that can show a moving bar.
    pub fn animates(&self) -> bool {
        self.animate && !self.json
    }

    /// `text` in the colour of its meaning, for stdout.
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        paint(self.color_out, tone, text)
    }

    /// A handle for messages that threads may share.
    pub fn notes(&self) -> Notes {
        Notes { silent: self.json }
    }

    /// One line of data. Does nothing in JSON mode, so that a document stays alone.
    pub fn line(&mut self, text: impl AsRef<str>) -> Result<(), Problem> {
        if self.json {
            return Ok(());
        }
        self.raw(text.as_ref().as_bytes())?;
        self.raw(b"\n")
    }

    /// Bytes as they are: completions, man pages.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        self.out.write_all(bytes).map_err(|error| Problem::io("write the output", &error))
    }

    /// The one document of a command in JSON mode; `schema_version` comes first.
    pub fn document<T: Serialize>(&mut self, document: &T) -> Result<(), Problem> {
        let text = serde_json::to_string_pretty(&versioned(document)?).unwrap_or_default();
        self.raw(text.as_bytes())?;
        self.raw(b"\n")
    }

    /// One object of a stream in JSON mode, on a line of its own and sent at once.
    pub fn object<T: Serialize>(&mut self, object: &T) -> Result<(), Problem> {
        let text = serde_json::to_string(&versioned(object)?).unwrap_or_default();
        self.raw(text.as_bytes())?;
        self.raw(b"\n")?;
        self.flush()
    }

    pub fn flush(&mut self) -> Result<(), Problem> {
        self.out.flush().map_err(|error| Problem::io("write the output", &error))
    }

    /// A message for people, on stderr: what changed, what to do next. A closed stderr is nobody's loss.
    pub fn note(&mut self, text: impl AsRef<str>) {
        if !self.json {
            let _ = writeln!(self.err, "{}", text.as_ref());
        }
    }

    pub fn hint(&mut self, text: impl AsRef<str>) {
        let word = paint(self.color_err, Tone::Aside, "hint:");
        self.note(format!("{word} {}", text.as_ref()));
    }

    /// A warning on stderr, in JSON mode too: it never belongs to the document.
    pub fn warn(&mut self, text: impl AsRef<str>) {
        let word = paint(self.color_err, Tone::Warning, "warning:");
        let _ = writeln!(self.err, "{word} {}", text.as_ref());
    }

    /// Shows a problem: a document on stdout in JSON mode, else words on stderr.
    pub fn problem(&mut self, problem: &Problem) {
        let Problem::Error { message, hint, .. } = problem else { return };
        if self.json {
            let _ = self.document(&problem.document());
            let _ = self.flush();
            return;
        }
        let _ = self.flush();
        let word = paint(self.color_err, Tone::Bad, "error:");
        let _ = writeln!(self.err, "{word} {message}");
        if let Some(hint) = hint {
            let _ = writeln!(self.err);
            self.hint(hint);
        }
    }
}

/// Writes messages to stderr from any thread; silent in JSON mode.
#[derive(Clone, Copy, Debug)]
pub struct Notes {
    silent: bool,
}

impl Notes {
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.silent {
            let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
        }
    }
}

fn paint(color: bool, tone: Tone, text: &str) -> String {
    if color { format!("\x1b[{}m{text}\x1b[0m", tone.code()) } else { text.to_owned() }
}

/// The object with `schema_version` in front. A stream's own `schema_version` wins nothing: ours is first.
fn versioned<T: Serialize>(document: &T) -> Result<Value, Problem> {
    let bug = |error: String| Problem::new(super::exit::ExitKind::Unexpected, format!("render JSON: {error}"));
    let Value::Object(fields) = serde_json::to_value(document).map_err(|error| bug(error.to_string()))? else {
        return Err(bug("a document must be an object".into()));
    };
    let mut out = Map::with_capacity(fields.len() + 1);
    out.insert("schema_version".into(), SCHEMA_VERSION.into());
    out.extend(fields.into_iter().filter(|(key, _)| key != "schema_version"));
    Ok(Value::Object(out))
}
