//! Every route that answers at once, and everything that it refuses.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod agents;
mod server;
mod sessions;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

fn files(files: &[(&str, &str)]) -> Value {
    let file = |(path, text): &(&str, &str)| json!({ "path": path, "content": BASE64_STANDARD.encode(text) });
    files.iter().map(file).collect()
}
