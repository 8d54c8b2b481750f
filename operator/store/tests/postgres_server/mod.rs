//! One Postgres server for all tests of a process, and a database of its own for each.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code, missing_docs)]

use std::sync::LazyLock;

use ash_store::PostgresStore;
use ash_test_postgres::Postgres;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

/// Names the server that is used instead of one that the tests start. Its user has to be allowed to make databases.
const GIVEN: &str = "DATABASE_URL";

static SERVER: LazyLock<Option<Postgres>> = LazyLock::new(|| std::env::var_os(GIVEN).is_none().then(Postgres::start));

/// A database, which is removed with this.
pub struct TestDatabase {
    name: String,
}

impl TestDatabase {
    /// A new, empty one.
    pub async fn create() -> Self {
        let name = format!("ash_test_{}", uuid::Uuid::new_v4().simple());
        administer(&format!("CREATE DATABASE {name}")).await;
        Self { name }
    }

    /// Its address.
    pub fn url(&self) -> String {
        address(&self.name)
    }

    pub async fn open(&self) -> PostgresStore {
        PostgresStore::open(&self.url().into()).await.unwrap()
    }

    /// A connection beside the store's.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url()).await.unwrap()
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        // A server of ours goes as a whole.
        if SERVER.is_some() {
            return;
        }
        let command = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let removal = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(administer(&command));
        });
        let _ = removal.join();
    }
}

async fn administer(command: &str) {
    let url = SERVER.as_ref().map_or_else(|| std::env::var(GIVEN).unwrap(), |server| server.url("postgres"));
    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection.execute(AssertSqlSafe(command)).await.unwrap();
    connection.close().await.unwrap();
}

fn address(database: &str) -> String {
    if let Some(server) = &*SERVER {
        return server.url(database);
    }
    let mut url = url::Url::parse(&std::env::var(GIVEN).unwrap()).unwrap();
    url.set_path(database);
    url.into()
}
