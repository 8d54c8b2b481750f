//! Where the programs are that the server runs.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use anyhow::Context;
use ash_protocol::claude::VERSION;

/// Where `make quickstart` puts Claude Code, beneath the home directory.
fn cached(home: &OsStr) -> PathBuf {
    Path::new(home).join(format!(".cache/ash/claude-code-{VERSION}/package/claude"))
}

/// Finds Claude Code. The pinned release of the cache comes before whatever is on the `PATH`, which may be of another release.
pub(super) fn claude(given: Option<&Path>, home: Option<&OsStr>, path: Option<&OsStr>) -> anyhow::Result<PathBuf> {
    if let Some(given) = given {
        return existing(given, "--claude");
    }
    let cached = home.map(cached);
    let on_path: Vec<PathBuf> =
        path.into_iter().flat_map(std::env::split_paths).map(|directory| directory.join("claude")).collect();
    cached
        .into_iter()
        .chain(on_path)
        .find(|program| program.is_file())
        .context("Claude Code is not installed: run `make quickstart`, or name the program with --claude PATH")
}

/// Finds the bridge.
pub(super) fn bridge(given: Option<&Path>, own: &Path) -> anyhow::Result<PathBuf> {
    if let Some(given) = given {
        return existing(given, "--bridge");
    }
    let beside = own.with_file_name("ash-bridge");
    if beside.is_file() {
        Ok(beside)
    } else {
        anyhow::bail!(
            "there is no ash-bridge beside {}: build it (`cargo build -p ash-bridge`), or name it with --bridge PATH",
            own.display()
        )
    }
}

fn existing(program: &Path, flag: &str) -> anyhow::Result<PathBuf> {
    if program.is_file() {
        Ok(program.to_owned())
    } else {
        anyhow::bail!("{} is no file: {flag} has to name a program", program.display())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{fs, path::Path};

    use super::{bridge, claude};

    #[test]
    fn the_pinned_release_comes_first() {
        let home = tempfile::tempdir().unwrap();
        let cached = super::cached(home.path().as_os_str());
        let bin = home.path().join("bin");
        fs::create_dir_all(cached.parent().unwrap()).unwrap();
        fs::create_dir_all(&bin).unwrap();
        let (given_home, path) = (Some(home.path().as_os_str()), Some(bin.as_os_str()));
        assert!(claude(None, given_home, path).unwrap_err().to_string().contains("make quickstart"));
        fs::write(bin.join("claude"), "").unwrap();
        assert_eq!(claude(None, given_home, path).unwrap(), bin.join("claude"));
        fs::write(&cached, "").unwrap();
        assert_eq!(claude(None, given_home, path).unwrap(), cached);
        assert!(claude(Some(Path::new("/not/there")), given_home, path).unwrap_err().to_string().contains("--claude"));
    }

    #[test]
    fn the_bridge_is_beside_the_program() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("ash");
        assert!(bridge(None, &own).unwrap_err().to_string().contains("--bridge"));
        fs::write(folder.path().join("ash-bridge"), "").unwrap();
        assert_eq!(bridge(None, &own).unwrap(), folder.path().join("ash-bridge"));
    }
}
