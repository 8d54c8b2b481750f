//! Stands in for Claude Code where the program itself would hide what is measured or broken: it speaks the same lines, answers at
//! once, and does on request what Claude Code does only when it fails. Only the standard library, so that a thousand of them fit.
//!
//! Directives in a user's text, read in order:
//!
//! | directive | what happens |
//! |---|---|
//! | `[[burst: 2000]]` | prints that many text deltas |
//! | `[[permission: Bash {"command":"x"}]]` | asks for consent, then says how it was answered |
//! | `[[garbage]]` | prints a line that is no JSON |
//! | `[[long: 1000000]]` | prints a line of that many bytes |
//! | `[[half]]` | prints half a line and exits |
//! | `[[exit: 3]]` | exits with that code |
//! | `[[hang]]` | says nothing more until it is interrupted |
//! | `[[stubborn]]` | says nothing more, and not even an interrupt ends it |
//! | `[[memory: 50000000]]` | takes that many bytes and keeps them |
//! | `[[count]]` | says how many user messages the conversation has |
//!
//! While there is a file `hold` in its working folder, it does not begin.

use std::{
    env,
    fs::{self, OpenOptions},
    io::{self, BufRead, Read, StdinLock, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

/// What stands for the long lists of a real `system/init`.
const PADDING_BYTES: usize = 6000;
/// How often it looks whether it may begin.
const HOLD_INTERVAL: Duration = Duration::from_millis(10);

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let mut output = io::stdout();
    if arguments.iter().any(|argument| argument == "--version") {
        let written = writeln!(output, "2.1.330 (Claude Code)");
        return if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    while Path::new("hold").exists() {
        thread::sleep(HOLD_INTERVAL);
    }
    let resume = arguments.iter().find_map(|argument| argument.strip_prefix("--resume=")).map(str::to_owned);
    match StandIn::new(resume) {
        Ok(stand_in) => stand_in.run(io::stdin().lock()),
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

struct StandIn {
    session: String,
    folder: PathBuf,
    messages: usize,
    memory: Vec<u8>,
    asked: usize,
}

/// What ends the work on a message early.
enum Stop {
    Exit(u8),
    Closed,
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

impl StandIn {
    fn new(resume: Option<String>) -> Result<Self, String> {
        let home = env::var("CLAUDE_CONFIG_DIR")
            .map(PathBuf::from)
            .or_else(|_| env::var("HOME").map(|home| PathBuf::from(home).join(".claude")))
            .map_err(|_| "HOME is not set".to_owned())?;
        let directory = env::current_dir().map_err(|error| error.to_string())?;
        let name: String = directory
            .to_string_lossy()
            .chars()
            .map(|char| if char.is_ascii_alphanumeric() { char } else { '-' })
            .collect();
        let folder = home.join("projects").join(name);
        let mut messages = 0;
        if let Some(session) = &resume {
            let transcript = fs::read_to_string(folder.join(format!("{session}.jsonl")))
                .map_err(|_| format!("No conversation found with session ID: {session}"))?;
            messages = transcript.matches(r#""type":"user""#).count();
        }
        Ok(Self { session: resume.unwrap_or_else(uuid), folder, messages, memory: Vec::new(), asked: 0 })
    }

    fn run(mut self, mut input: StdinLock<'_>) -> ExitCode {
        let mut line = String::new();
        loop {
            line.clear();
            match input.read_line(&mut line) {
                Ok(0) => return ExitCode::SUCCESS,
                Ok(_) => {}
                Err(_) => return ExitCode::FAILURE,
            }
            match self.take(&line, &mut input) {
                Ok(()) => {}
                Err(Stop::Exit(code)) => return ExitCode::from(code),
                Err(Stop::Closed) => return ExitCode::FAILURE,
            }
        }
    }

    fn take(&mut self, line: &str, input: &mut StdinLock<'_>) -> Result<(), Stop> {
        if line.contains(r#""type":"control_request""#) {
            return Ok(print(&answer(line))?);
        }
        if !line.contains(r#""type":"user""#) {
            return Ok(());
        }
        let message = field_last(line, r#""uuid":""#).unwrap_or_default();
        if line.contains(r#""content":"/clear""#) {
            return self.clear(&message);
        }
        self.turn(line, &message, input)
    }

    fn clear(&mut self, message: &str) -> Result<(), Stop> {
        let old = std::mem::replace(&mut self.session, uuid());
        self.messages = 0;
        let mut out =
            format!(r#"{{"type":"conversation_reset","new_conversation_id":"{}","session_id":"{old}"}}"#, uuid());
        out.push('\n');
        out.push_str(&self.init());
        out.push_str(&self.result(message, "", 0, "success"));
        Ok(print(&out)?)
    }

    fn init(&self) -> String {
        format!(
            r#"{{"type":"system","subtype":"init","session_id":"{}","tools":["{}"],"mcp_servers":[],"claude_code_version":"2.1.330"}}{}"#,
            self.session,
            "x".repeat(PADDING_BYTES),
            "\n"
        )
    }

    fn result(&self, message: &str, text: &str, turns: usize, subtype: &str) -> String {
        format!(
            r#"{{"is_error":false,"duration_ms":1,"num_turns":{turns},"session_id":"{}","total_cost_usd":0.001,"usage":{{"input_tokens":10,"output_tokens":5,"padding":"{}"}},"result":"{text}","type":"result","subtype":"{subtype}","user_message_uuid":"{message}","user_message_uuids":["{message}"],"uuid":"{}"}}{}"#,
            self.session,
            "x".repeat(1000),
            uuid(),
            "\n"
        )
    }

    fn event(&self, event: &str) -> String {
        format!(
            r#"{{"type":"stream_event","event":{event},"session_id":"{}","parent_tool_use_id":null,"uuid":"{}","ttft_ms":1}}{}"#,
            self.session, "0a1b2c3d-0000-4000-8000-00000000abcd", "\n"
        )
    }

    fn delta(&self, text: &str) -> String {
        self.event(&format!(
            r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":"{text}"}}}}"#
        ))
    }

    fn record(&self, line: &str) -> Result<(), Stop> {
        fs::create_dir_all(&self.folder)?;
        let path = self.folder.join(format!("{}.jsonl", self.session));
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(file.write_all(line.as_bytes())?)
    }

    fn turn(&mut self, line: &str, message: &str, input: &mut StdinLock<'_>) -> Result<(), Stop> {
        self.messages += 1;
        self.record(&format!(
            "{{\"type\":\"user\",\"uuid\":\"{message}\",\"session\":\"{}\",\"length\":{}}}\n",
            self.session,
            line.len()
        ))?;
        let mut out = self.init();
        out.push_str(&self.event(
            r#"{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"stand-in","content":[],"usage":{"input_tokens":10,"output_tokens":1}}}"#,
        ));
        out.push_str(
            &self.event(r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#),
        );
        print(&out)?;
        let mut said = String::from("ok");
        for directive in line.split("[[").skip(1).filter_map(|rest| rest.split_once("]]").map(|(inside, _)| inside)) {
            let (name, value) = directive.split_once(':').map_or((directive, ""), |(name, value)| (name, value.trim()));
            let number = value.parse().unwrap_or(0);
            match name {
                "burst" => {
                    let mut deltas = String::new();
                    for n in 0..number {
                        deltas.push_str(&self.delta(&format!("{n} ")));
                    }
                    print(&deltas)?;
                }
                "garbage" => print("this is \u{1b} no JSON\n")?,
                "long" => print(&format!(r#"{{"type":"novelty","text":"{}"}}{}"#, "x".repeat(number), "\n"))?,
                "half" => {
                    print(r#"{"type":"assistant","message":{"conte"#)?;
                    return Err(Stop::Exit(0));
                }
                "exit" => {
                    eprintln!("the stand-in was told to exit");
                    return Err(Stop::Exit(u8::try_from(number).unwrap_or(1)));
                }
                "hang" => return self.interrupted(message, input),
                "stubborn" => {
                    let _ = input.bytes().count();
                    return Err(Stop::Closed);
                }
                "memory" => self.memory = vec![1; number],
                "count" => said = format!("messages: {}", self.messages),
                "permission" => {
                    let Some(answer) = self.ask(value, input)? else { return self.interrupted_result(message) };
                    said = answer;
                }
                _ => {}
            }
        }
        let uuid = uuid();
        let assistant = format!(
            r#"{{"type":"assistant","message":{{"id":"msg_1","role":"assistant","content":[{{"type":"text","text":"{said}"}}]}},"session_id":"{}","parent_tool_use_id":null,"uuid":"{uuid}"}}{}"#,
            self.session, "\n"
        );
        let mut out = self.delta(&said) + &assistant;
        out.push_str(&self.event(r#"{"type":"content_block_stop","index":0}"#));
        out.push_str(
            &self.event(r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":5}}"#),
        );
        out.push_str(&self.event(r#"{"type":"message_stop"}"#));
        self.record(&format!("{{\"type\":\"assistant\",\"uuid\":\"{uuid}\"}}\n"))?;
        out.push_str(&self.result(message, &said, 1, "success"));
        Ok(print(&out)?)
    }

    /// Asks for consent; `None` where an interrupt came instead.
    fn ask(&mut self, tool: &str, input: &mut StdinLock<'_>) -> Result<Option<String>, Stop> {
        let (name, value) = tool.split_once(' ').unwrap_or((tool, "{}"));
        // In a user's line the input is part of a JSON string, so its quotes are escaped.
        let value = value.replace("\\\"", "\"");
        self.asked += 1;
        let id = format!("permission-{}", self.asked);
        print(&format!(
            r#"{{"type":"control_request","request_id":"{id}","request":{{"subtype":"can_use_tool","tool_name":"{name}","input":{value}}}}}{}"#,
            "\n"
        ))?;
        let mut line = String::new();
        while input.read_line(&mut line)? > 0 {
            if line.contains(r#""type":"control_response""#) && line.contains(&id) {
                return Ok(Some(if line.contains(r#""behavior":"allow""#) { "allowed" } else { "denied" }.to_owned()));
            }
            if line.contains(r#""type":"control_request""#) {
                if line.contains(r#""subtype":"interrupt""#) {
                    print(&format!(r#"{{"type":"control_cancel_request","request_id":"{id}"}}{}"#, "\n"))?;
                }
                print(&answer(&line))?;
                if line.contains(r#""subtype":"interrupt""#) {
                    return Ok(None);
                }
            }
            line.clear();
        }
        Err(Stop::Closed)
    }

    fn interrupted(&self, message: &str, input: &mut StdinLock<'_>) -> Result<(), Stop> {
        let mut line = String::new();
        while input.read_line(&mut line)? > 0 {
            if line.contains(r#""type":"control_request""#) {
                print(&answer(&line))?;
            }
            if line.contains(r#""subtype":"interrupt""#) {
                return self.interrupted_result(message);
            }
            line.clear();
        }
        Err(Stop::Closed)
    }

    fn interrupted_result(&self, message: &str) -> Result<(), Stop> {
        Ok(print(&self.result(message, "", 1, "error_during_execution"))?)
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes())?;
    output.flush()
}

/// The answer to a control request: yes, except to a model of this name.
fn answer(line: &str) -> String {
    let id = field_last(line, r#""request_id":""#).unwrap_or_default();
    let response = if line.contains(r#""model":"refused""#) {
        format!(r#"{{"subtype":"error","request_id":"{id}","error":"Model 'refused' not found"}}"#)
    } else {
        format!(r#"{{"subtype":"success","request_id":"{id}","response":{{}}}}"#)
    };
    format!(r#"{{"type":"control_response","response":{response}}}{}"#, "\n")
}

fn field_last(line: &str, key: &str) -> Option<String> {
    let start = line.rfind(key)? + key.len();
    Some(line[start..].split('"').next()?.to_owned())
}

/// A random UUID of version 4.
fn uuid() -> String {
    let mut bytes = [0; 16];
    if let Ok(mut file) = fs::File::open("/dev/urandom") {
        // Without random bytes every conversation would have the same name, and the tests would say so.
        let _ = file.read_exact(&mut bytes);
    }
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
