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

    async fn bytes(&self) -> Vec<u8> {
        let mut connection = self.0.connect().await;
        let tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'";
        let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut connection).await.unwrap();
        let mut all = Vec::new();
        for table in tables {
            let rows = AssertSqlSafe(format!("SELECT CAST(one AS TEXT) FROM {table} AS one"));
            let rows: Vec<String> = sqlx::query_scalar(rows).fetch_all(&mut connection).await.unwrap();
            all.extend(rows.concat().into_bytes());
        }
        all
    }

    async fn execute(&self, statement: &str) {
        self.0.connect().await.execute(AssertSqlSafe(statement.to_owned())).await.unwrap();
    }
}

fleet::fleet_tests!(crate::Postgres);
