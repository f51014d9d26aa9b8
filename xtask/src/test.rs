//! All that must be green, step by step: `cargo xtask test`.
//!
//! Its last line is `N passed, N failed`: each test counts, and each step that has no tests counts as one.

use std::{
    io::{BufRead, BufReader},
    process::{Command, ExitCode, Stdio},
    thread,
};

use anyhow::{Context, Result};
use clap::Args;

use crate::{tidy, workspace};

#[derive(Args)]
pub struct Options {
    /// A missing rustfmt or clippy is an error
    #[arg(long)]
    strict: bool,
}

/// A part of the toolchain that may be missing.
struct Component {
    name: &'static str,
    /// `cargo fmt`, `cargo clippy`.
    subcommand: &'static str,
}

/// One call of cargo.
struct Step {
    name: &'static str,
    arguments: &'static [&'static str],
    needs: Option<Component>,
    /// Whether its output tells numbers of tests.
    counts_tests: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    passed: u64,
    failed: u64,
}

/// The node is a feature of its crate, off by default. Both ways must hold, and `--all-features` is neither.
const STEPS: [Step; 8] = [
    Step {
        name: "format",
        arguments: &["fmt", "--all", "--", "--check"],
        needs: Some(Component { name: "rustfmt", subcommand: "fmt" }),
        counts_tests: false,
    },
    Step {
        name: "lints, without the node",
        arguments: &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
        needs: Some(Component { name: "clippy", subcommand: "clippy" }),
        counts_tests: false,
    },
    Step {
        name: "lints, with the node",
        arguments: &["clippy", "-p", "dist-agent", "--features", "node", "--all-targets", "--", "-D", "warnings"],
        needs: Some(Component { name: "clippy", subcommand: "clippy" }),
        counts_tests: false,
    },
    Step {
        name: "lints, benchmarks",
        arguments: &[
            "clippy",
            "-p",
            "xtask",
            "--features",
            "bench",
            "--bin",
            "bench",
            "--tests",
            "--",
            "-D",
            "warnings",
        ],
        needs: Some(Component { name: "clippy", subcommand: "clippy" }),
        counts_tests: false,
    },
    Step {
        name: "lints, without zstd",
        arguments: &["clippy", "-p", "batched-comm", "--no-default-features", "--", "-D", "warnings"],
        needs: Some(Component { name: "clippy", subcommand: "clippy" }),
        counts_tests: false,
    },
    Step {
        name: "lints, without quic",
        arguments: &["clippy", "-p", "rafted-value", "--no-default-features", "--all-targets", "--", "-D", "warnings"],
        needs: Some(Component { name: "clippy", subcommand: "clippy" }),
        counts_tests: false,
    },
    Step {
        name: "unit tests, integration tests, examples in docs",
        arguments: &["test", "--workspace", "--features", "dist-agent/node", "--no-fail-fast"],
        needs: None,
        counts_tests: true,
    },
    Step {
        name: "docs",
        arguments: &["doc", "--workspace", "--no-deps", "--features", "dist-agent/node"],
        needs: None,
        counts_tests: false,
    },
];

/// Runs all steps, whatever fails.
pub fn run(options: &Options) -> ExitCode {
    let mut sum = Sum::default();
    let mut failed_steps = Vec::new();
    for step in &STEPS {
        println!("\n== {}: cargo {}", step.name, step.arguments.join(" "));
        let of_step = match &step.needs {
            Some(component) if !is_installed(component) => missing(component, options.strict),
            _ => run_step(step).unwrap_or_else(|error| {
                eprintln!("error: {error:#}");
                Sum { passed: 0, failed: 1 }
            }),
        };
        if of_step.failed > 0 {
            failed_steps.push(step.name);
        }
        sum.add(of_step);
    }
    println!("\n== layout: cargo xtask tidy");
    let is_tidy = tidy::run() == ExitCode::SUCCESS;
    sum.add(Sum { passed: is_tidy.into(), failed: (!is_tidy).into() });
    if !is_tidy {
        failed_steps.push("layout");
    }
    println!();
    if !failed_steps.is_empty() {
        println!("failed: {}", failed_steps.join("; "));
    }
    println!("{} passed, {} failed", sum.passed, sum.failed);
    if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Sum {
    fn add(&mut self, other: Sum) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// From cargo's lines `test result: ok. 3 passed; 1 failed; …`.
    fn of_line(line: &str) -> Option<Sum> {
        let (_, counts) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
        let count = |word: &str| {
            let part = counts.split("; ").find_map(|part| part.strip_suffix(word))?;
            part.trim().parse().ok()
        };
        Some(Sum { passed: count("passed")?, failed: count("failed")? })
    }
}

fn is_installed(component: &Component) -> bool {
    let mut command = workspace::cargo(&[component.subcommand, "--version"]);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn missing(component: &Component, strict: bool) -> Sum {
    let name = component.name;
    println!("{name} is missing: `rustup component add {name}` installs it");
    if strict {
        println!("with --strict that is an error");
    }
    Sum { passed: 0, failed: strict.into() }
}

fn run_step(step: &Step) -> Result<Sum> {
    let mut command = workspace::cargo(step.arguments);
    if step.name == "docs" {
        command.env("RUSTDOCFLAGS", "-D warnings");
    }
    let (tests, success) = if step.counts_tests {
        run_counting(&mut command)?
    } else {
        let status = command.status().context("cannot run cargo")?;
        (Sum::default(), status.success())
    };
    Ok(result_of(step.counts_tests, tests, success))
}

/// What does not build has run no test, and is a failure all the same.
fn result_of(counts_tests: bool, tests: Sum, success: bool) -> Sum {
    match (counts_tests, success) {
        (false, success) => Sum { passed: success.into(), failed: (!success).into() },
        (true, false) if tests.failed == 0 => Sum { passed: tests.passed, failed: 1 },
        (true, _) => tests,
    }
}

/// Passes the output on, and adds up what it tells.
fn run_counting(command: &mut Command) -> Result<(Sum, bool)> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let counting = thread::spawn(move || {
        let mut sum = Sum::default();
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            sum.add(Sum::of_line(&line).unwrap_or_default());
        }
        sum
    });
    let status = child.wait().context("cannot wait for cargo")?;
    Ok((counting.join().unwrap_or_default(), status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_lines_are_added_up() {
        let line = "test result: FAILED. 30 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        assert_eq!(Sum::of_line(line), Some(Sum { passed: 30, failed: 2 }));
        for other in ["test a::b ... ok", "test result: ok", "running 3 tests", ""] {
            assert_eq!(Sum::of_line(other), None, "{other}");
        }
    }

    #[test]
    fn a_step_counts_as_one_or_as_its_tests() {
        let sum = |passed, failed| Sum { passed, failed };
        // (counts tests, its tests, success, result)
        let rows = [
            (false, sum(0, 0), true, sum(1, 0)),
            (false, sum(0, 0), false, sum(0, 1)),
            (true, sum(5, 0), true, sum(5, 0)),
            (true, sum(5, 2), false, sum(5, 2)),
            (true, sum(0, 0), false, sum(0, 1)),
        ];
        for (counts, tests, success, result) in rows {
            assert_eq!(result_of(counts, tests, success), result);
        }
    }
}
