//! Reads a bridge's greeting: from a Unix socket with the listener that may come with it, or from the network.

use std::{
    io::{self, IoSliceMut},
    net::TcpListener,
    os::fd::{AsFd, OwnedFd},
};

use ash_protocol::{
    frame::{Frame, FrameKind},
    message::Hello,
    version,
};
use bytes::BytesMut;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, sockopt};
use tokio::{io::Interest, net::UnixStream};

use super::{
    ConnectionError, Greeted,
    stream::{ReadHalf, WriteHalf},
};
use crate::enclosure::Arrived;

/// The longest greeting. A greeting is a few hundred bytes; whoever sends more is no bridge.
const MAX_HELLO_BYTES: usize = 64 << 10;

/// Reads a bridge's greeting.
pub(crate) async fn greet(arrived: Arrived) -> Result<Greeted, ConnectionError> {
    match arrived {
        Arrived::Unix(stream) => {
            let mut buffer = BytesMut::new();
            let mut listener = None;
            let hello = loop {
                if let Some(hello) = hello(&mut buffer)? {
                    break hello;
                }
                let mut piece = [0; 4096];
                let (count, descriptor) = stream.async_io(Interest::READABLE, || receive(&stream, &mut piece)).await?;
                if count == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                if let Some(descriptor) = descriptor {
                    listener = Some(checked_listener(descriptor)?);
                }
                buffer.extend_from_slice(&piece[..count]);
            };
            let (read, write) = stream.into_split();
            Ok(Greeted { read: ReadHalf::Unix(read), write: WriteHalf::Unix(write), buffer, hello, listener })
        }
        Arrived::Tcp(stream, mut buffer) => {
            let (read, write) = stream.into_split();
            let mut read = ReadHalf::Tcp(read);
            let hello = loop {
                if let Some(hello) = hello(&mut buffer)? {
                    break hello;
                }
                if read.read_buf(&mut buffer).await? == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            };
            Ok(Greeted { read, write: WriteHalf::Tcp(write), buffer, hello, listener: None })
        }
    }
}

/// The greeting, where it is whole.
fn hello(buffer: &mut BytesMut) -> Result<Option<Hello>, ConnectionError> {
    // Looked at before the frame is decoded, which would reserve as much as it announces.
    if buffer.first_chunk().is_some_and(|length| u32::from_le_bytes(*length) as usize > MAX_HELLO_BYTES) {
        return Err(ConnectionError::Greeting("the bridge's greeting is too long".to_owned()));
    }
    let Some(frame) = Frame::decode(buffer)? else { return Ok(None) };
    if frame.kind != FrameKind::Hello {
        return Err(ConnectionError::Greeting("the bridge did not begin with a greeting".to_owned()));
    }
    let hello: Hello = serde_json::from_slice(&frame.body)
        .map_err(|error| ConnectionError::Greeting(format!("the bridge's greeting cannot be read: {error}")))?;
    if !version::CURRENT.serves(hello.protocol) {
        return Err(ConnectionError::Greeting(format!(
            "the bridge speaks protocol {}.{}, this server {}.{}: update the server",
            hello.protocol.major,
            hello.protocol.minor,
            version::CURRENT.major,
            version::CURRENT.minor
        )));
    }
    Ok(Some(hello))
}

fn receive(stream: &UnixStream, piece: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::net::recvmsg(
        stream.as_fd(),
        &mut [IoSliceMut::new(piece)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((message.bytes, descriptor))
}

/// What comes out of a sandbox may be any file: only a TCP socket that listens is taken.
fn checked_listener(descriptor: OwnedFd) -> Result<TcpListener, ConnectionError> {
    let listens = sockopt::socket_acceptconn(&descriptor).unwrap_or(false);
    let kind = sockopt::socket_type(&descriptor).ok();
    let domain = sockopt::socket_domain(&descriptor).ok();
    if listens && kind == Some(rustix::net::SocketType::STREAM) && domain == Some(rustix::net::AddressFamily::INET) {
        Ok(TcpListener::from(descriptor))
    } else {
        Err(ConnectionError::Greeting("what came with the greeting is no listening TCP socket".to_owned()))
    }
}
