//! `ash chat` at a terminal: the conversation, Ctrl-C, and the way out.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use ash_e2e::harness::{TestApp, eventually, program};
use rustix::{
    fs::{Mode, OFlags, open},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};

/// A program at a terminal of its own, and everything that it shows.
struct Terminal {
    keyboard: File,
    shown: Arc<Mutex<Vec<u8>>>,
    process: Child,
}

impl Terminal {
    fn start(app: &TestApp, arguments: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
        grantpt(&master).expect("a terminal of ours");
        unlockpt(&master).expect("a terminal that can be opened");
        let name = ptsname(&master, Vec::new()).expect("its name");
        let side = open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).expect("its other side");
        let copy = |side: &OwnedFd| Stdio::from(side.try_clone().expect("a copy"));
        // The terminal has to be the program's own, or Ctrl-C would reach nobody.
        let process = Command::new("setsid")
            .arg("--ctty")
            .arg(program("ash"))
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TERM", "xterm-256color")
            .env("ASH_URL", format!("http://{}", app.address()))
            .env("ASH_API_KEY", app.api_key())
            .stdin(copy(&side))
            .stdout(copy(&side))
            .stderr(copy(&side))
            .spawn()
            .expect("ash starts");
        drop(side);
        let keyboard = File::from(master);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut screen, seen) = (keyboard.try_clone().expect("a copy"), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Reading fails when the other side is closed by all.
            while let Ok(count @ 1..) = screen.read(&mut bytes) {
                seen.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&bytes[..count]);
            }
        });
        Self { keyboard, shown, process }
    }

    fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("a keyboard");
    }

    fn screen(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Waits until a text is shown, behind what was seen before.
    async fn sees(&self, after: &mut usize, text: &str) {
        let screen = || self.screen();
        let start = *after;
        let wait = eventually(text, async || screen().get(start..)?.find(text).map(|at| start + at + text.len()));
        let bounded = tokio::time::timeout(std::time::Duration::from_secs(50), wait).await;
        *after = bounded.unwrap_or_else(|_| panic!("{text:?} is not shown: {:?}", screen()));
    }

    async fn exit_code(&mut self) -> Option<i32> {
        let process = &mut self.process;
        eventually("ash ends", async || process.try_wait().expect("its state")).await.code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation() {
    let app = TestApp::start().await;
    app.deploy("simple", &[("CLAUDE.md", "You are a simple agent.\n")]).await;
    let mut terminal = Terminal::start(&app, &["chat", "simple"]);
    let mut seen = 0;
    terminal.sees(&mut seen, "Ctrl-C interrupts a turn").await;
    terminal.sees(&mut seen, "> ").await;
    terminal.types("[[text: good morning]]\n");
    terminal.sees(&mut seen, "]]").await;
    terminal.sees(&mut seen, "good morning").await;
    terminal.sees(&mut seen, "> ").await;

    // A turn that never ends is interrupted, and the conversation goes on.
    terminal.types("[[text: listen]] [[delay: 600s]] [[text: never]]\n");
    terminal.sees(&mut seen, "never]]").await;
    terminal.sees(&mut seen, "listen").await;
    terminal.types(CTRL_C);
    terminal.sees(&mut seen, "Interrupting").await;
    terminal.sees(&mut seen, "> ").await;

    // A turn that fails says why.
    terminal.types("[[error: 400]]\n");
    terminal.sees(&mut seen, "API Error").await;
    terminal.sees(&mut seen, "> ").await;
    terminal.types("[[count]]\n");
    terminal.sees(&mut seen, "]]").await;
    terminal.sees(&mut seen, "4").await;
    terminal.sees(&mut seen, "> ").await;
    terminal.types(CTRL_D);
    terminal.sees(&mut seen, "Go on with it: ash chat simple --session").await;
    assert_eq!(terminal.exit_code().await, Some(0), "{}", terminal.screen());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_call_is_asked_about() {
    let app = TestApp::start().await;
    app.deploy("simple", &[("CLAUDE.md", "You are a simple agent.\n")]).await;
    let mut terminal = Terminal::start(&app, &["chat", "simple", "--permission-mode", "default"]);
    let mut seen = 0;
    terminal.sees(&mut seen, "> ").await;
    terminal.types("[[tool: Bash {\"command\":\"touch made && echo was-allowed\"}]] [[result]]\n");
    terminal.sees(&mut seen, "[[result]]").await;
    terminal.sees(&mut seen, "touch made").await;
    terminal.sees(&mut seen, "[y").await;
    terminal.types("y\n");
    terminal.sees(&mut seen, "was-allowed").await;
    terminal.sees(&mut seen, "> ").await;
    terminal.types(CTRL_D);
    assert_eq!(terminal.exit_code().await, Some(0), "{}", terminal.screen());
}

/// A stand-in for Claude Code takes no notice of an interrupt.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_interrupt_leaves_and_the_turn_goes_on() {
    let app = TestApp::builder().claude(program("stand-in-claude")).start().await;
    let session = app.session().await;
    let mut terminal = Terminal::start(&app, &["chat", "simple", "--session", &session.id]);
    let mut seen = 0;
    terminal.sees(&mut seen, "> ").await;
    terminal.types("[[burst: 3]] [[stubborn]]\n");
    terminal.sees(&mut seen, "stubborn]]").await;
    terminal.sees(&mut seen, "0 1 2").await;
    terminal.types(CTRL_C);
    terminal.sees(&mut seen, "Interrupting").await;
    terminal.types(CTRL_C);
    terminal.sees(&mut seen, "Left; the turn goes on.").await;
    terminal.sees(&mut seen, &format!("Go on with it: ash chat simple --session {}", session.id)).await;
    assert_eq!(terminal.exit_code().await, Some(130), "{}", terminal.screen());
    // The bridge ends what does not let itself be interrupted, and the session goes on.
    let turn = eventually("the session takes a message", async || {
        let sent = app.client.send_message(&session.id, &ash_client::Message::text("on")).await;
        Some(ash_e2e::harness::Turn::read(sent.ok()?).await)
    })
    .await;
    assert_eq!((turn.result().as_deref(), turn.error()), (Some("ok"), None), "{:?}", turn.names());
}
