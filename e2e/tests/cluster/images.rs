//! Images of a test's own, built beside those of the installation.

use std::{fs, path::PathBuf, process::Command};

use tempfile::TempDir;

/// An image that is being made. Dropped, its folder goes.
pub(crate) struct Image {
    name: &'static str,
    folder: TempDir,
}

fn buildah(arguments: &[&str]) -> String {
    let store = format!("{}/.cache/ash/images", std::env::var("HOME").unwrap());
    let output = Command::new("buildah")
        .args(["--root", &format!("{store}/root"), "--runroot", &format!("{store}/run")])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What our image of sandboxes is based on.
pub(crate) fn base() -> String {
    let images = buildah(&["images", "--format", "{{.Name}}:{{.Tag}}"]);
    let base = images.lines().find(|name| name.starts_with("localhost/ash-base:"));
    base.expect("images.sh made a base").to_owned()
}

impl Image {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Adds a file to what it is built from.
    pub(crate) fn file(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Adds a program that needs no library.
    pub(crate) fn program(&self, name: &str, source: &str) {
        self.file("program.c", source);
        let source = self.path("program.c");
        let compiled = Command::new("gcc").args(["-static", "-o"]).arg(self.path(name)).arg(&source).status().unwrap();
        assert!(compiled.success(), "gcc makes a static program");
    }

    pub(crate) fn build(&self, containerfile: &str) {
        self.file("Containerfile", containerfile);
        let context = self.folder.path().to_str().unwrap();
        buildah(&["bud", "-q", "--isolation", "chroot", "--pull-never", "-t", self.name, context]);
    }

    /// The image as an archive, for as long as this lives.
    pub(crate) fn archive(&self) -> PathBuf {
        let archive = self.path("image.tar");
        let target = format!("oci-archive:{}:{}", archive.display(), self.name);
        buildah(&["push", "-q", "--disable-compression", self.name, &target]);
        archive
    }
}
