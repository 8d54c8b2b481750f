//! What coordinators share, on one Postgres database per test; two stores on it are two coordinators.

#![allow(clippy::unwrap_used)]

mod contract;
mod fleet;
mod postgres_server;

use std::sync::Arc;

use ash_core::ports::FleetStore;
use postgres_server::TestDatabase;
use sqlx::{AssertSqlSafe, Executor as _};

struct Postgres(TestDatabase);

impl fleet::Database for Postgres {
    async fn fresh() -> Self {
        Self(TestDatabase::create().await)
    }

    async fn store_with(&self, keys: &[u8]) -> Arc<dyn FleetStore> {
        Arc::new(self.0.open().await.with_credential_keys(fleet::keyring(keys)))
    }

    async fn beside(&self) -> Arc<dyn FleetStore> {
        self.store_with(&[]).await
    }

    async fn execute(&self, statement: &str) {
        self.0.connect().await.execute(AssertSqlSafe(statement.to_owned())).await.unwrap();
    }
}

fleet::fleet_tests!(crate::Postgres);
