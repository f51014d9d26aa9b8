//! A file, and its text without what is not code: comments, literals, tests.

use std::fmt;

/// One file of the repository.
#[derive(Clone, Debug)]
pub struct Source {
    /// From the repository's root, with `/`.
    pub path: String,
    pub text: String,
    /// The text with comments and the insides of literals blanked; every line stays where it is.
    pub code: String,
    /// As `code`, with everything under `#[cfg(test)]` blanked as well.
    pub shipped: String,
}

/// Something that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    pub path: String,
    /// From 1.
    pub line: usize,
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

impl Source {
    pub fn new(path: &str, text: &str) -> Source {
        let code = code_of(text);
        let shipped = without_tests(&code);
        Source { path: path.to_owned(), text: text.to_owned(), code, shipped }
    }

    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// The crate's folder.
    pub fn crate_name(&self) -> &str {
        self.path.split('/').next().unwrap_or_default()
    }

    /// The path inside the crate's `src`; `None` for tests, examples, benches and manifests.
    pub fn in_src(&self) -> Option<&str> {
        let (_, rest) = self.path.split_once('/')?;
        rest.strip_prefix("src/")
    }

    pub fn violation(&self, line: usize, message: impl Into<String>) -> Violation {
        Violation { path: self.path.clone(), line, message: message.into() }
    }
}

/// The line, from 1, of a byte offset.
pub fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// Offsets at which `word` stands by itself.
pub fn find_word<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let first = word.chars().next().is_some_and(|c| c.is_alphanumeric() || c == '_');
        let last = word.chars().last().is_some_and(|c| c.is_alphanumeric() || c == '_');
        let before = code[..*at].chars().next_back();
        let after = code[*at + word.len()..].chars().next();
        !(first && is_part(before) || last && is_part(after))
    })
}

/// Where the scanner is.
enum Within {
    Code,
    LineComment,
    BlockComment { depth: u32 },
    Text { hashes: Option<usize> },
}

/// Blanks comments and the insides of literals, byte by byte, so that offsets stay.
fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = Vec::with_capacity(bytes.len());
    let mut within = Within::Code;
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let (length, next) = match within {
            Within::Code => step_in_code(text, at),
            Within::LineComment if rest[0] == b'\n' => (1, Some(Within::Code)),
            Within::BlockComment { depth } if rest.starts_with(b"/*") => {
                (2, Some(Within::BlockComment { depth: depth + 1 }))
            }
            Within::BlockComment { depth: 1 } if rest.starts_with(b"*/") => (2, Some(Within::Code)),
            Within::BlockComment { depth } if rest.starts_with(b"*/") => {
                (2, Some(Within::BlockComment { depth: depth - 1 }))
            }
            Within::Text { hashes: None } if rest[0] == b'\\' => (2.min(rest.len()), None),
            Within::Text { hashes: None } if rest[0] == b'"' => (1, Some(Within::Code)),
            Within::Text { hashes: Some(count) } if ends_raw(rest, count) => (1 + count, Some(Within::Code)),
            _ => (1, None),
        };
        let keep =
            matches!(within, Within::Code) && !matches!(next, Some(Within::LineComment | Within::BlockComment { .. }));
        for byte in &rest[..length] {
            let is_literal = keep && length > 1 && rest[0] == b'\'';
            code.push(if (keep && !is_literal) || *byte == b'\n' { *byte } else { b' ' });
        }
        at += length;
        within = next.unwrap_or(within);
    }
    String::from_utf8_lossy(&code).into_owned()
}

fn ends_raw(rest: &[u8], hashes: usize) -> bool {
    rest[0] == b'"' && rest[1..].iter().take_while(|byte| **byte == b'#').count() >= hashes
}

/// How many bytes belong together here, and what follows them.
fn step_in_code(text: &str, at: usize) -> (usize, Option<Within>) {
    let rest = &text.as_bytes()[at..];
    if rest.starts_with(b"//") {
        return (2, Some(Within::LineComment));
    }
    if rest.starts_with(b"/*") {
        return (2, Some(Within::BlockComment { depth: 1 }));
    }
    if rest[0] == b'"' {
        return (1, Some(Within::Text { hashes: None }));
    }
    let previous = text.as_bytes()[..at].last().copied().unwrap_or(b' ');
    let starts_word = !(previous.is_ascii_alphanumeric() || previous == b'_');
    let is_raw = rest[0] == b'r' && (starts_word || previous == b'b' || previous == b'c');
    if is_raw {
        let hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
        if rest.get(1 + hashes) == Some(&b'"') {
            return (2 + hashes, Some(Within::Text { hashes: Some(hashes) }));
        }
    }
    if rest[0] == b'\'' {
        return (character_length(&text[at..]), None);
    }
    (1, None)
}

/// The length of a character literal; 1 for a lifetime.
fn character_length(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match chars.next() {
        // '\n', '\'', '\u{1F600}'
        Some((_, '\\')) => match rest[3..].find('\'') {
            Some(end) => 3 + end + 1,
            None => 1,
        },
        Some(_) => match chars.next() {
            Some((end, '\'')) => end + 1,
            _ => 1,
        },
        None => 1,
    }
}

/// Blanks the item behind each `#[cfg(test)]` or `#[cfg(all(test, …))]`, to its closing brace or semicolon.
fn without_tests(code: &str) -> String {
    let mut shipped = code.as_bytes().to_vec();
    for marker in ["#[cfg(test)]", "#[cfg(all(test"] {
        for (start, _) in code.match_indices(marker) {
            let end = end_of_item(code, start);
            for byte in &mut shipped[start..end] {
                if *byte != b'\n' {
                    *byte = b' ';
                }
            }
        }
    }
    String::from_utf8_lossy(&shipped).into_owned()
}

fn end_of_item(code: &str, start: usize) -> usize {
    let mut depth = 0_u32;
    let mut brackets = 0_u32;
    for (at, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'[' | b'(' => brackets += 1,
            b']' | b')' => brackets = brackets.saturating_sub(1),
            b'{' => depth += 1,
            b'}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            b';' if depth == 0 && brackets == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_code_is_blanked_and_lines_stay() {
        // (text, what is left when runs of blanks are one)
        let rows = [
            ("a // todo!()\nb", "a \nb"),
            ("a /* x /* y */ z */ b", "a b"),
            ("a(\"todo!() \\\" \") b", "a(\" ) b"),
            ("r#\"a \" b\"# c", "r#\" c"),
            ("br\"\\\" c", "br\" c"),
            ("'\"' 'a' '\\'' x", " x"),
            ("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)"),
            ("var\"x\"", "var\" "),
            ("'é' x", " x"),
        ];
        for (text, left) in rows {
            let code = code_of(text);
            assert_eq!(code.lines().count(), text.lines().count(), "{text}");
            let mut one = String::new();
            for c in code.chars() {
                if !(c == ' ' && one.ends_with(' ')) {
                    one.push(c);
                }
            }
            assert_eq!(one, left, "{text}");
        }
    }

    #[test]
    fn tests_are_not_shipped() {
        let code = "fn a() {}\n#[cfg(test)]\nmod tests {\n fn b() {}\n}\nfn c() {}\n#[cfg(test)]\nmod d;\nfn e() {}";
        let shipped = without_tests(code);
        for (word, is_there) in [("a", true), ("b", false), ("c", true), ("d", false), ("e", true)] {
            assert_eq!(find_word(&shipped, word).next().is_some(), is_there, "{word}");
        }
        assert_eq!(shipped.lines().count(), code.lines().count());
        let nested = without_tests("#[cfg(all(test, unix))]\n#[allow(a)]\nmod x { { } }\nfn y() {}");
        assert_eq!(nested.trim(), "fn y() {}");
    }

    #[test]
    fn a_word_stands_by_itself() {
        let found = |word| find_word("openraft openraft_types my_openraft openraft::X", word).count();
        assert_eq!(found("openraft"), 2);
        assert_eq!(found("openraft::"), 1);
        assert_eq!(line_of("a\nb\nc", 2), 2);
    }
}
