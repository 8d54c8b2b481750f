//! Every reason that a condition or an Event of Ash can have, in one table: what it means and what the reader should do.
//! `docs/conditions.md` is made from it.

/// The kinds that a reason is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An `Agent`.
    Agent,
    /// A `Session`.
    Session,
}

/// What a reason says about the resource as a whole, and so which conditions it sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is as its spec asks: `Ready` is true.
    Settled,
    /// It is not there yet, and Ash goes on by itself: `Ready` is false, `Reconciling` is true.
    Progressing,
    /// It does not go on until a person does something: `Ready` is false, `Stalled` is true.
    Stalled,
    /// It says nothing about the resource as a whole: it stands in `PoolReady` or `MessageTaken`, or in an Event.
    Detail,
}

impl Outcome {
    /// Its name in the documentation.
    pub fn name(self) -> &'static str {
        match self {
            Self::Settled => "Ready",
            Self::Progressing => "Reconciling",
            Self::Stalled => "Stalled",
            Self::Detail => "—",
        }
    }
}

macro_rules! reasons {
    ($($name:ident: $outcome:ident [$($kind:ident),+] $meaning:literal / $action:literal;)+) => {
        /// Why a condition is as it is: a word that never changes its meaning, for people, alerts and metrics alike.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $(#[doc = $meaning] $name,)+
        }

        impl Reason {
            /// Every reason, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The reason as a condition has it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// What it says about the resource.
            pub fn outcome(self) -> Outcome {
                match self { $(Self::$name => Outcome::$outcome,)+ }
            }

            /// The kinds that can have it.
            pub fn kinds(self) -> &'static [Kind] {
                match self { $(Self::$name => &[$(Kind::$kind),+],)+ }
            }

            /// What it means.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)+ }
            }

            /// What the reader should do.
            pub fn action(self) -> &'static str {
                match self { $(Self::$name => $action,)+ }
            }
        }
    };
}

reasons! {
    // What goes well.
    Deployed: Settled [Agent] "The agent's files and settings are stored; sessions can start." / "Nothing.";
    Active: Settled [Session] "The session has a sandbox and takes messages." / "Nothing.";
    Asleep: Settled [Session] "The session gave its sandbox back: unused, evicted, drained or lost, as `status.pausedReason` says. Its conversation is safe." / "Nothing: its next message wakes it.";
    Suspended: Settled [Session] "`spec.suspend` is true, or somebody paused or stopped the session over REST. Messages are refused." / "Set `spec.suspend` to false, or resume it over REST, to go on.";
    Ended: Settled [Session] "The session has ended for good; its history stays." / "Nothing. Delete the resource when you need its record no longer.";
    MessageTaken: Detail [Session] "`spec.message` was sent; the agent has it." / "Nothing.";

    // On the way.
    FetchingSource: Progressing [Agent] "The agent's files are being read or cloned." / "Wait. When it takes minutes, look at the agent's `git-clone` pod.";
    Warming: Detail [Agent] "Warm sandboxes are starting." / "Wait; sessions can start already, a little slower.";
    Starting: Progressing [Session] "A sandbox is being found for the session." / "Wait.";
    Resuming: Progressing [Session] "A sleeping or suspended session gets a sandbox again." / "Wait.";
    Ending: Progressing [Session] "The session's last events are being stored and its sandbox is being removed." / "Wait.";
    AgentNotFound: Progressing [Session] "There is no Agent of the name in `spec.agent` in this namespace. The session waits for it." / "Create the Agent, or delete the session and correct the name.";
    AgentNotReady: Progressing [Session] "The Agent is there and has no version that can run yet." / "Look at the Agent's conditions: `kubectl describe agent NAME`.";

    // What is wrong with an agent.
    SourceNotFound: Stalled [Agent] "The ConfigMap of `spec.source.configMap`, or a key of it, is not there." / "Create it, or correct the name or key. The agent goes on by itself then.";
    BundleNotFound: Stalled [Agent] "No bundle of the digest in `spec.source.bundle` was uploaded to this installation." / "Deploy the folder again with `ash deploy`.";
    BundleInvalid: Stalled [Agent] "The files cannot be an agent: a path, the size or their number is out of bounds, or .mcp.json is no JSON. The message says which." / "Correct the file that the message names.";
    ClaudeMdMissing: Stalled [Agent] "The agent's folder has no CLAUDE.md at its top." / "Add one; for a Git source check `spec.source.git.path`.";
    GitRevisionNotFound: Stalled [Agent] "The repository has no such branch, tag or commit, or no such folder." / "Correct `spec.source.git.revision` or `path`.";
    GitAccessDenied: Stalled [Agent] "The repository refused the credential, or wants one." / "Put a credential that can read it into the Secret of `spec.source.git.secretRef`; Ash tries again when the Secret changes.";
    GitUnreachable: Progressing [Agent] "The repository's server did not answer, or its certificate is not trusted. Ash tries again with growing pauses." / "Read Git's own words in the message. Check the URL, that pods which clone may reach the server (`networkPolicy.gitCloneEgress` of the chart, a proxy), and for a private authority `caBundle` of the chart or the Secret's key `ca.crt`.";

    // What can be wrong with both.
    SecretNotFound: Stalled [Agent, Session] "A Secret that the spec names, or a key of it, is not there." / "Create the Secret with that key in this namespace; Ash goes on by itself then.";
    EnvironmentRefused: Stalled [Agent, Session] "A variable may not be in a sandbox, or is too long. The message names it, never its value." / "Remove or shorten the variable.";
    OptionRefused: Stalled [Agent, Session] "A setting cannot take effect in this release. The message names it." / "Remove or correct the setting.";
    ImagePullFailed: Stalled [Agent, Session] "The node cannot pull the image. The message has the registry's answer." / "Correct `spec.sandbox.image`, or name a Secret with access in `imagePullSecrets`.";
    ImageIncompatible: Stalled [Agent, Session] "The image cannot run Claude Code: it has no glibc, or another architecture than the node." / "Use an image with glibc (Debian, Ubuntu, Fedora and the like; not Alpine) for the nodes' architecture.";
    RuntimeClassNotFound: Stalled [Agent, Session] "There is no RuntimeClass of the name in `spec.sandbox.runtimeClassName`." / "Create it (`kubectl get runtimeclass` lists what there is), or remove the field.";
    NodePoolNotFound: Stalled [Agent, Session] "The installation has no node pool of the name in `spec.sandbox.nodePool`." / "Use a pool of the installation's values, or add one there.";
    PodRefused: Stalled [Agent, Session] "The API server refused the sandbox's pod: a policy of the namespace or an admission webhook. The message has its words." / "Allow the pod, or change the setting that the message names.";
    QuotaExceeded: Progressing [Agent, Session] "A ResourceQuota of the namespace has no room for another sandbox. Ash tries again." / "Raise the quota, end sessions, or lower `spec.warm` or `spec.sandbox.resources`.";
    PodUnschedulable: Progressing [Agent, Session] "No node can take the sandbox's pod. The message has the scheduler's reasons." / "Add nodes to the pool, or lower `spec.sandbox.resources`; a resource that no node has (a GPU) is never found.";
    PodNotStarting: Progressing [Agent, Session] "The node cannot start the sandbox's pod: its network, a volume, or the runtime of its RuntimeClass. The message has the node's words. The node tries again." / "Look at the message; a RuntimeClass needs its runtime on every node of the pool, an image pull Secret has to be there.";
    SandboxFailed: Progressing [Agent, Session] "The sandbox ended while it was starting. The message has the last of its log. Ash tries again with growing pauses." / "Look at the message; the agent's hooks or MCP servers are the usual cause.";

    // What happens to a session.
    VersionNotFound: Stalled [Session] "The Agent has no version of the number in `spec.version`." / "Create another Session with a version that there is, or with none for the newest.";
    ModelCredentialRefused: Stalled [Session] "The model API refused the credential (401 or 403) when the session last asked it. Messages are taken still; the next turn that goes well ends this." / "Put a valid key into the Secret of the Agent's `spec.modelCredential`, or store the credential of `spec.credentialId` again, or ask whoever runs this installation for its own; then send the message again.";
    SessionFailed: Stalled [Session] "The sandbox did not start, however often it was tried. The message has the last reason." / "Remove the cause; then a message over REST tries again.";
    MessageFailed: Detail [Session] "`spec.message` was refused for good, as an option of it that cannot take effect; the condition's message says why. What becomes of a turn that was taken is in the session's log." / "Remove the cause and send the message over REST, or create another Session.";
    MessageWaiting: Detail [Session] "`spec.message` waits for the session's sandbox." / "Wait.";
    NoRunner: Progressing [Session] "No runner of the node pool is there to serve the session." / "Check the runner DaemonSet of the pool: `kubectl get pods -l app.kubernetes.io/component=runner -A`.";
    NoCapacity: Progressing [Session] "Every runner of the node pool is full. The session waits for a place." / "Add nodes, or end sessions; idle ones give their places back by themselves.";
    RunnerIncompatible: Progressing [Session] "The only runners there speak another version of the protocol, as in the middle of an upgrade." / "Let the upgrade finish; when it has, check that API and runners have the same release.";
    RunnerLost: Detail [Session] "The session's runner is not heard of any more. The session sleeps, and moves to another runner with its next message." / "Nothing. The log says what of the last turn was lost.";
    NodeLost: Progressing [Session] "The session's node is not heard of any more. The session moves to another one; what was not in a snapshot of its workspace is lost, as its log says." / "Nothing for the session. Repair the node.";
    PodEvicted: Progressing [Session] "The node evicted the sandbox: it was short of memory or disk, or the workspace outgrew its limit. The message says which." / "Raise `spec.sandbox.workspaceSizeLimit` or `resources.requests` of the Agent if it happens again.";
    PodOutOfMemory: Progressing [Session] "The kernel killed the sandbox at its memory limit. It starts again." / "Raise `spec.sandbox.resources.limits.memory` of the Agent if it happens again.";

    // What is wrong with the installation.
    RunnerSecretRefused: Progressing [Session] "Coordinator and runner do not share a secret, so no session can be placed." / "Give both the same `fleet-secret`, in the Secret that the chart value `keys.existingSecret` names; they read it again by themselves.";
    StoreUnavailable: Progressing [Agent, Session] "The database is away. Nothing is lost; Ash tries again." / "Bring Postgres back. Sessions that run go on meanwhile.";
    InternalError: Progressing [Agent, Session] "Ash failed in a way that it does not know. It tries again with growing pauses." / "Read the operator's log for this object's name, and report it.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Kind, Outcome, Reason};

    #[test]
    fn every_reason_is_a_word_and_two_sentences() {
        let names: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            let name = reason.as_str();
            assert!(name.starts_with(char::is_uppercase) && name.chars().all(char::is_alphanumeric), "{name}");
            for sentence in [reason.meaning(), reason.action()] {
                assert!(sentence.ends_with('.') && !sentence.contains('|'), "{name}: {sentence}");
            }
            let idle = reason.action() == "Nothing." || reason.action() == "Wait.";
            assert!(
                reason.outcome() != Outcome::Stalled || !idle,
                "{name} waits for a person and does not say for what"
            );
        }
    }

    #[test]
    fn each_kind_has_an_end_and_a_way_to_it() {
        for kind in [Kind::Agent, Kind::Session] {
            for outcome in [Outcome::Settled, Outcome::Progressing, Outcome::Stalled] {
                assert!(Reason::ALL.iter().any(|reason| reason.kinds().contains(&kind) && reason.outcome() == outcome));
            }
        }
    }
}
