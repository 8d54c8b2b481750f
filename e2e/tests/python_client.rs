//! The Python client that is published works unchanged.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use ash_e2e::harness::TestApp;

/// Where `make test` puts the client.
fn packages() -> PathBuf {
    let version = include_str!("../python-client.version").trim_ascii();
    let home = PathBuf::from(std::env::var_os("HOME").expect("HOME is set"));
    let packages = home.join(format!(".cache/ash/python-client-{version}/packages"));
    assert!(packages.is_dir(), "the Python client is not installed: run scripts/install-test-tools.sh");
    packages
}

#[tokio::test(flavor = "multi_thread")]
async fn the_published_client_works_unchanged() {
    let app = TestApp::start().await;
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut client = Command::new("python3");
    client
        .arg(top.join("tests/python_client/journey.py"))
        .args([&format!("http://{}", app.address()), app.api_key()])
        .arg(top.join("../config/samples/assistant"))
        .env("PYTHONPATH", packages())
        .env("PYTHONDONTWRITEBYTECODE", "1");
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        client.env_remove(name);
    }
    let said = tokio::task::spawn_blocking(move || client.output()).await.expect("a thread").expect("python3 starts");
    let errors = String::from_utf8_lossy(&said.stderr);
    assert_eq!((said.status.code(), String::from_utf8_lossy(&said.stdout).trim()), (Some(0), "done"), "{errors}");
}
