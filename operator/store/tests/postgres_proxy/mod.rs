//! A proxy before Postgres that cuts a connection between a statement and its answer.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code, missing_docs)]

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
};

/// Cuts the connection that says this, once the server has answered; then it is empty.
type Needle = Arc<Mutex<Option<Vec<u8>>>>;

pub struct Proxy {
    address: SocketAddr,
    needle: Needle,
    full: Arc<AtomicBool>,
}

impl Proxy {
    pub async fn start(server: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, needle) = (listener.local_addr().unwrap(), Needle::default());
        let of_connections = needle.clone();
        let full = Arc::new(AtomicBool::new(false));
        let is_full = Arc::clone(&full);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if is_full.load(Ordering::Relaxed) {
                    continue;
                }
                let server = UnixStream::connect(&server).await.unwrap();
                tokio::spawn(pass(client, server, of_connections.clone()));
            }
        });
        Self { address, needle, full }
    }

    pub fn url(&self) -> String {
        format!("postgres://ash@{}/postgres?sslmode=disable", self.address)
    }

    /// Takes no more connections; those that there are stay.
    pub fn fill(&self) {
        self.full.store(true, Ordering::Relaxed);
    }

    pub fn cut_at(&self, text: &str) {
        *self.needle.lock().unwrap() = Some(text.as_bytes().to_vec());
    }

    pub fn has_cut(&self) -> bool {
        self.needle.lock().unwrap().is_none()
    }
}

async fn pass(mut client: TcpStream, mut server: UnixStream, needle: Needle) -> std::io::Result<()> {
    let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let asked = &asked[..read?];
                if asked.is_empty() {
                    return Ok(());
                }
                server.write_all(asked).await?;
                let is_here = needle.lock().unwrap().take_if(|needle| contains(asked, needle)).is_some();
                if is_here {
                    // The answer says that it was carried out. Nobody hears it.
                    let _ = server.read(&mut answered).await?;
                    return Ok(());
                }
            }
            read = server.read(&mut answered) => {
                let answered = &answered[..read?];
                if answered.is_empty() {
                    return Ok(());
                }
                client.write_all(answered).await?;
            }
        }
    }
}

fn contains(text: &[u8], needle: &[u8]) -> bool {
    text.windows(needle.len()).any(|window| window == needle)
}
