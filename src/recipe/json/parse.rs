//! The JSON reader (RFC 8259, strict) that knows where it stands and says what it expected there.

use super::{Kind, Member, Node, excerpt, join, key_step};

/// Lists and objects may be nested this deep; real recipes need about ten levels.
pub const MAX_DEPTH: usize = 128;

/// The text is not JSON as recipes need it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct SyntaxError {
    /// Byte offset of the first byte that cannot stand where it does.
    pub offset: usize,
    /// Key path of the value being read; empty at the root.
    pub key: String,
    pub cause: String,
    pub hint: Option<String>,
}

/// Reads one JSON document.
pub fn parse(text: &str) -> Result<Node, SyntaxError> {
    let mut reader = Reader { text, bytes: text.as_bytes(), at: 0, path: Vec::new() };
    if text.starts_with('\u{feff}') {
        let cause = "the file starts with a byte order mark";
        return Err(reader.fail(cause).hinted("save it as UTF-8 without a byte order mark (BOM)"));
    }
    reader.skip_space();
    let root = reader.value()?;
    reader.skip_space();
    match reader.peek() {
        None => Ok(root),
        Some(_) => Err(reader
            .fail(format!("{} after the end of the document", reader.seen()))
            .hinted("a recipe file holds exactly one JSON object")),
    }
}

impl SyntaxError {
    fn hinted(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

struct Reader<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    /// The steps from the root to the value being read.
    path: Vec<String>,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn fail(&self, cause: impl Into<String>) -> SyntaxError {
        self.fail_at(self.at, cause)
    }

    fn fail_at(&self, offset: usize, cause: impl Into<String>) -> SyntaxError {
        let key = self.path.iter().fold(String::new(), |path, step| join(&path, step));
        SyntaxError { offset, key, cause: cause.into(), hint: None }
    }

    /// What stands here, in words.
    fn seen(&self) -> String {
        match self.text.get(self.at..).and_then(|rest| rest.chars().next()) {
            None => "the end of the file".into(),
            Some(c) if c.is_control() => format!("the control character U+{:04X}", c as u32),
            Some(c) => format!("`{c}`"),
        }
    }

    fn unexpected(&self, expected: &str) -> SyntaxError {
        match self.peek() {
            None => self
                .fail(format!("the file ends where {expected} should follow"))
                .hinted("the file is cut off: write it under a temporary name and rename it when it is complete"),
            Some(b'/' | b'#') => self
                .fail(format!("expected {expected}, found {}", self.seen()))
                .hinted("JSON has no comments: put remarks in a `notes` key"),
            Some(b'\'') => {
                self.fail(format!("expected {expected}, found `'`")).hinted("JSON text stands in double quotes")
            }
            Some(_) => self.fail(format!("expected {expected}, found {}", self.seen())),
        }
    }

    fn value(&mut self) -> Result<Node, SyntaxError> {
        let start = self.at;
        let kind = match self.peek() {
            Some(b'{') => self.object()?,
            Some(b'[') => self.list()?,
            Some(b'"') => Kind::Text(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(c) if c.is_ascii_alphabetic() => self.word()?,
            _ => return Err(self.unexpected("a value")),
        };
        Ok(Node { span: start..self.at, kind })
    }

    fn word(&mut self) -> Result<Kind, SyntaxError> {
        let end = self.bytes[self.at..].iter().take_while(|c| c.is_ascii_alphanumeric()).count() + self.at;
        let word = &self.text[self.at..end];
        let kind = match word {
            "null" => Kind::Null,
            "true" => Kind::Bool(true),
            "false" => Kind::Bool(false),
            _ => {
                let error = self.fail(format!("expected a value, found `{}`", excerpt(word)));
                return Err(match word {
                    "None" | "NaN" | "nan" | "Infinity" | "undefined" | "nil" | "NULL" | "Null" => {
                        error.hinted("JSON writes a value that is not there as `null`")
                    }
                    "True" | "TRUE" => error.hinted("JSON writes it `true`"),
                    "False" | "FALSE" => error.hinted("JSON writes it `false`"),
                    _ => error.hinted("text stands in double quotes"),
                });
            }
        };
        self.at = end;
        Ok(kind)
    }

    fn number(&mut self) -> Result<Kind, SyntaxError> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => {
                self.at += 1;
                if matches!(self.peek(), Some(b'0'..=b'9')) {
                    return Err(self.fail_at(start, "a number must not start with 0"));
                }
            }
            Some(b'1'..=b'9') => self.digits(),
            _ => return Err(self.unexpected("a digit")),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.need_digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.need_digits()?;
        }
        let text = &self.text[start..self.at];
        if !text.parse::<f64>().is_ok_and(f64::is_finite) {
            return Err(self.fail_at(start, format!("the number {} is beyond what a double can hold", excerpt(text))));
        }
        Ok(Kind::Number(text.to_owned()))
    }

    fn digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    fn need_digits(&mut self) -> Result<(), SyntaxError> {
        let before = self.at;
        self.digits();
        if self.at == before { Err(self.unexpected("a digit")) } else { Ok(()) }
    }

    fn enter(&mut self) -> Result<(), SyntaxError> {
        if self.path.len() >= MAX_DEPTH {
            let mut error = self.fail(format!("lists and objects are nested deeper than {MAX_DEPTH} levels"));
            // The path itself would be as long as the nesting.
            error.key = self.path.first().cloned().unwrap_or_default();
            return Err(error.hinted("no recipe needs that: the file is damaged or not a recipe"));
        }
        self.at += 1;
        self.skip_space();
        Ok(())
    }

    fn list(&mut self) -> Result<Kind, SyntaxError> {
        self.enter()?;
        let mut items = Vec::new();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Kind::List(items));
        }
        loop {
            self.path.push(format!("[{}]", items.len()));
            items.push(self.value()?);
            self.path.pop();
            if self.ends(b']', "`,` or `]` (the next item or the end of the list)")? {
                return Ok(Kind::List(items));
            }
        }
    }

    fn object(&mut self) -> Result<Kind, SyntaxError> {
        self.enter()?;
        let mut members: Vec<Member> = Vec::new();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Kind::Object(members));
        }
        loop {
            let member = self.member()?;
            members.push(member);
            if self.ends(b'}', "`,` or `}` (the next key or the end of the object)")? {
                self.distinct(&members)?;
                return Ok(Kind::Object(members));
            }
        }
    }

    /// No key may stand twice: readers disagree about which of two values counts.
    fn distinct(&self, members: &[Member]) -> Result<(), SyntaxError> {
        let mut keys: Vec<&Member> = members.iter().collect();
        // Stable: of two equal keys the later one follows the earlier.
        keys.sort_by(|a, b| a.key.cmp(&b.key));
        let twice = keys.windows(2).filter(|pair| pair[0].key == pair[1].key).map(|pair| pair[1]);
        match twice.min_by_key(|member| member.key_span.start) {
            None => Ok(()),
            Some(Member { key, key_span, .. }) => {
                let cause = format!("the key `{}` stands twice in this object", excerpt(key));
                let error = self.fail_at(key_span.start, cause);
                let error = SyntaxError { key: join(&error.key, &key_step(key)), ..error };
                Err(error.hinted("keep one of the two: JSON readers disagree about which one counts"))
            }
        }
    }

    /// `"key": value`.
    fn member(&mut self) -> Result<Member, SyntaxError> {
        if self.peek() != Some(b'"') {
            return Err(self.unexpected("a key in double quotes"));
        }
        let start = self.at;
        let key = self.string()?;
        let key_span = start..self.at;
        self.path.push(key_step(&key));
        self.skip_space();
        if self.peek() != Some(b':') {
            return Err(self.unexpected("`:` (and the value of the key)"));
        }
        self.at += 1;
        self.skip_space();
        let value = self.value()?;
        self.path.pop();
        Ok(Member { key, key_span, value })
    }

    /// After an item: true at the closing byte, false after a comma.
    fn ends(&mut self, close: u8, expected: &str) -> Result<bool, SyntaxError> {
        self.skip_space();
        match self.peek() {
            Some(c) if c == close => {
                self.at += 1;
                Ok(true)
            }
            Some(b',') => {
                let comma = self.at;
                self.at += 1;
                self.skip_space();
                if self.peek() == Some(close) {
                    let cause = format!("a comma before the closing `{}`", close as char);
                    return Err(self.fail_at(comma, cause).hinted("remove the comma after the last item"));
                }
                Ok(false)
            }
            Some(b'"') => Err(self.unexpected(expected).hinted("a comma is missing before this")),
            _ => Err(self.unexpected(expected)),
        }
    }

    fn string(&mut self) -> Result<String, SyntaxError> {
        let open = self.at;
        self.at += 1;
        let mut out = String::new();
        loop {
            let run = self.bytes[self.at..].iter().take_while(|&&c| c != b'"' && c != b'\\' && c >= 0x20).count();
            // A run ends at an ASCII byte or the end, so it ends on a character boundary.
            out.push_str(&self.text[self.at..self.at + run]);
            self.at += run;
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => out.push(self.escape()?),
                Some(b'\n' | b'\r') => {
                    let cause = "the text that starts here is not closed on its line";
                    return Err(self.fail_at(open, cause).hinted("close the double quote; write a line break as \\n"));
                }
                Some(c) => {
                    let cause = format!("the control character U+{c:04X} stands unescaped in a text");
                    return Err(self.fail(cause).hinted(format!("write it as \\u{c:04x}")));
                }
                None => {
                    self.at = self.bytes.len();
                    return Err(self.unexpected("the closing `\"` of a text"));
                }
            }
        }
    }

    fn escape(&mut self) -> Result<char, SyntaxError> {
        let start = self.at;
        self.at += 1;
        let c = match self.peek() {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(start),
            None => return Err(self.unexpected("the rest of an escape")),
            Some(_) => {
                let cause = format!("`\\` followed by {} is no escape of JSON", self.seen());
                return Err(self.fail_at(start, cause).hinted("write a backslash as \\\\"));
            }
        };
        self.at += 1;
        Ok(c)
    }

    fn unicode_escape(&mut self, start: usize) -> Result<char, SyntaxError> {
        self.at += 1;
        let first = self.hex4(start)?;
        let code = match first {
            0xD800..=0xDBFF if self.bytes[self.at..].starts_with(b"\\u") => {
                self.at += 2;
                match self.hex4(start)? {
                    low @ 0xDC00..=0xDFFF => 0x10000 + ((first - 0xD800) << 10) + (low - 0xDC00),
                    _ => first,
                }
            }
            _ => first,
        };
        char::from_u32(code).ok_or_else(|| {
            self.fail_at(start, format!("\\u{first:04x} is half of a surrogate pair and stands alone"))
                .hinted("write both halves, or the character itself")
        })
    }

    fn hex4(&mut self, start: usize) -> Result<u32, SyntaxError> {
        let digits = self.text.get(self.at..self.at + 4).filter(|d| d.bytes().all(|c| c.is_ascii_hexdigit()));
        match digits.and_then(|d| u32::from_str_radix(d, 16).ok()) {
            Some(code) => {
                self.at += 4;
                Ok(code)
            }
            None => Err(self.fail_at(start, "`\\u` needs four hexadecimal digits after it")),
        }
    }
}
