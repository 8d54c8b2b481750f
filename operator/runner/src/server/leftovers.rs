//! What an earlier life of the runner left on the disk: a coordinator that was started anew learns from it whose sessions are here.

use std::path::Path;

use ash_core::{
    fleet::Held,
    id::{SandboxId, SessionId},
};

/// Folders that are reported at the most; sessions of others wake wherever there is room.
const MAX_FOLDERS: usize = 100_000;

/// The sessions on the sandboxes in a data directory, and those with files in it. A folder that has no session's name yet stands
/// for the session that the store has on that sandbox.
pub fn leftovers(data: &Path) -> (Vec<Held>, Vec<SessionId>) {
    let Ok(folders) = std::fs::read_dir(data.join("sandboxes")) else { return (Vec::new(), Vec::new()) };
    let (mut held, mut homes) = (Vec::new(), Vec::new());
    for folder in folders.flatten().take(MAX_FOLDERS) {
        let Some(session) = folder.file_name().to_str().and_then(|name| name.parse::<SessionId>().ok()) else {
            continue;
        };
        homes.push(session);
        let sandbox = ash_sandbox::recorded_id(&folder.path()).and_then(|id| id.parse::<SandboxId>().ok());
        held.extend(sandbox.map(|sandbox| Held { session, sandbox }));
    }
    (held, homes)
}
