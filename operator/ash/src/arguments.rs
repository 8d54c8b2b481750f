//! What can be said on the command line.

use std::{ffi::OsString, path::PathBuf};

use ash_client::{DEFAULT_RELEASE_NAMESPACE, DEFAULT_RELEASE_SERVICE, DEFAULT_SERVICE_ACCOUNT};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use secrecy::SecretString;

use crate::{agent, chat, deploy, operator, runner, serve, session, settings, uninstall, values};

/// Claude Code agents as a service.
#[derive(Debug, Parser)]
#[command(name = "ash", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The heading of what concerns a cluster.
const CLUSTER: &str = "Cluster";

/// What every command of the client takes.
#[allow(clippy::doc_markdown, reason = "the comments on arguments are what --help prints")]
#[derive(Debug, Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct Global {
    /// Address of the server [default: http://127.0.0.1:4100, and with --context a pod of its Service]
    #[arg(long, global = true, env = "ASH_URL")]
    pub(crate) url: Option<String>,
    /// API key; without one, that in initial-api-key of the data directory
    #[arg(long, global = true, env = "ASH_API_KEY", hide_env_values = true, value_parser = values::secret)]
    pub(crate) api_key: Option<SecretString>,
    /// Data directory of a server on this machine [default: ./data]
    #[arg(long, global = true, env = "ASH_DATA_DIR", value_name = "DIRECTORY")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Context of the kubeconfig of the cluster that the server is in: with a token of a service account in the place of a key,
    /// and without --url through a forwarded port
    #[arg(long, global = true, env = "ASH_CONTEXT", value_name = "NAME", help_heading = CLUSTER)]
    pub(crate) context: Option<String>,
    /// Namespace of the agents and sessions [default: that of the context]
    #[arg(long, global = true, env = "ASH_NAMESPACE", value_name = "NAME", help_heading = CLUSTER)]
    pub(crate) namespace: Option<String>,
    /// Service account of that namespace to speak for
    #[arg(long, global = true, env = "ASH_SERVICE_ACCOUNT", value_name = "NAME", default_value = DEFAULT_SERVICE_ACCOUNT,
        help_heading = CLUSTER)]
    pub(crate) service_account: String,
    /// Namespace that Ash is installed in
    #[arg(long, global = true, env = "ASH_RELEASE_NAMESPACE", value_name = "NAME", default_value = DEFAULT_RELEASE_NAMESPACE,
        help_heading = CLUSTER)]
    pub(crate) release_namespace: String,
    /// Service of Ash's API there
    #[arg(long, global = true, env = "ASH_RELEASE_SERVICE", value_name = "NAME", default_value = DEFAULT_RELEASE_SERVICE,
        help_heading = CLUSTER)]
    pub(crate) release_service: String,
    /// Print JSON, for programs
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the server
    Serve(Box<serve::Arguments>),
    /// Run sandboxes for coordinators, on this machine; or look after those that run
    Runner(Box<runner::Arguments>),
    /// Make Agent and Session resources of a Kubernetes cluster come true
    Operator(Box<operator::Arguments>),
    /// Before a release is taken out of a Kubernetes cluster: remove its sandboxes, let go of Agents and Sessions
    Uninstall(uninstall::Arguments),
    /// Deploy the agent in a folder; the same name again makes a new version
    Deploy(deploy::Arguments),
    /// Talk with an agent
    Chat(chat::Arguments),
    /// Agents that are deployed
    #[command(subcommand, arg_required_else_help = true)]
    Agent(agent::Command),
    /// Sessions: conversations with agents
    #[command(subcommand, arg_required_else_help = true)]
    Session(session::Command),
    /// Whether the server is well
    Health,
    /// What the server is, its runners, sandboxes and sessions
    Status,
    /// Print the completion script of a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Reads the command line, and for `serve` and `runner` the config file and the variables of other names beneath it. What clap has to say
/// (usage errors, help) it says itself and ends the process: with 2, or 0.
pub(crate) fn read(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<Cli> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let command = Cli::command();
    let mut matches = command.clone().try_get_matches_from(&arguments).unwrap_or_else(|error| error.exit());
    let server = matches.subcommand().and_then(|(name, given)| match name {
        serve::COMMAND => Some((serve::COMMAND, given, serve::command(), &serve::OTHER_VARIABLES[..])),
        runner::COMMAND => Some((runner::COMMAND, given, runner::command(), &runner::OTHER_VARIABLES[..])),
        operator::COMMAND => Some((operator::COMMAND, given, operator::command(), &operator::OTHER_VARIABLES[..])),
        _ => None,
    });
    if let Some((name, given, known, others)) = server {
        let mut layers = Vec::new();
        if let Some(path) = given.get_one::<PathBuf>(serve::CONFIG) {
            layers.push(settings::read_file(path, &known)?);
        }
        layers.push(settings::from_variables(others, |name| std::env::var(name).ok()));
        let layered = command.mut_subcommand(name, |command| settings::beneath(command, &layers));
        matches = layered.try_get_matches_from(&arguments).map_err(|error| settings::refused(&error))?;
    }
    Ok(Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{io::Write, path::Path};

    use clap::CommandFactory;
    use secrecy::ExposeSecret;

    use super::{Cli, Command, read};

    fn parse(arguments: &[&str]) -> Cli {
        read(std::iter::once("ash").chain(arguments.iter().copied()).map(Into::into)).unwrap()
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_holds_everywhere_can_stand_anywhere() {
        for arguments in [&["--url", "http://x", "agent", "list"][..], &["agent", "list", "--url", "http://x"]] {
            assert_eq!(parse(arguments).global.url.unwrap(), "http://x");
        }
        let cli = parse(&["--data-dir", "/somewhere", "--api-key", "k", "serve"]);
        let Command::Serve(serve) = cli.command else { panic!("{:?}", cli.command) };
        assert_eq!(serve.data_dir, Path::new("/somewhere"));
        assert_eq!(serve.api_key.unwrap().expose_secret(), "k");
    }

    #[test]
    fn a_config_file_stands_beneath_flags_and_above_defaults() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(file, "listen: 127.0.0.1:1\ndataDir: /from/file\nwarm: 7\nmemory: 3GiB\nhandover: true\nupstream-header: ['a: b', 'c: d']\n")
            .unwrap();
        let path = file.path().to_str().unwrap();
        let cli = parse(&["serve", "--config", path, "--warm", "9", "--handover=false"]);
        let Command::Serve(serve) = cli.command else { panic!("{:?}", cli.command) };
        assert_eq!(serve.listen.to_string(), "127.0.0.1:1");
        assert_eq!(serve.data_dir, Path::new("/from/file"));
        assert_eq!(serve.sandboxes.warm, 9);
        assert_eq!(serve.sandboxes.memory.bytes(), 3 << 30);
        assert!(!serve.handover);
        assert_eq!(serve.upstream.upstream_headers().unwrap().len(), 2);
        assert_eq!(serve.sandboxes.processes, 512);
    }

    #[test]
    fn what_the_config_file_has_wrong_is_named() {
        for (text, said) in [
            ("lisen: x", "`lisen`"),
            ("listen: nowhere", "nowhere"),
            ("dataDir: a\ndata-dir: b", "`data-dir`"),
            ("warm: [1, 2]", "`warm`"),
            ("config: x", "`config`"),
            ("- a", "keys and values"),
        ] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            let arguments = ["ash", "serve", "--config", file.path().to_str().unwrap()];
            let error = read(arguments.map(Into::into)).unwrap_err();
            assert!(format!("{error:#}").contains(said), "{text}: {error:#}");
        }
    }

    #[test]
    fn no_secret_is_printed() {
        let cli = parse(&[
            "--api-key",
            "sesame",
            "serve",
            "--anthropic-api-key",
            "sesame",
            "--upstream-header",
            "a: sesame",
            "--database-url",
            "postgres://me:sesame@host/ash",
        ]);
        assert!(!format!("{cli:?}").contains("sesame"));
    }
}
