//! The contract, on one Postgres database per test.

#![allow(clippy::unwrap_used)]

mod contract;
mod postgres_server;

use std::sync::Arc;

use ash_core::ports::Store;
use ash_store::{Database as _, PostgresStore};
use postgres_server::TestDatabase;

struct Postgres {
    database: TestDatabase,
    store: Arc<PostgresStore>,
}

impl contract::Database for Postgres {
    async fn fresh() -> Self {
        let database = TestDatabase::create().await;
        let store = Arc::new(database.open().await);
        Self { database, store }
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn reopen(&mut self) {
        self.store.close().await;
        self.store = Arc::new(self.database.open().await);
    }
}

contract::contract_tests!(crate::Postgres);
