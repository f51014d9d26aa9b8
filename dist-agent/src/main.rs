//! The node binary with the built-in modules. A binary of one's own looks the same.

use std::process::ExitCode;

fn main() -> ExitCode {
    dist_agent::Node::builder().built_in_modules().main()
}
