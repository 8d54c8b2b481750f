//! Reads the command line and runs the bridge.

use std::process::ExitCode;

use ash_bridge::{args::Arguments, bridge, descendants, report::report};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            report("usage", &error.to_string());
            return ExitCode::from(2);
        }
    };
    descendants::adopt_orphans();
    let ended = Builder::new_current_thread().enable_all().build().map(|runtime| {
        let ended = runtime.block_on(bridge::run(arguments, terminated()));
        drop(runtime);
        ended
    });
    // Nothing of the sandbox outlives its bridge.
    descendants::kill_all_of(std::process::id());
    match ended {
        Ok(Ok(end)) => {
            report("ended", &format!("{end:?}"));
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => {
            report("failed", &error.to_string());
            ExitCode::FAILURE
        }
        Err(error) => {
            report("failed", &format!("the runtime cannot be built: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Returns at SIGTERM; reaps orphans meanwhile.
async fn terminated() {
    let (Ok(mut terminate), Ok(mut children)) = (signal(SignalKind::terminate()), signal(SignalKind::child())) else {
        return std::future::pending().await;
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => return,
            _ = children.recv() => descendants::reap_orphans(),
        }
    }
}
