//! An earlier commit of this repository, built as people got it then: what an upgrade starts from.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{Cluster, script, skipped, succeed};
use crate::harness::program;

/// The tag of its images on the nodes.
pub(super) const TAG: &str = "earlier";

/// How `release.sh` ends in a clone without the commit's history.
const WITHOUT_HISTORY: i32 = 3;

/// An earlier release: its chart, and the archives of its images.
#[derive(Debug)]
pub struct Release {
    pub(super) chart: PathBuf,
    archives: [PathBuf; 2],
}

impl Release {
    /// Builds the release of a commit, unless it is in the cache already. `None`, said on the terminal, in a clone without
    /// the history that has the commit.
    ///
    /// # Panics
    /// When the commit is not in this clone, or cannot be built; says what to do.
    pub fn of(commit: &str) -> Option<Self> {
        let program = program("ash");
        // TARGET/debug/ash
        let build = program.parent().and_then(Path::parent).expect("the folder that this tree was built in");
        let mut make = Command::new(script("release.sh"));
        let output = make.arg(commit).arg(build).stderr(Stdio::inherit()).output().expect("release.sh runs");
        if output.status.code() == Some(WITHOUT_HISTORY) {
            skipped(&format!("the upgrade from {commit}: this clone has no history; `git fetch --unshallow` gets it"));
            return None;
        }
        assert!(output.status.success(), "there is no release of {commit} to upgrade from; what to do is said above");
        let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        let images = folder.join("images");
        let archives = ["ash.tar", "ash-bridge.tar"].map(|name| images.join(name));
        // A release never changes.
        if !archives.iter().all(|archive| archive.exists()) {
            let mut make = Command::new(script("images.sh"));
            succeed(make.arg(&images).arg(folder.join("programs")).arg(TAG)).expect("the images of the release");
        }
        Some(Self { chart: folder.join("chart"), archives })
    }
}

impl Cluster {
    /// Brings the images of a release onto all nodes.
    ///
    /// # Panics
    /// When they cannot be loaded.
    pub fn load_release(&self, release: &Release) {
        for archive in &release.archives {
            self.load_image(archive);
        }
    }
}
