//! What the gateway reports, as log lines. Counts are metrics too.

use ash_gateway::{EgressRefusal, EgressSink, UsageReport, UsageSink};

/// Logs the tokens of each model call.
pub(crate) struct UsageLog;

impl UsageSink for UsageLog {
    fn record(&self, report: UsageReport) {
        tracing::debug!(
            tenant = %report.tenant,
            session = %report.session,
            model = report.model.as_deref().unwrap_or_default(),
            input = report.usage.input,
            output = report.usage.output,
            "a model call ended"
        );
    }
}

/// Logs the hosts that sandboxes were refused.
pub(crate) struct RefusalLog;

impl EgressSink for RefusalLog {
    fn refused(&self, refusal: EgressRefusal) {
        tracing::info!(
            tenant = %refusal.tenant,
            session = %refusal.session,
            target = refusal.target,
            reason = %refusal.reason,
            "a host was refused"
        );
    }
}
