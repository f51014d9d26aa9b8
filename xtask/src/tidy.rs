//! What LAYOUT and STYLE ask of the tree and a program can check: `cargo xtask tidy`.
//!
//! The rules are pure functions over the files' text; this file reads them and prints what was found. Rust is not
//! parsed: comments and literals are blanked, then words are looked for.

mod modules;
mod rules;

mod pure_files;
mod source;

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use self::source::{Source, Violation};
use crate::workspace;

/// Folders at the top level that hold no crate.
const NO_CRATES: [&str; 2] = ["target", "docs"];

/// Checks the repository and prints what is wrong.
pub fn run() -> ExitCode {
    match check(&workspace::root()) {
        Ok(violations) if violations.is_empty() => {
            println!("tidy: nothing to say");
            ExitCode::SUCCESS
        }
        Ok(violations) => {
            for violation in &violations {
                println!("{violation}");
            }
            println!("tidy: {} violations", violations.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: tidy cannot read the repository: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is wrong in a repository, in the order of files and lines.
pub fn check(root: &Path) -> io::Result<Vec<Violation>> {
    let mut sources = Vec::new();
    for entry in fs::read_dir(root)? {
        let directory = entry?.path();
        let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_crate = directory.join("Cargo.toml").is_file();
        if is_crate && !name.starts_with('.') && !NO_CRATES.contains(&name.as_str()) {
            read(root, &directory, &mut sources)?;
        }
    }
    Ok(check_sources(&sources, pure_files::PURE_FILES))
}

fn check_sources(sources: &[Source], pure: &[(&str, &[&str])]) -> Vec<Violation> {
    let mut violations = rules::check(sources, pure);
    violations.extend(modules::check(sources));
    violations.sort();
    violations.dedup();
    violations
}

/// All Rust files and manifests below a crate's folder.
fn read(root: &Path, directory: &Path, sources: &mut Vec<Source>) -> io::Result<()> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(directory)? {
        paths.push(entry?.path());
    }
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                read(root, &path, sources)?;
            }
        } else if name.ends_with(".rs") || name == "Cargo.toml" {
            let relative = path.strip_prefix(root).unwrap_or(&path);
            let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
            sources.push(Source::new(&parts.join("/"), &fs::read_to_string(&path)?));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_violation_is_found_with_file_and_line() {
        let root = tempfile::tempdir().unwrap();
        let source = root.path().join("some-crate/src");
        fs::create_dir_all(&source).unwrap();
        fs::create_dir_all(root.path().join("target")).unwrap();
        fs::write(root.path().join("some-crate/Cargo.toml"), "[package]\n").unwrap();
        fs::write(source.join("lib.rs"), "//! Some crate.\n\nfn later() {\n    todo!()\n}\n").unwrap();
        let violations = check(root.path()).unwrap();
        let own: Vec<String> =
            violations.iter().map(ToString::to_string).filter(|text| text.starts_with("some-crate")).collect();
        assert_eq!(own.len(), 1, "{own:?}");
        assert!(own[0].starts_with("some-crate/src/lib.rs:4: "), "{own:?}");
    }
}
