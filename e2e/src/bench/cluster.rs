//! The groups that are measured on a real two-node cluster with the installed chart: API server, etcd, Postgres, the model and the
//! benchmark itself share one machine. Neither etcd nor Postgres waits for the disk there.

mod apply;
mod cold;
mod create;
mod crowd;
mod database_writes;
mod later_turn;
mod many;
mod operator;
mod resource_writes;
mod site;

use crate::bench::{report::Row, rows::Scale};

/// A group of rows that are measured together on the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnCluster {
    Create,
    Crowd,
    Apply,
    Cold,
    LaterTurn,
    DatabaseWrites,
    ResourceWrites,
    Operator,
}

impl OnCluster {
    /// Measures it.
    pub(crate) fn measure(self, scale: Scale) -> anyhow::Result<Vec<Row>> {
        site::on(|site| match self {
            Self::Create => create::measure(site, scale),
            Self::Crowd => crowd::measure(site, scale),
            Self::Apply => apply::measure(site, scale),
            Self::Cold => cold::measure(site, scale),
            Self::LaterTurn => later_turn::measure(site, scale),
            Self::DatabaseWrites => database_writes::measure(site, scale),
            Self::ResourceWrites => resource_writes::measure(site, scale),
            Self::Operator => operator::measure(site, scale),
        })
    }
}
