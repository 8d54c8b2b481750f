//! Writes every generated file of the repository, or with `--check` says which are stale.

use std::{path::Path, process::ExitCode};

use ash_crd::generated;

fn main() -> ExitCode {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let check = std::env::args().any(|argument| argument == "--check");
    let result = if check { generated::stale(&top) } else { generated::write(&top).map(|()| Vec::new()) };
    match result {
        Ok(stale) if stale.is_empty() => ExitCode::SUCCESS,
        Ok(stale) => {
            eprintln!("stale, run `make generate` and commit the result: {}", stale.join(", "));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
