//! What every store must do of what coordinators share, whatever its database. A database joins with [`Database`] and
//! [`fleet_tests`].

#![allow(clippy::unwrap_used, unreachable_pub, dead_code, unused_macros, unused_imports, missing_docs)]

pub mod changes;
pub mod compaction;
pub mod configure;
pub mod credentials;
pub mod membership;
pub mod places;
pub mod pods;
pub mod queue;

use std::{sync::Arc, time::Duration};

use ash_core::{
    fleet::RunnerId,
    ports::{FleetStore, Load, NewRunner, RunnerRow},
};
use ash_store::Keyring;
use secrecy::SecretBox;

/// A database for one test.
pub trait Database: Sized {
    /// A new, empty one.
    fn fresh() -> impl Future<Output = Self>;
    /// Its store, with keys for credentials, each of 32 times this byte.
    fn store_with(&self, keys: &[u8]) -> impl Future<Output = Arc<dyn FleetStore>>;
    /// A second store beside the first, as another coordinator has it; the same where only one may have the database.
    fn beside(&self) -> impl Future<Output = Arc<dyn FleetStore>>;
    /// Everything that is in it, as bytes: rows or files.
    fn bytes(&self) -> impl Future<Output = Vec<u8>>;
    /// Runs a statement.
    fn execute(&self, statement: &str) -> impl Future<Output = ()>;
    /// The store.
    fn store(&self) -> impl Future<Output = Arc<dyn FleetStore>> {
        self.store_with(&[])
    }
}

pub fn keyring(keys: &[u8]) -> Keyring {
    if keys.is_empty() {
        return Keyring::default();
    }
    let keys: Vec<_> = keys.iter().map(|byte| SecretBox::new(Box::new([*byte; 32]))).collect();
    Keyring::new(&keys).unwrap()
}

pub fn runner(name: &str) -> RunnerId {
    RunnerId { name: name.parse().unwrap(), incarnation: uuid::Uuid::new_v4() }
}

pub fn new_runner(id: &RunnerId, capacity: u32) -> NewRunner {
    NewRunner {
        id: id.clone(),
        address: "http://127.0.0.1:1".to_owned(),
        pool: "default".to_owned(),
        node: "node".to_owned(),
        release: "1".to_owned(),
        capacity,
    }
}

/// A runner that registered and lives.
pub async fn joined(store: &dyn FleetStore, name: &str, capacity: u32) -> RunnerId {
    let id = runner(name);
    store.register_runner(new_runner(&id, capacity)).await.unwrap();
    assert!(store.runner_lives(&id, Load::default()).await.unwrap());
    id
}

pub async fn row(store: &dyn FleetStore, id: &RunnerId) -> Option<RunnerRow> {
    store.runners().await.unwrap().into_iter().find(|row| row.id == *id)
}

/// Makes everything that this column dates so much older.
pub fn older(table: &str, column: &str, by: Duration) -> String {
    format!("UPDATE {table} SET {column} = {column} - {}", by.as_millis())
}

/// Runs the whole contract against a database.
macro_rules! fleet_tests {
    ($database:ty; $($module:ident: $($test:ident),* $(,)?;)*) => {
        $(mod $module {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                crate::fleet::$module::$test::<$database>().await;
            })*
        })*
    };
    ($database:ty) => {
        crate::fleet::fleet_tests! { $database;
            membership:
                a_runner_registers_lives_and_leaves,
                a_new_life_takes_over_and_the_old_one_is_refused,
                only_a_silent_runner_is_lost,
                nobody_is_lost_while_a_coordinator_may_have_heard_it,
                an_announced_restart_is_no_loss,
                a_cordon_stays,
                coordinators_see_each_other,
                a_row_that_comes_late_says_when_it_was_begun,
                current_versions_are_those_of_all_tenants;
            places:
                a_place_is_reserved_once_and_given_back,
                a_hundred_at_once_spread_evenly,
                a_session_is_opened_by_its_runner_only,
                the_sessions_of_a_gone_runner_are_abandoned_and_adopted,
                a_reservation_ends_by_itself;
            pods:
                a_pod_is_admitted_warmed_claimed_and_deleted,
                an_agent_keeps_how_long_its_sessions_may_be_idle,
                a_pod_made_for_a_session_is_its_own,
                a_pod_counts_once_from_its_admission_to_its_end,
                another_pod_node_or_old_runner_is_not_admitted,
                warm_ones_of_runners_that_cannot_be_used_are_not_claimed,
                a_hundred_claimants_share_thirty,
                deleting_and_claiming_race_for_one;
            changes:
                changes_and_ended_turns_are_found,
                what_is_spent_is_added_up;
            compaction:
                partials_of_finished_turns_are_dropped,
                turns_are_given_out_once_until_they_are_compacted;
            configure:
                options_change_and_every_server_sees_it,
                a_change_of_what_has_changed_is_refused;
            queue:
                entries_are_kept_in_order_and_once,
                the_bounds_hold_however_many_come_at_once,
                one_of_many_claims_it,
                what_decides_is_read_at_once,
                what_is_over_is_listed_for_a_while,
                a_claim_ends_by_itself_and_is_taken_over_once,
                who_listens_hears_of_ends_and_changes;
            credentials:
                a_credential_is_kept_encrypted,
                variables_of_a_session_are_kept_encrypted,
                a_credential_of_a_name_is_replaced,
                keys_are_exchanged,
                a_row_cannot_be_passed_off_as_another;
        }
    };
}
pub(crate) use fleet_tests;
