//! Which steps bring a running Claude Code from the options in force to the options that are wanted. Pure.
//!
//! | option | how it changes |
//! |---|---|
//! | model, system prompt | `set_model`; back to none where the process was started with one: restart |
//! | permission mode | `set_permission_mode` |
//! | thinking | `set_max_thinking_tokens` |
//! | effort, allowed tools | `apply_flag_settings` |
//! | environment | the environment file and `apply_flag_settings`; a removed name: restart |
//! | MCP servers | `mcp_set_servers` |
//! | max turns, budget, output format, sub-agents, initial agent, betas, disallowed tools | restart with `--resume` |
//!
//! A budget counts from the start of a process, so a turn with one begins with a fresh process.
//! Source: Claude Code 2.1.330 as observed.

use std::collections::BTreeMap;

use ash_protocol::options::{Effort, OutputFormat, PermissionMode, SessionOptions, Thinking, TurnOptions};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::environment::is_of_claude;

/// What a process has to be started with: nothing of it changes while it lives.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fixed {
    max_turns: Option<u32>,
    max_budget_usd: Option<f64>,
    output_format: Option<OutputFormat>,
    subagents: Option<Map<String, Value>>,
    initial_agent: Option<String>,
    betas: Option<Vec<String>>,
    disallowed_tools: Option<Vec<String>>,
}

/// What changes on a living process.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Live {
    model: Option<String>,
    system_prompt: Option<String>,
    permission_mode: PermissionMode,
    thinking: Option<Thinking>,
    effort: Option<Effort>,
    allowed_tools: Option<Vec<String>>,
    environment: BTreeMap<String, String>,
    mcp_servers: Map<String, Value>,
}

/// Every option of a turn.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wanted {
    fixed: Fixed,
    live: Live,
    /// The session's model: a process is started with this one, so that a turn's own never has to be undone by a restart.
    session_model: Option<String>,
}

impl Wanted {
    /// The options of a turn over those of its session; `mcp_servers` is the complete set that is to be given to Claude Code.
    pub fn new(session: &SessionOptions, turn: &TurnOptions, mcp_servers: Map<String, Value>) -> Self {
        Self {
            fixed: Fixed {
                max_turns: turn.max_turns,
                max_budget_usd: turn.max_budget_usd,
                output_format: turn.output_format.clone(),
                subagents: session.subagents.clone().filter(|agents| !agents.is_empty()),
                initial_agent: session.initial_agent.clone(),
                betas: session.betas.clone().filter(|betas| !betas.is_empty()),
                disallowed_tools: session.disallowed_tools.clone().filter(|tools| !tools.is_empty()),
            },
            live: Live {
                model: turn.model.clone().or_else(|| session.model.clone()),
                system_prompt: session.system_prompt.clone(),
                permission_mode: session.permission_mode,
                thinking: turn.thinking,
                effort: turn.effort,
                allowed_tools: session.allowed_tools.clone().filter(|tools| !tools.is_empty()),
                environment: session.environment.clone(),
                mcp_servers,
            },
            session_model: session.model.clone(),
        }
    }
}

/// What a running process was started with and was told since.
#[derive(Debug, Clone, PartialEq)]
pub struct InForce {
    fixed: Fixed,
    live: Live,
    /// The model that it was started with: `set_model` with `default` comes back to this.
    started_model: Option<String>,
    /// The system prompt that it was started with.
    started_prompt: bool,
    /// A resumed process takes the model of its transcript until it is told another one.
    model_unknown: bool,
    /// A turn has run: money may have been spent.
    used: bool,
}

impl InForce {
    /// After a start with [`Launch::new`] of the same options.
    pub fn started(wanted: &Wanted, resumed: bool) -> Self {
        Self {
            fixed: wanted.fixed.clone(),
            live: Live {
                model: wanted.session_model.clone(),
                system_prompt: wanted.live.system_prompt.clone(),
                permission_mode: wanted.live.permission_mode,
                ..Live::default()
            },
            started_model: wanted.session_model.clone(),
            started_prompt: wanted.live.system_prompt.is_some(),
            model_unknown: resumed && wanted.session_model.is_none(),
            used: false,
        }
    }

    /// A turn has begun.
    pub fn turn_began(&mut self) {
        self.used = true;
    }

    /// A step was carried out.
    pub fn carried_out(&mut self, step: &Step, wanted: &Wanted) {
        match step {
            Step::Model { model, system_prompt } => {
                self.live.model.clone_from(model);
                self.model_unknown = false;
                if system_prompt.is_some() {
                    self.live.system_prompt.clone_from(system_prompt);
                }
            }
            Step::PermissionMode(mode) => self.live.permission_mode = *mode,
            Step::Thinking(_) => self.live.thinking = wanted.live.thinking,
            Step::Settings(_) => {
                self.live.effort = wanted.live.effort;
                self.live.allowed_tools.clone_from(&wanted.live.allowed_tools);
            }
            Step::Environment(variables) => self.live.environment.clone_from(variables),
            Step::McpServers(servers) => self.live.mcp_servers.clone_from(servers),
        }
    }

    /// The MCP servers that were given to it.
    pub fn mcp_servers(&self) -> &Map<String, Value> {
        &self.live.mcp_servers
    }
}

/// One change on a living process.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// `set_model`; none is the default one. The prompt goes with it because only this request carries it.
    Model {
        /// The model's name.
        model: Option<String>,
        /// The new system prompt, where it changes.
        system_prompt: Option<String>,
    },
    /// `set_permission_mode`.
    PermissionMode(PermissionMode),
    /// `set_max_thinking_tokens`; none is the model's default.
    Thinking(Option<u32>),
    /// `apply_flag_settings`: effort, allowed tools, environment.
    Settings(Value),
    /// The environment file is written: before the settings of the same plan.
    Environment(BTreeMap<String, String>),
    /// `mcp_set_servers` with the complete set.
    McpServers(Map<String, Value>),
}

impl Step {
    /// The options that a refusal of this step is about, by their names in REST.
    pub fn options(&self) -> &'static str {
        match self {
            Self::Model { system_prompt: None, .. } => "model",
            Self::Model { .. } => "model or systemPrompt",
            Self::PermissionMode(_) => "permissionMode",
            Self::Thinking(_) => "thinking",
            Self::Settings(_) => "effort, allowedTools or extraEnv",
            Self::Environment(_) => "extraEnv",
            Self::McpServers(_) => "mcpServers",
        }
    }

    /// The control request that carries the step out; `None` for what is no request.
    pub fn request(&self) -> Option<Value> {
        Some(match self {
            Self::Model { model, system_prompt } => {
                let mut request = json!({"subtype": "set_model", "model": model.as_deref().unwrap_or("default")});
                if let Some(prompt) = system_prompt {
                    request["system_prompt"] = json!(prompt);
                }
                request
            }
            Self::PermissionMode(mode) => json!({"subtype": "set_permission_mode", "mode": mode.claude_name()}),
            Self::Thinking(tokens) => json!({"subtype": "set_max_thinking_tokens", "max_thinking_tokens": tokens}),
            Self::Settings(settings) => json!({"subtype": "apply_flag_settings", "settings": settings}),
            Self::Environment(_) => return None,
            Self::McpServers(servers) => json!({"subtype": "mcp_set_servers", "servers": servers}),
        })
    }
}

/// How to get to the options that are wanted.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// These steps on the living process; none where everything is in force.
    Live(Vec<Step>),
    /// A new process with `--resume`, then the steps from [`InForce::started`].
    Restart,
}

/// Plans the change.
pub fn plan(in_force: &InForce, wanted: &Wanted) -> Plan {
    let (now, next) = (&in_force.live, &wanted.live);
    let spent = next_has_budget(wanted) && in_force.used;
    let model_unreachable = next.model.is_none() && in_force.started_model.is_some();
    let prompt_unreachable = next.system_prompt.is_none() && now.system_prompt.is_some();
    let removed = now.environment.keys().any(|name| !next.environment.contains_key(name));
    if spent || model_unreachable || prompt_unreachable || removed || in_force.fixed != wanted.fixed {
        return Plan::Restart;
    }
    let mut steps = Vec::new();
    let prompt_changes = now.system_prompt != next.system_prompt;
    if now.model != next.model || in_force.model_unknown || prompt_changes {
        let system_prompt = next.system_prompt.clone().filter(|_| prompt_changes);
        steps.push(Step::Model { model: next.model.clone(), system_prompt });
    }
    if now.permission_mode != next.permission_mode {
        steps.push(Step::PermissionMode(next.permission_mode));
    }
    if thinking_tokens(now.thinking) != thinking_tokens(next.thinking) {
        steps.push(Step::Thinking(thinking_tokens(next.thinking)));
    }
    let mut settings = Map::new();
    if now.effort != next.effort {
        settings.insert("effortLevel".to_owned(), json!(next.effort.map(Effort::claude_name)));
    }
    if now.allowed_tools != next.allowed_tools {
        let permissions = next.allowed_tools.as_ref().map_or(Value::Null, |tools| json!({"allow": tools}));
        settings.insert("permissions".to_owned(), permissions);
    }
    if now.environment != next.environment {
        steps.push(Step::Environment(next.environment.clone()));
        let seen: Map<String, Value> = next
            .environment
            .iter()
            .filter(|(name, _)| !is_of_claude(name))
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect();
        if !seen.is_empty() {
            settings.insert("env".to_owned(), Value::Object(seen));
        }
    }
    if !settings.is_empty() {
        steps.push(Step::Settings(Value::Object(settings)));
    }
    if now.mcp_servers != next.mcp_servers {
        steps.push(Step::McpServers(next.mcp_servers.clone()));
    }
    Plan::Live(steps)
}

fn next_has_budget(wanted: &Wanted) -> bool {
    wanted.fixed.max_budget_usd.is_some()
}

/// What `set_max_thinking_tokens` takes: 0 is off, none is the model's own default.
fn thinking_tokens(thinking: Option<Thinking>) -> Option<u32> {
    match thinking {
        Some(Thinking::Disabled {}) => Some(0),
        Some(Thinking::Enabled { budget_tokens }) => budget_tokens,
        Some(Thinking::Adaptive {}) | None => None,
    }
}

/// How a process is started.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// The program's arguments. A value is joined to its flag by `=`, so that no value is taken for a flag.
    pub arguments: Vec<String>,
    /// Variables beside those of the host.
    pub environment: BTreeMap<String, String>,
    /// The `initialize` request.
    pub initialize: Value,
}

impl Launch {
    /// A start with these options, with the conversation so far where `resume` names one.
    pub fn new(wanted: &Wanted, resume: Option<Uuid>) -> Self {
        let (fixed, live) = (&wanted.fixed, &wanted.live);
        let mut arguments: Vec<String> = [
            "-p",
            "--input-format=stream-json",
            "--output-format=stream-json",
            "--verbose",
            "--include-partial-messages",
            "--setting-sources=project",
            "--allow-dangerously-skip-permissions",
            "--permission-prompt-tool=stdio",
            "--system-prompt-snapshot=off",
        ]
        .map(str::to_owned)
        .to_vec();
        let mut flag = |name: &str, value: Option<String>| {
            arguments.extend(value.map(|value| format!("--{name}={value}")));
        };
        flag("permission-mode", Some(live.permission_mode.claude_name().to_owned()));
        flag("model", wanted.session_model.clone());
        flag("max-turns", fixed.max_turns.map(|turns| turns.to_string()));
        flag("max-budget-usd", fixed.max_budget_usd.map(|budget| budget.to_string()));
        flag("disallowedTools", fixed.disallowed_tools.as_ref().map(|tools| tools.join(",")));
        flag("agent", fixed.initial_agent.clone());
        flag("resume", resume.map(|conversation| conversation.to_string()));
        let mut initialize = json!({"subtype": "initialize"});
        if let Some(prompt) = &live.system_prompt {
            initialize["systemPrompt"] = json!([prompt]);
        }
        if let Some(agents) = &fixed.subagents {
            initialize["agents"] = Value::Object(agents.clone());
        }
        if let Some(format) = &fixed.output_format {
            // What is no JSON was refused by whoever read the request.
            initialize["jsonSchema"] = serde_json::from_str(format.schema.get()).unwrap_or_default();
        }
        let betas = fixed.betas.as_ref().map(|betas| ("ANTHROPIC_BETAS".to_owned(), betas.join(",")));
        Self { arguments, environment: betas.into_iter().collect(), initialize }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::{InForce, Launch, Plan, Step, Wanted, plan};

    fn wanted(session: Value, turn: Value) -> Wanted {
        let session: ash_protocol::options::SessionOptions = serde_json::from_value(session).unwrap();
        let servers = session.mcp_servers.clone().unwrap_or_default();
        Wanted::new(&session, &serde_json::from_value(turn).unwrap(), servers)
    }

    /// A process that was started with these options and brought to all of them.
    fn in_force(wanted: &Wanted) -> InForce {
        let mut in_force = InForce::started(wanted, false);
        let Plan::Live(steps) = plan(&in_force, wanted) else { panic!("a start reaches what it was started for") };
        for step in &steps {
            in_force.carried_out(step, wanted);
        }
        in_force
    }

    fn steps(in_force: &InForce, wanted: &Wanted) -> Vec<Step> {
        match plan(in_force, wanted) {
            Plan::Live(steps) => steps,
            Plan::Restart => panic!("a restart for {wanted:?}"),
        }
    }

    #[test]
    fn what_changes_live_never_restarts() {
        let plain = in_force(&wanted(json!({}), json!({})));
        let cases = [
            (json!({"model": "haiku"}), json!({}), "set_model"),
            (json!({"systemPrompt": "x"}), json!({}), "set_model"),
            (json!({"permissionMode": "plan"}), json!({}), "set_permission_mode"),
            (json!({}), json!({"thinking": {"type": "disabled"}}), "set_max_thinking_tokens"),
            (json!({}), json!({"effort": "max"}), "apply_flag_settings"),
            (json!({"allowedTools": ["Bash"]}), json!({}), "apply_flag_settings"),
            (json!({"mcpServers": {"a": {"url": "x"}}}), json!({}), "mcp_set_servers"),
        ];
        for (session, turn, subtype) in cases {
            let steps = steps(&plain, &wanted(session, turn));
            assert_eq!(steps.len(), 1, "{steps:?}");
            assert_eq!(steps[0].request().unwrap()["subtype"], subtype);
        }
        let environment = steps(&plain, &wanted(json!({"environment": {"A": "1", "PATH": "x"}}), json!({})));
        assert!(matches!(environment[0], Step::Environment(_)));
        assert_eq!(environment[1], Step::Settings(json!({"env": {"A": "1"}})), "PATH would change Claude Code itself");
    }

    #[test]
    fn what_is_fixed_restarts_and_comes_back() {
        let plain = wanted(json!({}), json!({}));
        for (session, turn) in [
            (json!({}), json!({"maxTurns": 1})),
            (json!({}), json!({"maxBudgetUsd": 0.5})),
            (json!({}), json!({"outputFormat": {"type": "json_schema", "schema": {}}})),
            (json!({"subagents": {"a": {}}}), json!({})),
            (json!({"initialAgent": "a"}), json!({})),
            (json!({"betas": ["b"]}), json!({})),
            (json!({"disallowedTools": ["Bash"]}), json!({})),
        ] {
            let wanted = wanted(session, turn);
            assert_eq!(plan(&in_force(&plain), &wanted), Plan::Restart, "{wanted:?}");
            assert_eq!(plan(&in_force(&wanted), &plain), Plan::Restart, "{wanted:?}");
            assert_eq!(steps(&in_force(&wanted), &wanted), []);
        }
        for session in [json!({"model": "haiku"}), json!({"systemPrompt": "x"}), json!({"environment": {"A": "1"}})] {
            assert_eq!(plan(&in_force(&wanted(session, json!({}))), &plain), Plan::Restart);
        }
    }

    #[test]
    fn a_budget_begins_with_a_fresh_process() {
        let budget = wanted(json!({}), json!({"maxBudgetUsd": 1}));
        let mut process = in_force(&budget);
        assert_eq!(steps(&process, &budget), []);
        process.turn_began();
        assert_eq!(plan(&process, &budget), Plan::Restart);
    }

    #[test]
    fn a_resumed_process_is_told_its_model() {
        let plain = wanted(json!({}), json!({}));
        let resumed = InForce::started(&plain, true);
        assert_eq!(steps(&resumed, &plain), [Step::Model { model: None, system_prompt: None }]);
        assert_eq!(steps(&resumed, &plain)[0].request().unwrap()["model"], "default");
    }

    #[test]
    fn the_model_of_one_turn_goes_without_a_restart() {
        let turn = wanted(json!({}), json!({"maxTurns": 1, "model": "haiku"}));
        let started = InForce::started(&turn, false);
        let model = Some("haiku".to_owned());
        assert_eq!(steps(&started, &turn), [Step::Model { model, system_prompt: None }]);
        let next = wanted(json!({}), json!({"maxTurns": 1}));
        assert_eq!(steps(&in_force(&turn), &next), [Step::Model { model: None, system_prompt: None }]);
    }

    #[test]
    fn no_value_becomes_a_flag() {
        let session = json!({"model": "--resume", "initialAgent": "-p", "disallowedTools": ["--x", "Bash(rm:*)"]});
        let launch = Launch::new(&wanted(session, json!({})), None);
        for flag in ["--model=--resume", "--agent=-p", "--disallowedTools=--x,Bash(rm:*)"] {
            assert!(launch.arguments.iter().any(|argument| argument == flag), "{flag}");
        }
    }

    fn any_wanted() -> impl Strategy<Value = Wanted> {
        let text = prop::option::of("[ab]");
        (
            (text.clone(), text.clone(), 0..4_usize, prop::option::of(1..3_u32), prop::option::of(1..3_u32)),
            (prop::option::of(0..3_usize), prop::option::of(0..3_usize), text.clone(), text),
        )
            .prop_map(|((model, prompt, mode, turns, budget), (thinking, effort, variable, server))| {
                let mode = ["bypassPermissions", "default", "acceptEdits", "plan"][mode];
                let thinking = thinking.map(|at| {
                    [
                        json!({"type": "disabled"}),
                        json!({"type": "adaptive"}),
                        json!({"type": "enabled", "budgetTokens": 9}),
                    ][at]
                        .clone()
                });
                let servers: Map<String, Value> =
                    server.iter().map(|name| (name.clone(), json!({"url": "x"}))).collect();
                let environment: Map<String, Value> = variable.iter().map(|name| (name.clone(), json!("1"))).collect();
                let session = json!({"model": model, "systemPrompt": prompt, "permissionMode": mode,
                    "environment": environment, "mcpServers": servers});
                let turn = json!({"maxTurns": turns, "maxBudgetUsd": budget, "thinking": thinking,
                    "effort": effort.map(|at| ["low", "high", "max"][at])});
                wanted(session, turn)
            })
    }

    proptest! {
        #[test]
        fn whatever_came_before_every_turn_gets_what_it_wants(turns in prop::collection::vec(any_wanted(), 1..12)) {
            let mut process = in_force(&turns[0]);
            for wanted in &turns {
                match plan(&process, wanted) {
                    Plan::Restart => process = in_force(wanted),
                    Plan::Live(steps) => for step in &steps {
                        process.carried_out(step, wanted);
                    },
                }
                prop_assert_eq!(&process.fixed, &wanted.fixed);
                let live = (super::thinking_tokens(process.live.thinking), super::Live { thinking: None, ..process.live.clone() });
                let next = (super::thinking_tokens(wanted.live.thinking), super::Live { thinking: None, ..wanted.live.clone() });
                prop_assert_eq!(live, next);
                prop_assert_eq!(plan(&process, wanted), Plan::Live(Vec::new()), "nothing is left to do");
                process.turn_began();
            }
        }
    }
}
