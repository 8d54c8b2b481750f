//! What the store has of an agent's sandboxes, and of the places that its sessions have.

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
    /// What there is of an agent now. Other journeys of the tenant leave their agents, whose pools have rows and pods of their own.
    pub(super) fn read(tenant: &Tenant<'_>, agent: &str) -> Self {
        let url = tenant.installation.postgres.lock().expect("the database").url("postgres");
        let name = tenant.name;
        // Also of the agent that is deleted by now.
        let ours = format!(
            "tenant IN ('{name}', 'default') AND agent IN (SELECT id FROM agents WHERE agents.name = '{agent}')"
        );
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
