//! What goes wrong when the file is opened, and what a person is told.

#![allow(clippy::unwrap_used)]

use std::{os::unix::fs::PermissionsExt, path::Path};

use ash_core::id::TenantId;
use ash_core::ports::{AgentStore, StoreError};
use ash_store::{Database as _, OpenError, SqliteStore};
use sqlx::{ConnectOptions, Executor, sqlite::SqliteConnectOptions};

async fn refused(path: &Path) -> OpenError {
    match SqliteStore::open(path).await {
        Ok(_) => panic!("it was opened"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_made_for_its_owner_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b/ash.db");
    let _store = SqliteStore::open(&path).await.unwrap();
    for name in ["ash.db", "ash.db-wal", "ash.lock"] {
        let mode = std::fs::metadata(path.with_file_name(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_directory_in_use_is_refused_until_it_is_free() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ash.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let error = refused(&path).await;
    assert!(matches!(&error, OpenError::Locked { process, .. } if *process == Some(std::process::id())), "{error}");
    assert!(error.to_string().contains("--data-dir"), "{error}");
    store.close().await;
    let again = SqliteStore::open(&path).await.unwrap();
    assert!(matches!(store.agents(&TenantId::default_tenant()).await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.delete_agent(&TenantId::default_tenant(), "a").await, Err(StoreError::Unavailable(_))));
    store.close().await;
    drop(again);
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ash.db");
    SqliteStore::open(&path).await.unwrap().close().await;
    let mut connection = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    connection
        .execute(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES (9999, 'later', TRUE, x'00', 1)",
        )
        .await
        .unwrap();
    drop(connection);
    let error = refused(&path).await;
    assert!(matches!(error, OpenError::SchemaNewer { found: 9999, known, .. } if known < 9999), "{error}");
}

#[tokio::test]
async fn what_is_no_database_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ash.db");
    let text = "a diary, not a database\n".repeat(1_000);
    std::fs::write(&path, &text).unwrap();
    let error = refused(&path).await;
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[tokio::test]
async fn what_cannot_be_written_is_named() {
    // A file where the directory should be: refused to every user, root too.
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("data"), "").unwrap();
    let error = refused(&directory.path().join("data/ash.db")).await;
    assert!(matches!(error, OpenError::NotWritable { .. }), "{error}");
    assert!(error.to_string().contains("data"), "{error}");
    let error = refused(Path::new("/proc/ash/ash.db")).await;
    assert!(matches!(error, OpenError::NotWritable { .. }), "{error}");
}
