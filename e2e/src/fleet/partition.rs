//! A network between a runner and its coordinators that a test cuts: what is sent waits in it, as it does where packets are lost, and
//! comes, late, when it heals.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// Bytes that wait in one direction of a connection, beside what the sockets hold.
const BUFFER: usize = 64 << 10;

/// Everything between a runner and the others. Connects nobody any more when it is dropped.
#[derive(Debug)]
pub(super) struct Partition {
    whole: watch::Sender<bool>,
}

impl Partition {
    pub(super) fn new() -> Self {
        Self { whole: watch::Sender::new(true) }
    }

    /// Takes connections to `to`, and says where.
    pub(super) fn way_to(&self, to: SocketAddr) -> SocketAddr {
        let listener = StdListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket that does not block");
        let at = listener.local_addr().expect("an address");
        let listener = TcpListener::from_std(listener).expect("a listener");
        let whole = self.whole.subscribe();
        tokio::spawn(async move {
            let mut over = whole.clone();
            let taking = async {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(carry(stream, to, whole.clone()));
                }
            };
            tokio::select! {
                () = taking => {}
                // Until the sender is dropped.
                _ = over.wait_for(|_| false) => {}
            }
        });
        at
    }

    pub(super) fn cut(&self) {
        self.whole.send_replace(false);
    }

    pub(super) fn heal(&self) {
        self.whole.send_replace(true);
    }
}

/// Waits until something comes through; an error where nothing will any more.
async fn healed(whole: &mut watch::Receiver<bool>) -> io::Result<()> {
    whole.wait_for(|whole| *whole).await.map(|_| ()).map_err(|_| io::ErrorKind::BrokenPipe.into())
}

async fn carry(near: TcpStream, to: SocketAddr, mut whole: watch::Receiver<bool>) -> io::Result<()> {
    healed(&mut whole).await?;
    let far = TcpStream::connect(to).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ((near_reads, near_writes), (far_reads, far_writes)) = (near.into_split(), far.into_split());
    let there = pass(near_reads, far_writes, whole.clone());
    let (there, back) = tokio::join!(there, pass(far_reads, near_writes, whole));
    there.and(back)
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut whole: watch::Receiver<bool>) -> io::Result<()> {
    let mut bytes = vec![0; BUFFER];
    loop {
        let count = from.read(&mut bytes).await.unwrap_or(0);
        healed(&mut whole).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&bytes[..count]).await?;
    }
}
