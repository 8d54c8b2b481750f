//! What coordinators share, on one `SQLite` file per test.

#![allow(clippy::unwrap_used)]

mod contract;
mod fleet;

use std::sync::Arc;

use ash_core::ports::FleetStore;
use ash_store::{Database as _, SqliteStore};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, SqliteConnection};
use tokio::sync::Mutex;

struct Sqlite {
    directory: tempfile::TempDir,
    /// One process has the file: another store is opened when the one before is closed.
    open: Mutex<Option<(Vec<u8>, Arc<SqliteStore>)>>,
}

impl fleet::Database for Sqlite {
    async fn fresh() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), open: Mutex::default() }
    }

    async fn store_with(&self, keys: &[u8]) -> Arc<dyn FleetStore> {
        let mut open = self.open.lock().await;
        if let Some((had, store)) = open.as_ref() {
            if had == keys {
                return store.clone();
            }
            store.close().await;
        }
        let store = SqliteStore::open(&self.directory.path().join("ash.db")).await.unwrap();
        let store = Arc::new(store.with_credential_keys(fleet::keyring(keys)));
        *open = Some((keys.to_vec(), Arc::clone(&store)));
        store
    }

    async fn beside(&self) -> Arc<dyn FleetStore> {
        self.store_with(&[]).await
    }

    async fn bytes(&self) -> Vec<u8> {
        let files = std::fs::read_dir(self.directory.path()).unwrap().flatten();
        files.flat_map(|file| std::fs::read(file.path()).unwrap()).collect()
    }

    async fn execute(&self, statement: &str) {
        let url = format!("sqlite://{}", self.directory.path().join("ash.db").display());
        let mut connection = SqliteConnection::connect(&url).await.unwrap();
        connection.execute(AssertSqlSafe(statement.to_owned())).await.unwrap();
        connection.close().await.unwrap();
    }
}

fleet::fleet_tests!(crate::Sqlite);
