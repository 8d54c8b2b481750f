//! What `ash runner` can be told: on the command line, through `ASH_...` variables, and in a config file.

#![allow(clippy::doc_markdown, reason = "the comments on arguments are what --help prints")]

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context;
use ash_core::fleet::RunnerName;
use clap::{ArgAction, Args, Command};

use crate::{
    fleet::Administration,
    serve::arguments::{LogFormat, SandboxArguments, SandboxKind, UpstreamArguments},
    values,
};

/// The name of the command.
pub(crate) const COMMAND: &str = "runner";

/// Variables under the names that other programs use, by the argument that they set.
pub(crate) const OTHER_VARIABLES: [(&str, &str); 5] = [
    ("anthropic_base_url", "ANTHROPIC_BASE_URL"),
    ("https_proxy", "https_proxy"),
    ("https_proxy", "HTTPS_PROXY"),
    ("no_proxy", "no_proxy"),
    ("no_proxy", "NO_PROXY"),
];

/// The command alone, to know its arguments.
pub(crate) fn command() -> Command {
    Arguments::augment_args(Command::new(COMMAND))
}

/// Arguments of a runner. Every flag is also a variable and a key of the config file.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// YAML file with settings; its keys are these flags
    #[arg(long, env = "ASH_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Address of a coordinator, for runners: http://HOST:PORT; can be repeated: the next one is asked where one does not answer
    #[arg(long, env = "ASH_COORDINATOR", action = ArgAction::Append, value_delimiter = ',', value_name = "URL")]
    pub(crate) coordinator: Vec<String>,
    /// File with the secret that coordinators and runners share
    #[arg(long, env = "ASH_FLEET_SECRET_FILE", value_name = "FILE")]
    pub(crate) fleet_secret_file: Option<PathBuf>,
    /// Address and port to listen on, for coordinators
    #[arg(long, env = "ASH_RUNNER_LISTEN", default_value = "127.0.0.1:4300")]
    pub(crate) listen: SocketAddr,
    /// Where coordinators reach it [default: http:// and the address of --listen]
    #[arg(long, env = "ASH_ADVERTISE", value_name = "URL")]
    pub(crate) advertise: Option<String>,
    /// Its name, which it keeps when it starts again [default: the machine's]
    #[arg(long, env = "ASH_RUNNER_NAME", value_name = "NAME")]
    pub(crate) name: Option<RunnerName>,
    /// Address and port for GET /metrics and GET /health [default: none]
    #[arg(long, env = "ASH_METRICS_LISTEN", value_name = "ADDRESS")]
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// Where the sandboxes' files are kept
    #[arg(long, env = "ASH_DATA_DIR", default_value = "./data", value_name = "DIRECTORY")]
    pub(crate) data_dir: PathBuf,
    /// The longest wait of a graceful stop for running turns
    #[arg(long, env = "ASH_SHUTDOWN_TIMEOUT", value_parser = values::duration, default_value = "30s", value_name = "TIME")]
    pub(crate) shutdown_timeout: Duration,
    /// On a graceful stop, leave the sandboxes for the next runner of this name
    #[arg(long, env = "ASH_HANDOVER", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        value_parser = clap::builder::BoolishValueParser::new(), default_value = "false", default_missing_value = "true",
        value_name = "BOOLEAN")]
    pub(crate) handover: bool,
    /// What sandboxes are
    #[arg(
        long = "sandboxes",
        env = "ASH_SANDBOXES",
        value_enum,
        default_value = "processes",
        value_name = "KIND",
        help_heading = "Kubernetes"
    )]
    pub(crate) kind: SandboxKind,
    /// Address and port for the bridges of pods
    #[arg(
        long,
        env = "ASH_BRIDGE_LISTEN",
        default_value = "0.0.0.0:4310",
        value_name = "ADDRESS",
        help_heading = "Kubernetes"
    )]
    pub(crate) bridge_listen: SocketAddr,
    /// Address and port for the model calls and tunnels of pods
    #[arg(
        long,
        env = "ASH_GATEWAY_LISTEN",
        default_value = "0.0.0.0:4320",
        value_name = "ADDRESS",
        help_heading = "Kubernetes"
    )]
    pub(crate) gateway_listen: SocketAddr,
    /// Where pods reach that: http://ADDRESS:PORT, of the Service that leads to the node's own runner
    #[arg(long, env = "ASH_GATEWAY_ADVERTISE", value_parser = socket_of_url, value_name = "URL",
        help_heading = "Kubernetes")]
    pub(crate) gateway_advertise: Option<SocketAddr>,
    /// The node that it is on; pods of others are refused
    #[arg(
        long,
        env = "ASH_NODE_NAME",
        default_value = "",
        hide_default_value = true,
        value_name = "NAME",
        help_heading = "Kubernetes"
    )]
    pub(crate) node: String,
    /// The node pool that it serves
    #[arg(
        long,
        env = "ASH_POOL",
        default_value = "",
        hide_default_value = true,
        value_name = "NAME",
        help_heading = "Kubernetes"
    )]
    pub(crate) pool: String,
    /// How log lines look
    #[arg(long, env = "ASH_LOG_FORMAT", value_enum, default_value = "pretty")]
    pub(crate) log_format: LogFormat,
    /// What is logged, as directives of tracing: a level, or `target=level`, with commas between
    #[arg(long, env = "ASH_LOG", default_value = "info", value_name = "FILTER")]
    pub(crate) log: String,
    /// What to do with the runners of a server, in place of running one.
    #[command(subcommand)]
    pub(crate) command: Option<Administration>,
    #[command(flatten)]
    pub(crate) upstream: UpstreamArguments,
    #[command(flatten)]
    pub(crate) sandboxes: SandboxArguments,
}

/// The address of a URL without a path. A name would be none: pods have no DNS.
fn socket_of_url(text: &str) -> Result<SocketAddr, String> {
    let address = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    address.parse().map_err(|_| "write it as http://ADDRESS:PORT, with an address and no name".to_owned())
}

impl Arguments {
    /// Its name: as given, else the machine's.
    pub(crate) fn name(&self) -> anyhow::Result<RunnerName> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        if self.kind == SandboxKind::Pods {
            // A pod's own name changes whenever it is made anew.
            return self
                .node
                .parse()
                .context("a runner of pods needs its node's name: give it with --node, or another with --name");
        }
        let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        machine.trim().parse().context("the machine's name is no name for a runner: give one with --name")
    }

    /// Where coordinators reach it.
    pub(crate) fn address(&self) -> anyhow::Result<String> {
        match &self.advertise {
            Some(address) => Ok(address.clone()),
            None if self.listen.ip().is_unspecified() => {
                anyhow::bail!(
                    "{} is no address to be reached at: name one with --advertise http://HOST:PORT",
                    self.listen
                )
            }
            None => Ok(format!("http://{}", self.listen)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::socket_of_url;

    #[test]
    fn the_gateway_of_pods_is_an_address() {
        for (text, address) in [
            ("http://10.96.0.9:4320", Some("10.96.0.9:4320")),
            ("http://[fd00::9]:4320/", Some("[fd00::9]:4320")),
            ("10.96.0.9:4320", Some("10.96.0.9:4320")),
            ("http://ash-runner:4320", None),
            ("http://10.96.0.9", None),
            ("https://10.96.0.9:4320", None),
        ] {
            assert_eq!(socket_of_url(text).ok().map(|found| found.to_string()).as_deref(), address, "{text}");
        }
    }
}
