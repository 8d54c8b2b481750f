//! The CONNECT proxy over real sockets. Names are answered by a scripted resolver.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{World, limits, soon, until, world_with};
use ash_gateway::{EgressConfig, EgressPolicy, Epoch, Limits, RefusalReason, Resolve};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Answers from a table; a name that is not in it never gets an answer.
#[derive(Default)]
struct Table {
    names: Mutex<HashMap<String, Vec<IpAddr>>>,
    calls: AtomicUsize,
}

impl Resolve for Table {
    fn resolve(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        // A second question gets another answer: rebinding.
        let answer = self.names.lock().unwrap().remove(&name);
        async move {
            match answer {
                Some(addresses) => Ok(addresses),
                None => futures::future::pending().await,
            }
        }
        .boxed()
    }
}

fn nowhere() -> SocketAddr {
    "127.0.0.1:9".parse().unwrap()
}

fn world(allow: &[&str], names: &[(&str, &[&str])], limits: Limits) -> (World, Arc<Table>) {
    let table = Arc::new(Table::default());
    for (name, addresses) in names {
        let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        table.names.lock().unwrap().insert((*name).to_owned(), addresses);
    }
    let mut egress = EgressConfig { resolver: table.clone(), ..EgressConfig::default() };
    for rule in allow {
        match rule.parse() {
            Ok(network) => egress.allow.networks.push(network),
            Err(_) => egress.allow.hosts.push(rule.parse().unwrap()),
        }
    }
    (world_with(nowhere(), egress, limits), table)
}

/// A server that answers every byte with itself.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_permitted_host_is_reached_and_half_closes_work() {
    let port = echo().await.port();
    let names: &[(&str, &[&str])] = &[("git.internal", &["127.0.0.1"])];
    let (world, table) = world(&[&format!("git.internal:{port}")], names, limits());
    let rule = format!("git.internal:{port}").parse().unwrap();
    let world = world.bound(EgressPolicy::Allowlist(vec![rule]));
    let mut tunnel = world.connect(&format!("Git.Internal.:{port}")).await;
    assert_eq!(tunnel.status, 200, "{}", tunnel.head);
    let sent = vec![b'x'; 300_000];
    let (mut read, mut write) = tunnel.stream.split();
    let mut back = Vec::new();
    let (written, _) = soon(async {
        tokio::join!(
            async {
                write.write_all(&sent).await?;
                write.shutdown().await
            },
            read.read_to_end(&mut back)
        )
    })
    .await;
    written.unwrap();
    assert_eq!(back.len(), sent.len());
    assert_eq!(table.calls.load(Ordering::SeqCst), 1, "a name is looked up once");
}

#[tokio::test]
async fn names_that_lead_inside_are_refused_and_reported() {
    let names: &[(&str, &[&str])] = &[
        ("rebind.example", &["127.0.0.1"]),
        ("mixed.example", &["93.184.216.34", "10.0.0.1"]),
        ("mapped.example", &["::ffff:169.254.169.254"]),
        ("six.example", &["2606:4700::1", "fd00:ec2::254"]),
    ];
    let (world, _) = world(&[], names, limits());
    let world = world.bound(EgressPolicy::Public);
    for (name, _) in names {
        let refused = world.connect(&format!("{name}:443")).await;
        assert_eq!(refused.status, 403, "{name}");
        assert!(refused.head.contains("x-ash-egress: Ash egress: "), "{}", refused.head);
        assert!(refused.head.contains("is not a public address"), "{}", refused.head);
        // The status line says it too: curl shows nothing else.
        let line = refused.head.lines().next().unwrap();
        assert!(line.contains(name), "{line}");
    }
    let reports = world.seen.refused.lock().unwrap();
    assert_eq!(reports.len(), names.len());
    assert_eq!(reports[0].target, "rebind.example:443");
    assert!(matches!(reports[0].reason, RefusalReason::NotPublic(..)));
}

#[tokio::test]
async fn literals_in_every_disguise_are_refused() {
    let (world, table) = world(&[], &[], limits());
    let world = world.bound(EgressPolicy::Public);
    for target in [
        "127.0.0.1:80",
        "127.0.0.1.:80",
        "2130706433:80",
        "0x7f000001:80",
        "0177.0.0.1:80",
        "127.1:80",
        "[::1]:80",
        "[::ffff:127.0.0.1]:80",
        "[::ffff:a9fe:a9fe]:80",
        "[64:ff9b::a00:1]:80",
        "169.254.169.254:80",
        "10.0.0.1:443",
        "100.64.0.1:443",
        "0.0.0.0:80",
        "user@10.0.0.1:80",
        "example.com:0",
    ] {
        let refused = world.connect(target).await;
        // Some are not even an authority for the HTTP parser.
        assert!(matches!(refused.status, 400 | 403), "{target}: {}", refused.head);
    }
    assert_eq!(table.calls.load(Ordering::SeqCst), 0, "nothing was looked up");
}

#[tokio::test]
async fn the_mode_decides() {
    let names: &[(&str, &[&str])] = &[("a.example", &["127.0.0.1"])];
    let (model, table) = world(&["127.0.0.0/8"], names, limits());
    let model = model.bound(EgressPolicy::Model);
    let refused = model.connect("a.example:443").await;
    assert_eq!(refused.status, 403);
    assert!(refused.head.contains("egress mode model"), "{}", refused.head);

    let (listed, _) = world(&["127.0.0.0/8"], names, limits());
    let listed = listed.bound(EgressPolicy::Allowlist(vec!["b.example".parse().unwrap()]));
    let refused = listed.connect("a.example:443").await;
    assert_eq!(refused.status, 403);
    assert!(refused.head.contains("not on this agent's egress allowlist"));
    assert_eq!(table.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn without_a_session_there_is_no_tunnel() {
    let port = echo().await.port();
    let (world, _) = world(&["127.0.0.0/8"], &[], limits());
    let target = format!("127.0.0.1:{port}");
    assert_eq!(world.connect(&target).await.status, 503);
    world.gateway.register_unclaimed(world.sandbox).unwrap();
    assert_eq!(world.connect(&target).await.status, 403);
    let world = world.bound(EgressPolicy::Public);
    let refused = world.connect_with(&target, "ash-sbx-wrong").await;
    assert_eq!(refused.status, 407);
    assert!(refused.head.contains("proxy-authenticate: Basic"));
    let mut tunnel = world.connect(&target).await;
    assert_eq!(tunnel.status, 200);

    tunnel.stream.write_all(b"x").await.unwrap();
    assert_eq!(soon(tunnel.stream.read_u8()).await.unwrap(), b'x');
    world.gateway.release(world.sandbox, Epoch(1)).unwrap();
    assert!(matches!(soon(tunnel.stream.read(&mut [0])).await, Ok(0) | Err(_)));
    assert_eq!(world.connect(&target).await.status, 403);
}

#[tokio::test]
async fn bounds_hold() {
    let port = echo().await.port();
    let mut small = limits();
    small.tunnels = 2;
    small.lookups = 1;
    small.lookup = Duration::from_millis(50);
    small.refusals_per_minute = 2;
    let (world, table) = world(&["127.0.0.0/8"], &[], small);
    let world = world.bound(EgressPolicy::Public);
    let target = format!("127.0.0.1:{port}");
    let first = world.connect(&target).await;
    let second = world.connect(&target).await;
    assert_eq!((first.status, second.status), (200, 200));
    assert_eq!(world.connect(&target).await.status, 503);
    drop(first);
    // Its place is free again as soon as both directions have ended.
    let mut status = 0;
    soon(async {
        while status != 200 {
            status = world.connect(&target).await.status;
        }
    })
    .await;
    drop(second);

    let mut slow = 0;
    soon(async {
        while slow != 504 {
            slow = world.connect("slow.example:443").await.status;
        }
    })
    .await;
    // That lookup still runs and keeps its place.
    assert_eq!(world.connect("slow.example:443").await.status, 503);
    assert_eq!(table.calls.load(Ordering::SeqCst), 1);

    for _ in 0..4 {
        let refused = world.connect("10.0.0.1:1").await.status;
        assert!(matches!(refused, 403 | 503));
    }
    assert!(world.seen.refused.lock().unwrap().len() <= 2);
}

#[tokio::test]
async fn a_silent_tunnel_is_closed() {
    let port = echo().await.port();
    let mut small = limits();
    small.tunnel_idle = Duration::from_millis(50);
    let (world, _) = world(&["127.0.0.0/8"], &[], small);
    let world = world.bound(EgressPolicy::Public);
    let mut tunnel = world.connect(&format!("127.0.0.1:{port}")).await;
    assert_eq!(tunnel.status, 200);
    assert!(matches!(soon(tunnel.stream.read(&mut [0])).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn connections_beyond_the_bound_wait() {
    let port = echo().await.port();
    let mut small = limits();
    small.connections = 1;
    let (world, _) = world(&["127.0.0.0/8"], &[], small);
    let world = world.bound(EgressPolicy::Public);
    let target = format!("127.0.0.1:{port}");
    let first = world.connect(&target).await;
    let mut registry = prometheus_client::registry::Registry::default();
    world.gateway.register_metrics(&mut registry);
    let at_bound = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text.contains("ash_gateway_connections_at_bound_total 1")
    };
    let (second, ()) = tokio::join!(world.connect(&target), async {
        until(at_bound).await;
        drop(first);
    });
    assert_eq!(second.status, 200);
}

#[tokio::test]
async fn a_head_and_a_target_that_are_too_long_are_counted() {
    let (world, _) = world(&["127.0.0.0/8"], &[], limits());
    let world = world.bound(EgressPolicy::Public);
    assert_ne!(world.connect(&format!("{}:443", "a".repeat(300))).await.status, 200);
    let mut stream = TcpStream::connect(world.attachment.local_address()).await.unwrap();
    let head = format!("GET /v1/models HTTP/1.1\r\nhost: a\r\nx-long: {}\r\n\r\n", "x".repeat(200_000));
    // It is answered before all of it was sent.
    let _ = stream.write_all(head.as_bytes()).await;
    let mut status = [0; 12];
    soon(stream.read_exact(&mut status)).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 431");
    drop(stream);
    let mut registry = prometheus_client::registry::Registry::default();
    world.gateway.register_metrics(&mut registry);
    for metric in ["ash_gateway_targets_shortened_total 1", "ash_gateway_heads_too_long_total 1"] {
        until(|| {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text.contains(metric)
        })
        .await;
    }
}
