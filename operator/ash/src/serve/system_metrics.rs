//! Counts that the kernel or the sandboxes' back end keeps, as metrics.

use std::sync::Arc;

use ash_sandbox::ProcessBackend;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};

/// The kernel's counts of the network that the server is in: a line of names, then a line of values, for each group.
const NETWORK_COUNTS: &str = "/proc/net/netstat";

/// Reads the counts whenever `GET /metrics` does.
#[derive(Debug)]
pub(super) struct SystemMetrics(pub(super) Arc<ProcessBackend>);

impl Collector for SystemMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counts = std::fs::read_to_string(NETWORK_COUNTS).unwrap_or_default();
        let overflows = network_count(&counts, "ListenOverflows").unwrap_or(0);
        let mut counter = |name, help, value: u64| {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(metric)
        };
        counter(
            "ash_api_listen_overflows",
            "Connections that met a full queue of a listener, of all in the server's network.",
            overflows,
        )?;
        counter(
            "ash_sandbox_groups_left",
            "Control groups of failed starts that were still in use.",
            self.0.groups_left(),
        )
    }
}

/// The count of this name in the kernel's extended TCP counts.
fn network_count(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.find(|(found, _)| *found == name)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::network_count;

    #[test]
    fn a_count_is_found_by_its_name() {
        let text = "TcpExt: A ListenOverflows B\nTcpExt: 1 22 3\nIpExt: A ListenOverflows\nIpExt: 4 5\n";
        assert_eq!(network_count(text, "ListenOverflows"), Some(22));
        assert_eq!(network_count(text, "C"), None);
        assert_eq!(network_count("", "A"), None);
    }
}
