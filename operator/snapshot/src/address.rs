//! Which storage an address names: a folder of this machine, or a bucket that speaks S3.

use std::{fs::DirBuilder, os::unix::fs::DirBuilderExt as _, path::Path, sync::Arc};

use object_store::{ObjectStore, RetryConfig, aws::AmazonS3Builder, local::LocalFileSystem, prefix::PrefixStore};

use crate::{
    limits::{STORAGE_RETRIES, STORAGE_RETRY},
    vault::VaultError,
};

/// What an address of a bucket begins with.
const BUCKET: &str = "s3://";

/// The storage at an address: `s3://BUCKET/PREFIX`, whose server and keys the variables that begin with `AWS_` name; anything else
/// is a folder, which is given too.
pub(crate) fn open(address: &str) -> Result<(Arc<dyn ObjectStore>, Option<&Path>), VaultError> {
    match address.strip_prefix(BUCKET) {
        Some(bucket) => Ok((in_bucket(bucket)?, None)),
        None => Ok((in_folder(Path::new(address))?, Some(Path::new(address)))),
    }
}

/// A folder, which is made where it is not there. Nobody else may look into it.
pub(crate) fn in_folder(folder: &Path) -> Result<Arc<dyn ObjectStore>, VaultError> {
    let unusable = |error: &dyn std::fmt::Display| {
        VaultError::Unavailable(format!("{} cannot be used for snapshots: {error}", folder.display()))
    };
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| unusable(&error))?;
    let files = LocalFileSystem::new_with_prefix(folder).map_err(|error| unusable(&error))?;
    // A snapshot is named in a database that keeps what it was told: what the name stands for has to be as durable.
    Ok(Arc::new(files.with_fsync(true)))
}

fn in_bucket(address: &str) -> Result<Arc<dyn ObjectStore>, VaultError> {
    let (bucket, prefix) = address.split_once('/').unwrap_or((address, ""));
    if bucket.is_empty() {
        return Err(VaultError::Unavailable(format!("{BUCKET}{address} names no bucket: write {BUCKET}BUCKET/PREFIX")));
    }
    // Whoever else uses TLS in this process may have said so before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let retry = RetryConfig { max_retries: STORAGE_RETRIES, retry_timeout: STORAGE_RETRY, ..RetryConfig::default() };
    let objects = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry).build().map_err(|error| {
        VaultError::Unavailable(format!("the bucket {bucket} cannot be used for snapshots: {error}"))
    })?;
    let prefix = prefix.trim_matches('/');
    if prefix.is_empty() {
        return Ok(Arc::new(objects));
    }
    Ok(Arc::new(PrefixStore::new(objects, prefix)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::open;

    #[test]
    fn an_address_is_a_folder_or_a_bucket() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("a/b");
        let (files, is_folder) = open(inside.to_str().unwrap()).unwrap();
        assert!(files.to_string().starts_with("LocalFileSystem") && is_folder == Some(inside.as_path()));
        assert!(inside.is_dir());
        let (bucket, is_folder) = open("s3://bucket/some/where/").unwrap();
        assert!(bucket.to_string().contains("some/where") && is_folder.is_none(), "{bucket}");
        assert!(open("s3://bucket").unwrap().0.to_string().contains("bucket"));
        assert!(open("s3://").is_err());
        assert!(open("/dev/null/nowhere").is_err());
    }
}
