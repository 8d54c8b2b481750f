//! What an agent or a session is given in secret is in its sandbox, and nowhere in the clear: not in the database, not in the
//! resources.

use std::collections::BTreeMap;

use ash_client::CreateSession;
use ash_e2e::{cluster::Cluster, http};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::tenant::{Tenant, session};

/// Secrets of this journey, as they are found: words that nothing else has.
const CANARIES: [(&str, &str); 4] = [
    ("AGENT_WORD", "canaryofagentqzx"),
    ("SESSION_WORD", "canaryofsessionqzx"),
    ("CUSTOM_WORD", "canaryofcustomqzx"),
    ("EXTRA_WORD", "canaryofextraqzx"),
];

/// A word as the sandbox says it: what it said itself would be in the log.
fn rotated(word: &str) -> String {
    let rotate = |letter: char| char::from((letter as u8 - b'a' + 13) % 26 + b'a');
    word.chars().map(rotate).collect()
}

fn canary(name: &str) -> &'static str {
    CANARIES.iter().find(|(of, _)| *of == name).unwrap().1
}

impl Tenant<'_> {
    /// What a session's Bash has in a variable.
    fn variable(&self, session: &str, name: &str) -> String {
        let command = format!("printf %s \"${name}\" | tr a-z n-za-m");
        self.answer(session, &format!("[[tool: Bash {}]] [[result]]", json!({ "command": command })))
    }

    /// Everything that is in the database, as text.
    fn database(&self) -> String {
        let url = self.installation.postgres.lock().unwrap().url("postgres");
        self.cluster.run(async {
            let mut connection = PgConnection::connect(&url).await.unwrap();
            let tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'";
            let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut connection).await.unwrap();
            let mut all = String::new();
            for table in tables {
                let rows = AssertSqlSafe(format!("SELECT CAST(one AS TEXT) FROM {table} AS one"));
                let rows: Vec<String> = sqlx::query_scalar(rows).fetch_all(&mut connection).await.unwrap();
                all.extend(rows);
            }
            all
        })
    }

    fn post(&self, path: &str, body: Value) -> Value {
        let api = self.cluster.api();
        let key = self.installation.api_key.expose_secret().to_owned();
        let (status, answer) =
            self.cluster.run(async { http::json(api.address, "POST", path, Some(&key), Some(body)).await.unwrap() });
        assert_eq!(status, 201, "{answer}");
        answer
    }
}

#[test]
fn what_is_given_in_secret_is_in_the_sandbox_and_nowhere_in_the_clear() {
    let Some(cluster) = Cluster::shared() else { return };
    let tenant = Tenant::of_rest(&cluster);
    let words = json!({ "agent": canary("AGENT_WORD"), "session": canary("SESSION_WORD") });
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "words" }, "stringData": words });
    tenant.apply(&secret);
    let from = |name: &str, key: &str| json!([{ "name": name, "valueFrom": { "secretKeyRef": { "name": "words", "key": key } } }]);
    tenant.agent("discreet", &json!({ "sandbox": { "env": from("AGENT_WORD", "agent") } }));
    let custom = json!({ "CUSTOM_WORD": canary("CUSTOM_WORD") }).to_string();
    let credential = tenant.post("/api/credentials", json!({ "type": "custom", "key": custom, "label": "words" }));
    // One over REST, one by manifest: both have all that is theirs.
    let wanted = CreateSession {
        agent: "discreet".to_owned(),
        credential_id: Some(credential["credential"]["id"].as_str().unwrap().to_owned()),
        extra_env: BTreeMap::from([("EXTRA_WORD".to_owned(), canary("EXTRA_WORD").to_owned())]),
        ..CreateSession::default()
    };
    let client = tenant.client();
    let rest = cluster.run(async { client.create_session(&wanted).await.unwrap() }).id;
    tenant.apply(&session("discreet", "discreet", &json!({ "options": { "env": from("SESSION_WORD", "session") } })));
    tenant.wait("session/discreet", "condition=Ready");
    let applied = tenant.done(&["get", "session", "discreet", "-o", "jsonpath={.metadata.uid}"]);
    for (session, names) in
        [(&rest, &["AGENT_WORD", "CUSTOM_WORD", "EXTRA_WORD"][..]), (&applied, &["AGENT_WORD", "SESSION_WORD"])]
    {
        for name in names {
            assert_eq!(tenant.variable(session, name), rotated(canary(name)), "{name}");
        }
    }
    let other = tenant.variable(&applied, "EXTRA_WORD");
    assert_eq!(other, "(Bash completed with no output)", "a session has nothing of another one");

    let everything = tenant.database();
    assert!(everything.contains(&rest), "the search finds what is there");
    let resources = tenant.done(&["get", "agents,sessions,pods,events", "-o", "yaml"]);
    for (name, word) in CANARIES {
        let hexadecimal: String = word.bytes().map(|byte| format!("{byte:02x}")).collect();
        for spelling in [word, &hexadecimal] {
            assert!(!everything.contains(spelling), "{name} is in the database in the clear");
            assert!(!resources.contains(spelling), "{name} is in a resource");
        }
    }
    cluster.run(async { client.end_session(&rest).await.unwrap() });
    tenant.done(&["delete", "session/discreet", "secret/words", "--timeout=60s"]);
}
