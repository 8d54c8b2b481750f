//! A bridge's connection, over a Unix socket or over the network: what the rest needs of either.

use std::io;

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{tcp, unix},
};

/// The half that is read.
pub(crate) enum ReadHalf {
    Unix(unix::OwnedReadHalf),
    Tcp(tcp::OwnedReadHalf),
}

/// The half that is written.
pub(crate) enum WriteHalf {
    Unix(unix::OwnedWriteHalf),
    Tcp(tcp::OwnedWriteHalf),
}

impl ReadHalf {
    /// Waits until there is something to read, without room for it.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Unix(half) => half.readable().await,
            Self::Tcp(half) => half.readable().await,
        }
    }

    pub(crate) async fn read_buf(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Unix(half) => half.read_buf(buffer).await,
            Self::Tcp(half) => half.read_buf(buffer).await,
        }
    }

    pub(crate) fn try_read_buf(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Unix(half) => half.try_read_buf(buffer),
            Self::Tcp(half) => half.try_read_buf(buffer),
        }
    }
}

impl WriteHalf {
    pub(crate) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Unix(half) => half.write_all(bytes).await,
            Self::Tcp(half) => half.write_all(bytes).await,
        }
    }
}
