//! The contract, on one `SQLite` file per test.

#![allow(clippy::unwrap_used)]

mod contract;

use std::sync::Arc;

use ash_core::ports::Store;
use ash_store::{Database as _, SqliteStore};

struct Sqlite {
    directory: tempfile::TempDir,
    store: Arc<SqliteStore>,
}

impl contract::Database for Sqlite {
    async fn fresh() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(&directory.path().join("ash.db")).await.unwrap());
        Self { directory, store }
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn reopen(&mut self) {
        self.store.close().await;
        self.store = Arc::new(SqliteStore::open(&self.directory.path().join("ash.db")).await.unwrap());
    }
}

contract::contract_tests!(crate::Sqlite);
