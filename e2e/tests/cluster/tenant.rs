//! A tenant of the installed chart, with what a journey does in its namespace: by manifests and over REST.

use ash_client::{Client, Error, Message, Session, StreamOptions};
use ash_e2e::{
    cluster::{Cluster, Endpoint, Installation, SYSTEM_NAMESPACE},
    harness::Turn,
};
use serde_json::{Value, json};

/// A namespace that the chart serves. Dropped after a failure, it prints the state of both namespaces.
pub(crate) struct Tenant<'cluster> {
    pub(crate) cluster: &'cluster Cluster,
    pub(crate) installation: &'cluster Installation,
    pub(crate) name: &'static str,
    api: Endpoint,
}

impl<'cluster> Tenant<'cluster> {
    /// The tenant of REST calls with the installation's API key.
    pub(crate) fn of_rest(cluster: &'cluster Cluster) -> Self {
        Self::named(cluster, "team-a")
    }

    /// A tenant of the chart's values.
    pub(crate) fn named(cluster: &'cluster Cluster, name: &'static str) -> Self {
        let installation = cluster.installation();
        Self { cluster, installation, name, api: cluster.api() }
    }

    fn in_namespace<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        ["--namespace", self.name].iter().chain(arguments).copied().collect()
    }

    /// Runs kubectl there, which has to succeed.
    pub(crate) fn done(&self, arguments: &[&str]) -> String {
        self.cluster.done(&self.in_namespace(arguments))
    }

    /// What kubectl prints as JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        self.cluster.json(&self.in_namespace(arguments))
    }

    /// Applies a manifest there, as a person does.
    pub(crate) fn apply(&self, manifest: &Value) -> String {
        let output = self.cluster.kubectl(&self.in_namespace(&["apply", "-f", "-"]), Some(&manifest.to_string()));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits for a condition, as `kubectl wait --for` has it.
    pub(crate) fn wait(&self, object: &str, condition: &str) {
        self.done(&["wait", object, &format!("--for={condition}"), "--timeout=120s"]);
    }

    /// Whether there is such an object.
    pub(crate) fn has(&self, object: &str) -> bool {
        self.cluster.kubectl(&self.in_namespace(&["get", object]), None).status.success()
    }

    /// Applies an agent with these additions to its spec, and waits until sessions can start.
    pub(crate) fn agent(&self, name: &str, more: &Value) {
        self.apply(&agent(name, more));
        self.wait(&format!("agent/{name}"), "condition=Ready");
    }

    /// A client of the API, for what runs in [`Cluster::run`].
    pub(crate) fn client(&self) -> Client {
        Client::new(&self.api.url(), Some(&self.installation.api_key)).unwrap()
    }

    /// Says something to a session, and reads the turn to its end. Where no sandbox is ready in time it says it again,
    /// as the answer asks for.
    pub(crate) fn say(&self, session: &str, text: &str) -> Turn {
        let client = self.client();
        self.cluster.eventually("the session takes a message", |cluster| {
            cluster.run(async {
                match client.send_message(session, &Message::text(text)).await {
                    Err(Error::Refused { status: 503, retry_after: Some(pause), .. }) => {
                        tokio::time::sleep(pause).await;
                        None
                    }
                    stream => Some(Turn::read(stream.unwrap()).await),
                }
            })
        })
    }

    /// Reads a session from its first entry until no turn runs.
    pub(crate) fn whole(&self, session: &str) -> Turn {
        let client = self.client();
        self.cluster.run(async {
            let stream = client.stream(session, Some("0"), StreamOptions::default()).await.unwrap();
            Turn::read(stream).await
        })
    }

    /// The same where the message may be refused, or the stream may end with an error.
    pub(crate) fn try_say(&self, session: &str, text: &str) -> Result<Turn, ash_client::Error> {
        let client = self.client();
        self.cluster.run(async {
            let mut stream = client.send_message(session, &Message::text(text)).await?;
            let mut turn = Turn::default();
            while let Some(frame) = stream.next().await {
                turn.frames.push(frame?);
            }
            Ok(turn)
        })
    }

    /// Says something, and gives the answer.
    pub(crate) fn answer(&self, session: &str, text: &str) -> String {
        let turn = self.say(session, text);
        turn.result().unwrap_or_else(|| panic!("no result: {:?} {:?}", turn.names(), turn.error()))
    }

    /// Says something as soon as it is taken, and gives the answer.
    pub(crate) fn answer_in_time(&self, session: &str, text: &str) -> String {
        self.cluster.eventually("the message is taken and answered", |_| self.try_say(session, text).ok()?.result())
    }

    /// Makes a session over REST.
    pub(crate) fn create(&self, agent: &str) -> Session {
        let client = self.client();
        let wanted = ash_client::CreateSession { agent: agent.to_owned(), ..ash_client::CreateSession::default() };
        self.cluster.run(async { client.create_session(&wanted).await.unwrap() })
    }

    /// The resource of a session.
    pub(crate) fn resource(&self, id: &str) -> Option<Value> {
        let sessions = self.json(&["get", "sessions"]);
        sessions["items"].as_array().unwrap().iter().find(|one| one["metadata"]["uid"] == id).cloned()
    }
}

impl Drop for Tenant<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}{}", self.cluster.dump(self.name), self.cluster.dump(SYSTEM_NAMESPACE));
        }
    }
}

/// An agent that says what the scripted model is told to, with a pool of one.
pub(crate) fn agent(name: &str, more: &Value) -> Value {
    let mut agent = json!({
        "apiVersion": "ash.dev/v1alpha1",
        "kind": "Agent",
        "metadata": { "name": name },
        "spec": {
            "source": { "inline": { "files": [{ "path": "CLAUDE.md", "text": format!("You are {name}.") }] } },
            "sandbox": {
                "resources": { "requests": { "cpu": "10m", "memory": "128Mi" }, "limits": { "memory": "1Gi" } },
                "network": { "mode": "model" },
            },
            "warm": { "min": 1, "max": 3 },
        },
    });
    merge(&mut agent["spec"], more);
    agent
}

/// A session of an agent, with these additions to its spec.
pub(crate) fn session(name: &str, agent: &str, more: &Value) -> Value {
    let mut session = json!({
        "apiVersion": "ash.dev/v1alpha1",
        "kind": "Session",
        "metadata": { "name": name },
        "spec": { "agent": agent },
    });
    merge(&mut session["spec"], more);
    session
}

/// The message in which the model calls Bash with a command and says what it printed.
pub(crate) fn bash(command: &str) -> String {
    format!("[[tool: Bash {}]] [[result]]", json!({ "command": command }))
}

fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (into, more) => *into = more.clone(),
    }
}
