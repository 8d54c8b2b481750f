//! What every store must do, whatever its database. A database joins with [`Database`] and [`contract_tests`].

#![allow(clippy::unwrap_used, unreachable_pub, dead_code, unused_macros, unused_imports, missing_docs)]

pub mod agents;
pub mod fixtures;
pub mod history;
pub mod keys;
pub mod log;
pub mod sessions;
pub mod snapshots;

use std::sync::Arc;

use ash_core::ports::Store;

/// A database for one test.
pub trait Database: Sized {
    /// A new, empty one.
    fn fresh() -> impl Future<Output = Self>;
    /// Its store.
    fn store(&self) -> Arc<dyn Store>;
    /// Ends the server's part and starts it again.
    fn reopen(&mut self) -> impl Future<Output = ()>;
}

/// Runs the whole contract against a database.
macro_rules! contract_tests {
    ($database:ty; $($module:ident: $($test:ident),* $(,)?;)*) => {
        $(mod $module {
            $(#[tokio::test]
            async fn $test() {
                crate::contract::$module::$test::<$database>().await;
            })*
        })*
    };
    ($database:ty) => {
        crate::contract::contract_tests! { $database;
            agents:
                deploying_makes_an_agent_and_its_versions,
                an_agent_is_found_by_name_and_slug,
                an_agent_is_described_without_a_version,
                a_taken_slug_or_name_is_a_conflict,
                a_deleted_agent_is_gone_and_its_versions_stay,
                a_bundle_is_stored_once_and_comes_back_whole,
                tenants_do_not_see_each_others_agents,
                the_same_agent_deployed_at_once_gets_a_version_each;
            sessions:
                a_session_comes_back_as_it_was_made,
                an_idempotency_key_finds_the_first_session,
                the_same_idempotency_key_at_once_makes_one_session,
                a_session_needs_its_agent,
                an_id_is_used_once,
                listings_filter_and_page,
                tenants_do_not_see_each_others_sessions,
                placed_and_active_sessions_are_counted_over_all_tenants,
                hundreds_at_once_all_succeed;
            log:
                an_epoch_opens_once,
                of_many_openers_one_wins,
                an_opening_ends_the_interrupted_turn,
                epochs_follow_each_other,
                appends_follow_each_other,
                an_append_that_is_there_succeeds,
                an_overtaken_append_writes_nothing_and_hurts_no_other,
                what_is_no_append_is_refused,
                pages_are_whole_batches_within_bounds,
                internal_entries_are_not_read,
                a_transcript_is_put_together,
                turns_begin_and_end,
                a_flood_of_ends_is_one,
                large_entries_come_back,
                everything_is_there_after_a_restart,
                many_sessions_append_at_once;
            history:
                random_histories_agree_with_the_model;
            keys:
                keys_are_found_by_their_hash;
            snapshots:
                the_newest_snapshots_are_kept,
                damaged_snapshots_are_not_pushed_out,
                a_store_is_one_installations,
                a_snapshot_of_another_epoch_is_refused,
                snapshots_are_named_by_tenant;
        }
    };
}
pub(crate) use contract_tests;
