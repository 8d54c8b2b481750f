//! The options that hold in a session, and the environment in which Claude Code starts.

use std::{collections::BTreeMap, net::SocketAddr};

use ash_core::agent::AgentSettings;
use ash_protocol::options::{SessionOptions, TurnOptions};

/// What the agent says where the session says nothing.
pub(crate) fn effective(agent: &AgentSettings, session: &SessionOptions) -> SessionOptions {
    SessionOptions {
        model: session.model.clone().or_else(|| agent.model.clone()),
        system_prompt: session.system_prompt.clone().or_else(|| agent.system_prompt.clone()),
        environment: agent
            .env
            .iter()
            .chain(&session.environment)
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        ..session.clone()
    }
}

/// The options of a turn: the agent's limits where the message brings none.
pub(crate) fn bounded(agent: &AgentSettings, turn: TurnOptions) -> TurnOptions {
    TurnOptions {
        max_turns: turn.max_turns.or(agent.limits.max_turns),
        max_budget_usd: turn.max_budget_usd.or(agent.limits.max_budget_usd),
        ..turn
    }
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The environment of Claude Code in a sandbox, complete. Nothing of the server's own environment is in it.
///
/// The model key in it is the sandbox's token, worth nothing but at this gateway. `NO_PROXY` keeps model calls off the proxy:
/// Claude Code would send them there (observed with 2.1.330). `programs` comes before the path: a folder and a colon, or nothing.
pub(crate) fn environment(gateway: SocketAddr, programs: &str, token: &str) -> BTreeMap<String, String> {
    let path = format!("{programs}{PATH}");
    let proxy = format!("http://sandbox:{token}@{gateway}");
    let no_proxy = match gateway.ip() {
        own if own.is_loopback() => "127.0.0.1,localhost".to_owned(),
        other => format!("127.0.0.1,localhost,{other}"),
    };
    [
        ("PATH", path.as_str()),
        ("HOME", "/home/agent"),
        ("USER", "agent"),
        ("LOGNAME", "agent"),
        ("SHELL", "/bin/bash"),
        ("LANG", "C.UTF-8"),
        ("TERM", "dumb"),
        ("TMPDIR", "/tmp"),
        ("ANTHROPIC_BASE_URL", &format!("http://{gateway}")),
        ("ANTHROPIC_API_KEY", token),
        ("HTTPS_PROXY", &proxy),
        ("https_proxy", &proxy),
        ("NO_PROXY", &no_proxy),
        ("no_proxy", &no_proxy),
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
        ("DISABLE_AUTOUPDATER", "1"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_core::agent::{AgentSettings, TurnLimits};
    use ash_protocol::options::{SessionOptions, TurnOptions};

    use super::{bounded, effective, environment};

    #[test]
    fn the_agents_limits_hold_where_a_message_brings_none() {
        let limits = TurnLimits { max_turns: Some(3), max_budget_usd: Some(0.5) };
        let agent = AgentSettings { limits, ..AgentSettings::default() };
        let of = |turn: TurnOptions| (turn.max_turns, turn.max_budget_usd);
        assert_eq!(of(bounded(&agent, TurnOptions::default())), (Some(3), Some(0.5)));
        let own = TurnOptions { max_turns: Some(9), ..TurnOptions::default() };
        assert_eq!(of(bounded(&agent, own)), (Some(9), Some(0.5)));
        let none = bounded(&AgentSettings::default(), TurnOptions::default());
        assert_eq!(none, TurnOptions::default(), "nothing to ask the bridge about");
    }

    #[test]
    fn the_gateway_is_reached_without_its_own_proxy() {
        for (gateway, no_proxy) in
            [("127.0.0.1:4", "127.0.0.1,localhost"), ("10.96.0.9:4320", "127.0.0.1,localhost,10.96.0.9")]
        {
            let environment = environment(gateway.parse().unwrap(), "/ash:", "t");
            assert_eq!(environment["ANTHROPIC_BASE_URL"], format!("http://{gateway}"));
            assert_eq!(environment["HTTPS_PROXY"], format!("http://sandbox:t@{gateway}"));
            assert_eq!(environment["NO_PROXY"], no_proxy);
            assert!(environment["PATH"].starts_with("/ash:/usr/local/sbin:"));
        }
    }

    #[test]
    fn the_session_overrides_the_agent() {
        let variables =
            |of: &[(&str, &str)]| of.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let agent = AgentSettings {
            model: Some("a".into()),
            system_prompt: Some("p".into()),
            env: variables(&[("OWN", "a"), ("SECRET", "a")]),
            ..AgentSettings::default()
        };
        let session = SessionOptions {
            model: Some("b".into()),
            environment: variables(&[("MORE", "b"), ("OWN", "b")]),
            ..SessionOptions::default()
        };
        let effective = effective(&agent, &session);
        assert_eq!(effective.environment, variables(&[("MORE", "b"), ("OWN", "b"), ("SECRET", "a")]));
        assert_eq!((effective.model.as_deref(), effective.system_prompt.as_deref()), (Some("b"), Some("p")));
    }
}
