//! What the store has of a tenant's sandboxes, and of the places that sessions have.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::tenant::Tenant;

/// Rows of sandboxes, and sessions that have a place.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rows {
    /// Pods that sessions have, with their sessions.
    pub(super) claimed: Vec<(String, String)>,
    /// All pods, in order.
    pub(super) pods: Vec<String>,
    /// Sessions with a sandbox or a place for one.
    pub(super) placed: Vec<String>,
}

impl Rows {
    /// What there is now.
    pub(super) fn read(tenant: &Tenant<'_>) -> Self {
        let url = tenant.installation.postgres.lock().expect("the database").url("postgres");
        let name = tenant.name;
        let ours = format!("tenant IN ('{name}', 'default')");
        let read = async {
            let mut database = PgConnection::connect(&url).await?;
            let claimed = format!(
                "SELECT pod, session FROM sandboxes WHERE {ours} AND state = 'claimed' AND session IS NOT NULL ORDER BY session"
            );
            let pods = format!("SELECT pod FROM sandboxes WHERE {ours} ORDER BY pod");
            let placed = format!(
                "SELECT id FROM sessions WHERE {ours} AND (sandbox IS NOT NULL OR reserved_until IS NOT NULL) ORDER BY id"
            );
            Ok::<_, sqlx::Error>(Self {
                claimed: sqlx::query_as(AssertSqlSafe(claimed)).fetch_all(&mut database).await?,
                pods: sqlx::query_scalar(AssertSqlSafe(pods)).fetch_all(&mut database).await?,
                placed: sqlx::query_scalar(AssertSqlSafe(placed)).fetch_all(&mut database).await?,
            })
        };
        tenant.cluster.run(read).expect("the rows can be read")
    }
}
