//! What a session left on this machine before it had its sandbox elsewhere: put aside while its workspace is made again, since it
//! may turn out to be the only one there is.

use std::{
    io,
    path::{Path, PathBuf},
};

use ash_core::Epoch;

use super::folder::mark;
use crate::lifecycle::remove_folder;

/// What a folder is called that was put aside, before the session's id.
const PREFIX: &str = "left-";

/// A folder that was put aside.
#[derive(Debug)]
pub(crate) struct Aside {
    /// Where it was.
    folder: PathBuf,
    /// Where it is.
    left: PathBuf,
}

fn beside(folder: &Path) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!("{PREFIX}{name}"))
}

/// What was put aside for this folder by a start that came to no end.
pub(crate) async fn find(folder: &Path) -> io::Result<Option<Aside>> {
    let left = beside(folder);
    Ok(tokio::fs::try_exists(&left).await?.then(|| Aside { folder: folder.to_owned(), left }))
}

impl Aside {
    /// Puts a folder aside, in one step.
    pub(crate) async fn put(folder: &Path) -> io::Result<Self> {
        let left = beside(folder);
        tokio::fs::rename(folder, &left).await?;
        Ok(Self { folder: folder.to_owned(), left })
    }

    /// Puts it back in the place of whatever is there. With an epoch it is the session's workspace from then on.
    pub(crate) async fn put_back(self, epoch: Option<Epoch>) {
        remove_folder(self.folder.clone()).await;
        let back = async {
            tokio::fs::rename(&self.left, &self.folder).await?;
            match epoch {
                Some(epoch) => mark(&self.folder, epoch).await,
                None => Ok(()),
            }
        };
        if let Err(error) = back.await {
            tracing::error!(folder = %self.left.display(), %error, "what a session left here could not be put back: the next start looks for it");
        }
    }

    /// Removes it.
    pub(crate) async fn let_go(self) {
        remove_folder(self.left).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use ash_core::Epoch;

    use super::{Aside, find};

    #[tokio::test]
    async fn what_is_put_aside_is_found_put_back_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("session");
        fs::create_dir_all(folder.join("workspace")).unwrap();
        fs::write(folder.join("workspace/file"), "only one").unwrap();
        assert!(find(&folder).await.unwrap().is_none());
        let aside = Aside::put(&folder).await.unwrap();
        assert!(!folder.exists());
        // What was begun in its place goes.
        fs::create_dir_all(folder.join("workspace")).unwrap();
        aside.put_back(None).await;
        assert_eq!(fs::read(folder.join("workspace/file")).unwrap(), b"only one");
        drop(Aside::put(&folder).await.unwrap());
        let aside = find(&folder).await.unwrap().unwrap();
        aside.put_back(Some(Epoch(7))).await;
        assert_eq!(fs::read(folder.join("epoch")).unwrap(), b"7");
        Aside::put(&folder).await.unwrap().let_go().await;
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
