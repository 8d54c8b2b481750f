//! Requests as they reach a server, and answers as they come back.

use std::sync::{Arc, Mutex};

use crate::server::{self, Answer};
use ash_client::{AgentFile, Client, CreateSession, Deployment, SessionQuery, Upload};

const AGENT: &str = r#"{"agent":{"id":"1","name":"a","version":2,"path":"","createdAt":"x","updatedAt":"y"}}"#;

#[tokio::test]
async fn a_key_travels_and_names_are_escaped() {
    let (address, requests) = server::start(|_| Answer::Whole(200, "", AGENT.into())).await;
    let key = "ash_secret".to_owned().into();
    let client = Client::new(&format!("http://{address}/"), Some(&key)).unwrap();
    assert_eq!(client.agent("a/b c").await.unwrap().version, 2);
    let requests = requests.lock().unwrap();
    assert_eq!(requests[0].line, "GET /api/agents/a%2Fb%20c HTTP/1.1");
    assert_eq!(requests[0].header("authorization"), Some("Bearer ash_secret"));
    assert!(!format!("{client:?}").contains("ash_secret"));
}

#[tokio::test]
async fn a_deployment_tells_how_far_it_got() {
    let (address, requests) = server::start(|_| Answer::Whole(201, "", AGENT.into())).await;
    let client = Client::new(&format!("http://{address}"), None).unwrap();
    let deployment = Deployment {
        name: "a".into(),
        files: vec![AgentFile { path: "CLAUDE.md".into(), content: "A".repeat(300_000), executable: false }],
        ..Deployment::default()
    };
    let told = Arc::new(Mutex::new((0, 0)));
    let kept = told.clone();
    client
        .deploy(&deployment, move |upload| {
            let mut told = kept.lock().unwrap();
            match upload {
                Upload::Begins(bytes) => told.0 = bytes,
                Upload::Sent(bytes) => told.1 += bytes,
            }
        })
        .await
        .unwrap();
    let body = &requests.lock().unwrap()[0].body;
    assert_eq!(*body, serde_json::to_string(&deployment).unwrap());
    let length = body.len() as u64;
    assert_eq!(*told.lock().unwrap(), (length, length));
}

#[tokio::test]
async fn sessions_are_made_and_listed() {
    let session = r#"{"id":"1","agentName":"a","status":"active","createdAt":"x","lastActiveAt":"y","sandboxId":""}"#;
    let (address, requests) = server::start(move |seen| {
        let one = seen.line.starts_with("POST");
        let body = if one { format!(r#"{{"session":{session}}}"#) } else { format!(r#"{{"sessions":[{session}]}}"#) };
        Answer::Whole(200, "", body)
    })
    .await;
    let client = Client::new(&format!("http://{address}"), None).unwrap();
    let made = client.create_session(&CreateSession { agent: "a".into(), ..CreateSession::default() }).await.unwrap();
    assert_eq!(made.status, "active");
    let query = SessionQuery { agent: Some("a".into()), limit: Some(5), ..SessionQuery::default() };
    assert_eq!(client.sessions(&query).await.unwrap(), [made]);
    let requests = requests.lock().unwrap();
    assert_eq!(requests[0].body, r#"{"agent":"a"}"#);
    assert_eq!(requests[1].line, "GET /api/sessions?agent=a&limit=5 HTTP/1.1");
}

#[tokio::test]
async fn errors_say_what_to_do() {
    let (address, _) = server::start(|seen| match seen.line.as_str() {
        line if line.contains("agents") => {
            Answer::Whole(401, "", r#"{"error":"Invalid API key","statusCode":401}"#.into())
        }
        line if line.contains("health") => Answer::Whole(200, "", "<html>".into()),
        _ => Answer::Whole(502, "", "upstream is away".into()),
    })
    .await;
    let client = Client::new(&format!("http://{address}"), None).unwrap();
    let unauthorised = client.agents().await.unwrap_err();
    assert_eq!(unauthorised.to_string(), "Invalid API key");
    assert!(unauthorised.hint().unwrap().contains("--api-key"));
    assert!(client.health().await.unwrap_err().hint().unwrap().contains("address of an Ash server"));
    assert!(client.session("x").await.unwrap_err().to_string().contains("502"));
    assert!(Client::new("localhost:4100", None).unwrap_err().hint().unwrap().contains("http://127.0.0.1:4100"));
}

#[tokio::test]
async fn nobody_there_is_said_at_once() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = Client::new(&format!("http://{address}"), None).unwrap();
    let error = client.health().await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("cannot reach http://{address}: ")), "{error}");
    assert!(error.hint().unwrap().contains("`ash serve`"));
}
