//! The same server on Postgres: conversations go on when the server is killed, and when Postgres is away for a moment.

use std::time::Duration;

use ash_client::Session;
use ash_e2e::harness::{TestApp, Turn, burst, compare_with_log, counted, eventually, outlives_its_server};
use ash_test_postgres::Postgres;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};

/// Deltas of a turn, and the pause before each.
const DELTAS: usize = 500;
const PACE: Duration = Duration::from_millis(1);

async fn on(server: &Postgres) -> TestApp {
    // A variable, as a person should give it: what is in it may be secret.
    TestApp::builder().variable("ASH_DATABASE_URL", &server.url("postgres")).start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_goes_on_after_the_servers_death() {
    let server = Postgres::start();
    let mut app = on(&server).await;
    outlives_its_server(&mut app).await;
    assert!(!app.data().join("ash.db").exists(), "nothing is in SQLite");
    assert!(app.data().join("ash.lock").exists(), "the data directory is this server's all the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_away_in_the_middle_of_turns_and_nothing_is_lost() {
    let mut server = Postgres::start();
    let mut app = on(&server).await;
    let session = app.session().await;
    assert_eq!(app.say(&session, "[[text: begin]]").await.error(), None);
    for round in 0..6 {
        // Stopped and crashed by turns; in every third round the server dies meanwhile.
        let turn = disturbed_turn(&mut app, &mut server, &session, round).await;
        assert_eq!(turn.error(), None, "round {round}");
        assert_eq!(turn.result().as_deref().map(str::trim), Some(counted(DELTAS).trim()), "round {round}");
        compare_with_log(&app.client, &session, &turn.frames, &format!("round {round}")).await;
        let next = app.say(&session, "[[text: still here]]").await;
        assert_eq!(next.result().as_deref(), Some("still here"), "round {round}: {:?}", next.error());
    }
}

/// A turn in whose middle Postgres goes away and comes back.
async fn disturbed_turn(app: &mut TestApp, server: &mut Postgres, session: &Session, round: usize) -> Turn {
    let stream = app.client.send_message(&session.id, &burst(DELTAS, PACE)).await.expect("the message is taken");
    Turn::read_while(stream, async |frames| match frames {
        60 if round.is_multiple_of(2) => server.stop(),
        60 => server.crash(),
        160 if round % 3 == 2 => {
            app.kill();
            server.start_again();
            app.start_again().await;
        }
        // The stream goes on without the database.
        160 => server.start_again(),
        _ => {}
    })
    .await
}

/// Counts every row of every table that a turn writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_turn_of_deltas_writes_few_rows() {
    const ENDED: &str = "SELECT COUNT(*) FROM turns WHERE last_sequence IS NOT NULL";
    const TABLES: [&str; 4] = ["sessions", "session_metadata", "log_chunks", "turns"];
    let server = Postgres::start();
    let app = on(&server).await;
    let session = app.session().await;
    assert_eq!(app.say(&session, "[[text: begin]]").await.error(), None);
    let mut connection = PgConnection::connect(&server.url("postgres")).await.expect("a connection");
    let count = "CREATE TABLE written (changed TEXT); CREATE FUNCTION count_written() RETURNS TRIGGER AS \
                 'BEGIN INSERT INTO written VALUES (TG_TABLE_NAME || '' '' || TG_OP); RETURN NULL; END' LANGUAGE plpgsql";
    connection.execute(AssertSqlSafe(count)).await.expect("a function that counts");
    for table in TABLES {
        let trigger = format!(
            "CREATE TRIGGER count_written AFTER INSERT OR UPDATE OR DELETE ON {table} \
             FOR EACH ROW EXECUTE FUNCTION count_written()"
        );
        connection.execute(AssertSqlSafe(trigger)).await.expect("a trigger");
    }
    let turns = 5;
    for _ in 0..turns {
        assert_eq!(app.say(&session, &format!("[[burst: {DELTAS}]]")).await.error(), None);
    }
    // The last turn's end is committed behind its stream.
    eventually("all turns are committed", async || {
        let ended: i64 = connection.fetch_one(ENDED).await.expect("a count").get(0);
        (ended > turns).then_some(())
    })
    .await;
    let rows = connection
        .fetch_all("SELECT changed, COUNT(*) AS rows FROM written GROUP BY changed ORDER BY changed")
        .await
        .expect("the counts");
    let counts: Vec<(String, i64)> = rows.iter().map(|row| (row.get("changed"), row.get("rows"))).collect();
    let all: i64 = counts.iter().map(|(_, rows)| rows).sum();
    eprintln!("rows of {turns} turns of {DELTAS} deltas: {all}: {counts:?}");
    assert!(all < turns * 25, "no row is written per delta: {counts:?}");
}
