//! What the bridge is started with.

use std::{net::SocketAddr, path::PathBuf};

/// The command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// Where the host is.
    pub host: Host,
    /// The sandbox that this is.
    pub sandbox: String,
    /// The folder that Claude Code works in and that file commands are confined to.
    pub workspace: PathBuf,
    /// Where to open the listener that is handed to the host's gateway; `None` where the gateway is reached over the network.
    pub gateway: Option<SocketAddr>,
}

/// Where the host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// At a Unix socket.
    Unix(PathBuf),
    /// At an address of the network, to which the bridge proves itself with a token. The file is read for every connection: who
    /// gives tokens changes them.
    Tcp {
        /// The address.
        address: SocketAddr,
        /// The file with the token.
        token_file: PathBuf,
    },
}

/// What is wrong with a command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// A flag that there is not.
    #[error("unknown argument {0}; {USAGE}")]
    Unknown(String),
    /// A flag without its value, or a value that does not fit.
    #[error("{0} needs a value that fits; {USAGE}")]
    Value(&'static str),
    /// A flag that has to be there.
    #[error("{0} is missing; {USAGE}")]
    Missing(&'static str),
    /// Two hosts.
    #[error("--socket and --host are two hosts: give one; {USAGE}")]
    Both,
}

const USAGE: &str = "usage: ash-bridge --socket PATH|--host tcp:ADDRESS:PORT --token-file FILE --sandbox ID --workspace PATH \
     [--gateway-port-listen ADDRESS:PORT|--no-gateway]";

/// Where the gateway's listener is opened unless told otherwise: a port that the system chooses.
const GATEWAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

impl Arguments {
    /// Reads a command line (without the program's name).
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, ArgumentError> {
        let (mut socket, mut address, mut token_file) = (None, None, None);
        let (mut sandbox, mut workspace, mut gateway) = (None, None, Some(GATEWAY));
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let (flag, joined) = match argument.split_once('=') {
                Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
                None => (argument, None),
            };
            let mut value = |name| joined.clone().or_else(|| arguments.next()).ok_or(ArgumentError::Value(name));
            match flag.as_str() {
                "--socket" => socket = Some(PathBuf::from(value("--socket")?)),
                "--host" => {
                    let host = value("--host")?;
                    let tcp = host.strip_prefix("tcp:").and_then(|address| address.parse().ok());
                    address = Some(tcp.ok_or(ArgumentError::Value("--host"))?);
                }
                "--token-file" => token_file = Some(PathBuf::from(value("--token-file")?)),
                "--sandbox" => sandbox = Some(value("--sandbox")?),
                "--workspace" => workspace = Some(PathBuf::from(value("--workspace")?)),
                "--gateway-port-listen" => {
                    let address = value("--gateway-port-listen")?.parse();
                    gateway = Some(address.map_err(|_| ArgumentError::Value("--gateway-port-listen"))?);
                }
                "--no-gateway" => gateway = None,
                _ => return Err(ArgumentError::Unknown(flag)),
            }
        }
        let host = match (socket, address) {
            (Some(path), None) => Host::Unix(path),
            (None, Some(address)) => {
                Host::Tcp { address, token_file: token_file.ok_or(ArgumentError::Missing("--token-file"))? }
            }
            (Some(_), Some(_)) => return Err(ArgumentError::Both),
            (None, None) => return Err(ArgumentError::Missing("--socket or --host")),
        };
        Ok(Self {
            host,
            sandbox: sandbox.ok_or(ArgumentError::Missing("--sandbox"))?,
            workspace: workspace.ok_or(ArgumentError::Missing("--workspace"))?,
            gateway,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{ArgumentError, Arguments, Host};

    fn parse(line: &str) -> Result<Arguments, ArgumentError> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn a_command_line_is_read() {
        let arguments = parse("--socket /s --sandbox=x --workspace /w --gateway-port-listen 127.0.0.1:8080").unwrap();
        assert_eq!((arguments.sandbox.as_str(), arguments.gateway.unwrap().port()), ("x", 8080));
        assert_eq!(parse("--socket /s --sandbox x --workspace /w --no-gateway").unwrap().gateway, None);
    }

    #[test]
    fn a_host_of_the_network_is_read() {
        let arguments =
            parse("--host tcp:10.0.0.1:4310 --token-file /t --sandbox x --workspace /w --no-gateway").unwrap();
        let host = Host::Tcp { address: "10.0.0.1:4310".parse().unwrap(), token_file: "/t".into() };
        assert_eq!(arguments.host, host);
        assert!(parse("--host tcp:[fd00::1]:4310 --token-file /t --sandbox x --workspace /w").is_ok());
        for wrong in ["10.0.0.1:4310", "tcp:10.0.0.1", "tcp:runner:4310", "udp:10.0.0.1:1"] {
            let line = format!("--host {wrong} --token-file /t --sandbox x --workspace /w");
            assert_eq!(parse(&line), Err(ArgumentError::Value("--host")), "{wrong}");
        }
        let missing = parse("--host tcp:10.0.0.1:4310 --sandbox x --workspace /w");
        assert_eq!(missing, Err(ArgumentError::Missing("--token-file")));
        let both = parse("--socket /s --host tcp:10.0.0.1:4310 --token-file /t --sandbox x --workspace /w");
        assert_eq!(both, Err(ArgumentError::Both));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(parse("--socket /s --sandbox x"), Err(ArgumentError::Missing("--workspace")));
        assert_eq!(parse("--socket"), Err(ArgumentError::Value("--socket")));
        assert_eq!(parse("--gateway-port-listen x"), Err(ArgumentError::Value("--gateway-port-listen")));
        assert_eq!(parse("--nonsense 1"), Err(ArgumentError::Unknown("--nonsense".to_owned())));
    }
}
