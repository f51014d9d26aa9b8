//! Rules that look at one file at a time.

use super::source::{Source, Violation, find_word, line_of};

/// With its tests.
const MAX_LINES: usize = 700;

/// Words that no file may hold, tests included, with what to do.
const NOWHERE: [(&str, &str); 3] = [
    ("todo!", "finish it, or answer \"not yet\" in words"),
    ("unimplemented!", "finish it, or answer \"not yet\" in words"),
    ("#[ignore", "a test runs or is not there"),
];

/// Words that a pure file does not hold outside its tests: no clock, I/O, randomness, `async`. Addresses are values.
const IMPURE: [&str; 19] = [
    "async",
    ".await",
    "Instant::now",
    "SystemTime",
    "std::fs",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "std::thread",
    "std::process",
    "std::env",
    "rand::",
    "tokio::fs",
    "tokio::net",
    "tokio::spawn",
    "tokio::task",
    "tokio::time",
    "println!",
    "RandomState",
];

/// A dependency that only some places may name.
struct Border {
    dependency: &'static str,
    /// Prefixes of paths.
    allowed: &'static [&'static str],
    /// Whether tests, examples and dev-dependencies elsewhere may.
    free_in_tests: bool,
}

const HTTP_AND_JSON: &[&str] = &["dist-agent/src/node", "dist-agent/src/main.rs", "dist-agent/Cargo.toml", "xtask/"];

const BORDERS: [Border; 4] = [
    Border {
        dependency: "openraft",
        allowed: &["rafted-value/", "xtask/src/bench/", "xtask/Cargo.toml"],
        free_in_tests: false,
    },
    Border {
        dependency: "quinn",
        allowed: &["batched-comm/", "xtask/src/bench/", "xtask/Cargo.toml"],
        free_in_tests: false,
    },
    Border { dependency: "axum", allowed: HTTP_AND_JSON, free_in_tests: true },
    Border { dependency: "serde_json", allowed: HTTP_AND_JSON, free_in_tests: true },
];

/// What is wrong with the files by themselves.
pub fn check(sources: &[Source], pure: &[(&str, &[&str])]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in sources {
        borders(source, &mut violations);
        if source.is_rust() {
            first_line(source, &mut violations);
            length(source, &mut violations);
            nowhere(source, &mut violations);
        }
    }
    purity(sources, pure, &mut violations);
    violations
}

fn first_line(source: &Source, violations: &mut Vec<Violation>) {
    let starts = |prefix| source.text.starts_with(prefix);
    if !starts("//!") && !starts("#![doc = include_str!") {
        violations.push(source.violation(1, "a file starts with `//!`, which says what it is"));
    }
}

fn length(source: &Source, violations: &mut Vec<Violation>) {
    let lines = source.text.lines().count();
    if lines > MAX_LINES {
        let message = format!("{lines} lines, at most {MAX_LINES} with tests: split it by concept");
        violations.push(source.violation(MAX_LINES + 1, message));
    }
}

fn nowhere(source: &Source, violations: &mut Vec<Violation>) {
    for (word, advice) in NOWHERE {
        for at in find_word(&source.code, word) {
            let message = format!("`{word}` may be nowhere: {advice}");
            violations.push(source.violation(line_of(&source.code, at), message));
        }
    }
}

fn borders(source: &Source, violations: &mut Vec<Violation>) {
    for border in &BORDERS {
        if border.allowed.iter().any(|prefix| source.path.starts_with(prefix)) {
            continue;
        }
        let lines = if source.is_rust() { lines_that_name(source, border) } else { lines_that_depend(source, border) };
        for line in lines {
            let message = format!("`{}` may be named in {} only", border.dependency, border.allowed.join(", "));
            violations.push(source.violation(line, message));
        }
    }
}

fn lines_that_name(source: &Source, border: &Border) -> Vec<usize> {
    if border.free_in_tests && source.in_src().is_none() {
        return Vec::new();
    }
    let code = if border.free_in_tests { &source.shipped } else { &source.code };
    let is_path = |at: &usize| {
        let after = code[at + border.dependency.len()..].trim_start();
        let before = code[..*at].trim_end();
        let is_use = before.ends_with("use") || before.ends_with("extern crate");
        after.starts_with("::") || is_use
    };
    find_word(code, border.dependency).filter(is_path).map(|at| line_of(code, at)).collect()
}

fn lines_that_depend(source: &Source, border: &Border) -> Vec<usize> {
    let mut lines = Vec::new();
    let mut section = String::new();
    for (index, line) in source.text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_owned();
        }
        let is_free = border.free_in_tests && section.contains("dev-dependencies");
        let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
        let table = section.ends_with(&format!("dependencies.{}", border.dependency)) && line.starts_with('[');
        let entry = section.ends_with("dependencies") && name == border.dependency;
        if (table || entry) && !is_free {
            lines.push(index + 1);
        }
    }
    lines
}

fn purity(sources: &[Source], pure: &[(&str, &[&str])], violations: &mut Vec<Violation>) {
    for (crate_name, files) in pure {
        for file in *files {
            let path = format!("{crate_name}/src/{file}");
            match sources.iter().find(|source| source.path == path) {
                Some(source) => pure_file(source, violations),
                None => violations.push(Violation {
                    path: "xtask/src/tidy/pure_files.rs".to_owned(),
                    line: 1,
                    message: format!("{path} is listed and does not exist: edit the list"),
                }),
            }
        }
    }
}

fn pure_file(source: &Source, violations: &mut Vec<Violation>) {
    for word in IMPURE {
        for at in find_word(&source.shipped, word) {
            let message = format!("`{word}` in a pure file: let the caller bring times and take deadlines");
            violations.push(source.violation(line_of(&source.shipped, at), message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        let pure: &[(&str, &[&str])] = &[("a", &["pure.rs"])];
        let sources = [Source::new(path, text), Source::new("a/src/pure.rs", "//! Pure.\n")];
        let sources = if path == "a/src/pure.rs" { &sources[..1] } else { &sources[..] };
        check(sources, pure).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_rule_finds_what_is_planted_and_nothing_else() {
        let long = "//! A.\n".repeat(701);
        // (path, text, the start of what is found; empty: nothing)
        let rows = [
            ("a/src/x.rs", "//! A.\nfn a() {}\n", ""),
            ("a/src/lib.rs", "#![doc = include_str!(\"../README.md\")]\n", ""),
            ("a/src/x.rs", "use b;\n//! A.\n", "a/src/x.rs:1: a file starts"),
            ("a/tests/it/main.rs", "fn a() {}\n", "a/tests/it/main.rs:1: a file starts"),
            ("a/src/x.rs", &long, "a/src/x.rs:701: 701 lines"),
            ("a/src/x.rs", "//! A.\n\nfn a() { todo!() }", "a/src/x.rs:3: `todo!`"),
            ("a/src/x.rs", "//! A.\nfn a() { unimplemented!() }", "a/src/x.rs:2: `unimplemented!`"),
            ("a/src/x.rs", "//! A.\n#[cfg(test)]\nmod t {\n#[ignore]\nfn a() {}}", "a/src/x.rs:4: `#[ignore`"),
            ("a/src/x.rs", "//! todo!() and openraft::X\nfn a() { b(\"todo!()\") }", ""),
            ("a/src/x.rs", "//! A.\nuse openraft::X;", "a/src/x.rs:2: `openraft`"),
            ("a/tests/x.rs", "//! A.\nuse openraft;", "a/tests/x.rs:2: `openraft`"),
            ("rafted-value/src/x.rs", "//! A.\nuse openraft::X;", ""),
            ("raft-kv/src/x.rs", "//! A.\nuse crate::openraft_types;", ""),
            ("a/src/x.rs", "//! A.\nfn a(b: quinn::C) {}", "a/src/x.rs:2: `quinn`"),
            ("a/src/x.rs", "//! A.\nfn a() { serde_json::b() }", "a/src/x.rs:2: `serde_json`"),
            ("a/src/x.rs", "//! A.\n#[cfg(test)]\nfn a() { serde_json::b() }", ""),
            ("a/tests/x.rs", "//! A.\nuse serde_json::X;", ""),
            ("dist-agent/src/agents.rs", "//! A.\nuse axum::X;", "dist-agent/src/agents.rs:2: `axum`"),
            ("dist-agent/src/node/http.rs", "//! A.\nuse axum::X;", ""),
            ("a/Cargo.toml", "[dependencies]\nopenraft.workspace = true", "a/Cargo.toml:2: `openraft`"),
            ("a/Cargo.toml", "[dev-dependencies]\nquinn = \"1\"", "a/Cargo.toml:2: `quinn`"),
            ("a/Cargo.toml", "[dependencies.axum]\nversion = \"1\"", "a/Cargo.toml:1: `axum`"),
            ("a/Cargo.toml", "[dev-dependencies]\nserde_json = \"1\"", ""),
            ("rafted-value/Cargo.toml", "[dependencies]\nopenraft.workspace = true", ""),
        ];
        for (path, text, expected) in rows {
            let found = found(path, text);
            match expected {
                "" => assert!(found.is_empty(), "{path} {text:?}: {found:?}"),
                _ => {
                    assert_eq!(found.len(), 1, "{path} {text:?}: {found:?}");
                    assert!(found[0].starts_with(expected), "{path} {text:?}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn a_pure_file_has_no_clock_no_files_no_randomness_and_no_async() {
        let planted = [
            "async fn a() {}",
            "fn a() { Instant::now(); }",
            "use std::time::SystemTime;",
            "fn a() { std::fs::read(b); }",
            "use rand::Rng;",
            "fn a() { println!(); }",
        ];
        for line in planted {
            let found = found("a/src/pure.rs", &format!("//! Pure.\n\n{line}\n"));
            assert_eq!(found.len(), 1, "{line}: {found:?}");
            assert!(found[0].starts_with("a/src/pure.rs:3: "), "{found:?}");
        }
        let fine = "//! No async.\nuse std::time::Instant;\n#[cfg(test)]\nmod t { fn a() { Instant::now(); } }\n";
        assert_eq!(found("a/src/pure.rs", fine), Vec::<String>::new());
    }

    #[test]
    fn a_listed_file_must_exist() {
        let found = check(&[], &[("a", &["gone.rs"])]);
        let expected = "xtask/src/tidy/pure_files.rs:1: a/src/gone.rs is listed and does not exist: edit the list";
        assert_eq!(found[0].to_string(), expected);
    }
}
