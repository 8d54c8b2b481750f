//! The workspace as a tar stream: sends it, and unpacks one over it.

use std::{ffi::OsString, fs::File, io::Read, os::unix::ffi::OsStringExt, path::Path};

use ash_protocol::message::{Refusal, RefusalCategory};
use bytes::{Bytes, BytesMut};
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, fstat, mkdirat, readlinkat, statat, symlinkat, unlinkat},
    io::Errno,
};
use tar::{EntryType, Header};
use tokio::{sync::mpsc, task::yield_now};

use crate::{
    files::{NewFile, Walk, next_data},
    shared::{Caller, Input, refusal},
    work::{SLICE_BYTES, SLICE_ENTRIES, io_refusal},
    workspace::{Relative, Workspace},
};

/// Bytes of a block of a tar stream.
const BLOCK: usize = 512;

/// The most that the header of one entry may say in extensions (long names, pax fields).
const MAX_EXTENSION_BYTES: u64 = 64 << 10;

/// Entries that one archive may hold.
const MAX_ENTRIES: usize = 1_000_000;

fn invalid(what: &str, why: &str) -> Refusal {
    refusal(RefusalCategory::Invalid, format!("{what}: {why}"))
}

/// Sends regular files, folders and links of the workspace. What vanishes meanwhile is left out.
pub(crate) async fn send(workspace: &Workspace, caller: &Caller) -> Result<(), Refusal> {
    let mut walk = Walk::new(workspace, Path::new("")).map_err(|error| io_refusal("the workspace", error))?;
    let mut seen = 0_usize;
    loop {
        let next = walk.next().map_err(|error| io_refusal("the workspace", error))?;
        let Some((path, kind)) = next else { break };
        match send_entry(workspace, &path, kind, caller).await {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(io_refusal(&path.display().to_string(), error)),
        }
        seen += 1;
        if seen.is_multiple_of(SLICE_ENTRIES) {
            yield_now().await;
        }
    }
    caller.data(0, Bytes::from_static(&[0; 2 * BLOCK])).await;
    caller.end_data();
    Ok(())
}

async fn send_entry(workspace: &Workspace, path: &Path, kind: FileType, caller: &Caller) -> Result<(), Errno> {
    let opened = match kind {
        FileType::RegularFile => workspace.open_beneath(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW)?,
        FileType::Directory | FileType::Symlink => workspace.open_beneath(path, OFlags::PATH | OFlags::NOFOLLOW)?,
        // Sockets, pipes and devices are of no use elsewhere.
        _ => return Ok(()),
    };
    let status = fstat(&opened)?;
    if FileType::from_raw_mode(status.st_mode) != kind {
        return Ok(());
    }
    let mut header = Header::new_gnu();
    header.set_mode(status.st_mode & 0o777);
    header.set_mtime(u64::try_from(status.st_mtime).unwrap_or(0));
    header.set_size(0);
    // Only the headers are left to the builder: it knows how to write long names.
    let mut builder = tar::Builder::new(Vec::new());
    let failed = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::NAMETOOLONG);
    let mut left = 0;
    match kind {
        FileType::Symlink => {
            header.set_entry_type(EntryType::Symlink);
            let target = OsString::from_vec(readlinkat(&opened, "", Vec::new())?.into_bytes());
            builder.append_link(&mut header, path, Path::new(&target)).map_err(failed)?;
        }
        FileType::Directory => {
            header.set_entry_type(EntryType::Directory);
            builder.append_data(&mut header, path, std::io::empty()).map_err(failed)?;
        }
        _ => {
            left = u64::try_from(status.st_size).unwrap_or(0);
            header.set_size(left);
            builder.append_data(&mut header, path, std::io::empty()).map_err(failed)?;
        }
    }
    caller.data(0, std::mem::take(builder.get_mut()).into()).await;
    let padding = usize::try_from(left.next_multiple_of(BLOCK as u64) - left).unwrap_or(0);
    let mut file = File::from(opened);
    while left > 0 {
        let mut bytes = vec![0; SLICE_BYTES.min(usize::try_from(left).unwrap_or(SLICE_BYTES))];
        let count = file.read(&mut bytes).map_err(failed)?;
        if count > 0 {
            bytes.truncate(count);
        }
        // A file that became shorter is filled up with zeros: its size is said already.
        left -= bytes.len() as u64;
        caller.data(0, bytes.into()).await;
        yield_now().await;
    }
    caller.data(0, Bytes::from_static(&[0; BLOCK]).slice(..padding)).await;
    Ok(())
}

/// A stream that comes in pieces.
pub(crate) struct Stream {
    input: mpsc::Receiver<Input>,
    ended: bool,
    buffer: BytesMut,
}

impl Stream {
    pub(crate) fn new(input: mpsc::Receiver<Input>) -> Self {
        Self { input, ended: false, buffer: BytesMut::new() }
    }

    /// A line of at most so many bytes, without its end; `None` where the stream has ended, an error where it ended within one or
    /// the line is longer.
    pub(crate) async fn line(&mut self, most: usize) -> Result<Option<Bytes>, &'static str> {
        let mut looked_at = 0;
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.buffer[looked_at..]) {
                let mut line = self.buffer.split_to(looked_at + at + 1);
                line.truncate(looked_at + at);
                return Ok(Some(line.freeze()));
            }
            looked_at = self.buffer.len();
            if looked_at > most {
                return Err("a line is too long");
            }
            match next_data(&mut self.input, &mut self.ended).await {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err("it ends within an entry"),
            }
        }
    }

    /// Up to `most` bytes, at least one; `None` where the stream has ended.
    pub(crate) async fn some(&mut self, most: usize) -> Option<Bytes> {
        while self.buffer.is_empty() {
            self.buffer.extend_from_slice(&next_data(&mut self.input, &mut self.ended).await?);
        }
        let take = self.buffer.len().min(most);
        Some(self.buffer.split_to(take).freeze())
    }

    /// Exactly so many bytes.
    async fn exactly(&mut self, count: usize) -> Option<Bytes> {
        while self.buffer.len() < count {
            self.buffer.extend_from_slice(&next_data(&mut self.input, &mut self.ended).await?);
        }
        Some(self.buffer.split_to(count).freeze())
    }

    /// The padding behind so many bytes.
    async fn padding(&mut self, size: u64) -> Option<()> {
        let count = size.next_multiple_of(BLOCK as u64) - size;
        self.exactly(usize::try_from(count).ok()?).await.map(|_| ())
    }

    /// The rest, which is of no interest: the host sends it all the same.
    async fn skip_rest(&mut self) {
        self.buffer.clear();
        while next_data(&mut self.input, &mut self.ended).await.is_some() {}
    }
}

/// What extension entries said about the entry behind them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Extensions {
    fn read(&mut self, kind: EntryType, body: &[u8]) {
        let trimmed = || body.strip_suffix(b"\0").unwrap_or(body).to_vec();
        match kind {
            EntryType::GNULongName => self.path = Some(trimmed()),
            EntryType::GNULongLink => self.link = Some(trimmed()),
            EntryType::XHeader => {
                for field in tar::PaxExtensions::new(body).flatten() {
                    match field.key_bytes() {
                        b"path" => self.path = Some(field.value_bytes().to_vec()),
                        b"linkpath" => self.link = Some(field.value_bytes().to_vec()),
                        b"size" => self.size = field.value().ok().and_then(|size| size.parse().ok()),
                        _ => {}
                    }
                }
            }
            // Global pax headers say nothing that is needed here.
            _ => {}
        }
    }
}

/// Unpacks regular files, folders and links; anything else, and what leaves the workspace, is refused.
pub(crate) async fn unpack(workspace: &Workspace, max_bytes: u64, input: mpsc::Receiver<Input>) -> Result<(), Refusal> {
    let mut stream = Stream::new(input);
    let cut = || invalid("the archive", "it ends within an entry");
    let mut extensions = Extensions::default();
    let mut left = max_bytes;
    for _ in 0..MAX_ENTRIES {
        let Some(block) = stream.exactly(BLOCK).await else {
            return if stream.buffer.is_empty() { Ok(()) } else { Err(cut()) };
        };
        if block.iter().all(|byte| *byte == 0) {
            stream.skip_rest().await;
            return Ok(());
        }
        let header = Header::from_byte_slice(&block);
        if !checksum_fits(header) {
            return Err(invalid("the archive", "this is no tar stream"));
        }
        let kind = header.entry_type();
        let said = header.entry_size().map_err(|_| invalid("the archive", "an entry's size cannot be read"))?;
        if matches!(
            kind,
            EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader
        ) {
            if said > MAX_EXTENSION_BYTES {
                return Err(invalid("the archive", "an entry's header is too large"));
            }
            let body = stream.exactly(usize::try_from(said).unwrap_or(0)).await.ok_or_else(cut)?;
            stream.padding(said).await.ok_or_else(cut)?;
            extensions.read(kind, &body);
            continue;
        }
        let Extensions { path, link, size } = std::mem::take(&mut extensions);
        let name = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let size = size.unwrap_or(said);
        if name.split(|byte| *byte == b'/').all(|part| part.is_empty() || part == b".") && kind.is_dir() {
            continue;
        }
        let path = Relative::parse(&name)?;
        let what = path.to_string();
        let failed = |error| io_refusal(&what, error);
        let mode = header.mode().unwrap_or(0o644);
        match kind {
            EntryType::Regular | EntryType::Continuous => {
                left = left
                    .checked_sub(size)
                    .ok_or_else(|| invalid("the archive", &format!("its files take more than {max_bytes} bytes")))?;
                let mut file = NewFile::create(workspace.parent(&path, true)?).map_err(failed)?;
                let mut rest = size;
                while rest > 0 {
                    let most = SLICE_BYTES.min(usize::try_from(rest).unwrap_or(SLICE_BYTES));
                    let bytes = stream.some(most).await.ok_or_else(cut)?;
                    file.write(&bytes).map_err(failed)?;
                    rest -= bytes.len() as u64;
                    yield_now().await;
                }
                stream.padding(size).await.ok_or_else(cut)?;
                file.finish(path.name(), mode).map_err(failed)?;
            }
            EntryType::Directory => make_folder(workspace, &path, mode)?,
            EntryType::Symlink => {
                let target = link.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
                make_link(workspace, &path, &target.unwrap_or_default())?;
            }
            _ => return Err(invalid(&what, "only regular files, folders and symbolic links are unpacked")),
        }
        yield_now().await;
    }
    Err(invalid("the archive", &format!("it has more than {MAX_ENTRIES} entries")))
}

fn checksum_fits(header: &Header) -> bool {
    let bytes = header.as_bytes();
    let sum = |range: std::ops::Range<usize>| bytes[range].iter().map(|byte| u32::from(*byte)).sum::<u32>();
    header.cksum().is_ok_and(|said| said == sum(0..148) + 8 * u32::from(b' ') + sum(156..BLOCK))
}

fn make_folder(workspace: &Workspace, path: &Relative, mode: u32) -> Result<(), Refusal> {
    let parent = workspace.parent(path, true)?;
    // Whoever unpacks has to be able to write into it.
    match mkdirat(&parent, path.name(), Mode::from_bits_retain((mode & 0o777) | 0o700)) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => workspace
            .open_beneath(&path.path(), OFlags::PATH | OFlags::DIRECTORY)
            .map(|_| ())
            .map_err(|error| io_refusal(&path.to_string(), error)),
        Err(error) => Err(io_refusal(&path.to_string(), error)),
    }
}

fn make_link(workspace: &Workspace, path: &Relative, target: &[u8]) -> Result<(), Refusal> {
    if !stays_inside(path, target) {
        return Err(invalid(&path.to_string(), "the link leads out of the workspace"));
    }
    let failed = |error| io_refusal(&path.to_string(), error);
    let parent = workspace.parent(path, true)?;
    if let Ok(status) = statat(&parent, path.name(), AtFlags::SYMLINK_NOFOLLOW)
        && FileType::from_raw_mode(status.st_mode) != FileType::Directory
    {
        unlinkat(&parent, path.name(), AtFlags::empty()).map_err(failed)?;
    }
    symlinkat(OsString::from_vec(target.to_vec()), &parent, path.name()).map_err(failed)
}

/// Whether a link's target, read from the link's folder, stays in the workspace as far as its text says.
fn stays_inside(link: &Relative, target: &[u8]) -> bool {
    if target.is_empty() || target.starts_with(b"/") || target.contains(&0) {
        return false;
    }
    let mut depth = link.depth();
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => match depth.checked_sub(1) {
                Some(above) => depth = above,
                None => return false,
            },
            _ => depth += 1,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use ash_protocol::message::RefusalCategory;
    use bytes::Bytes;
    use tokio::sync::mpsc;

    use super::{BLOCK, Header, Relative, Workspace, stays_inside, unpack};
    use crate::shared::Input;

    #[test]
    fn links_are_followed_by_their_text() {
        let link = Relative::parse(b"a/b/link").unwrap();
        for (target, inside) in [
            ("x", true),
            ("../../x", true),
            ("../../../x", false),
            ("/etc", false),
            ("c/../../../x/../..", false),
            ("", false),
        ] {
            assert_eq!(stays_inside(&link, target.as_bytes()), inside, "{target}");
        }
    }

    async fn unpack_bytes(workspace: &Workspace, bytes: Vec<u8>, cut: usize) -> Result<(), RefusalCategory> {
        let (sender, receiver) = mpsc::channel(1);
        let feed = async move {
            for piece in bytes.chunks(cut) {
                if sender.send(Input { bytes: Bytes::copy_from_slice(piece), last: false }).await.is_err() {
                    return;
                }
            }
            let _ = sender.send(Input { bytes: Bytes::new(), last: true }).await;
        };
        let (unpacked, ()) = tokio::join!(unpack(workspace, 1 << 20, receiver), feed);
        unpacked.map_err(|refusal| refusal.category)
    }

    fn entry(name: &str, kind: tar::EntryType, link: &str, body: &[u8]) -> Vec<u8> {
        let mut header = Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(body.len() as u64);
        header.set_mode(0o4755);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(body);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_stream_is_unpacked_whatever_its_cuts() {
        for cut in [1, 7, 512, 100_000] {
            let root = tempfile::tempdir().unwrap();
            let workspace = Workspace::open(root.path()).unwrap();
            let long = "d/".repeat(80) + "file";
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = Header::new_gnu();
            header.set_size(3);
            header.set_mode(0o600);
            builder.append_data(&mut header, &long, &b"abc"[..]).unwrap();
            let mut bytes = entry("folder", tar::EntryType::Directory, "", b"");
            bytes.extend(entry("folder/link", tar::EntryType::Symlink, "../x", b""));
            bytes.extend(builder.into_inner().unwrap());
            unpack_bytes(&workspace, bytes, cut).await.unwrap();
            assert_eq!(fs::read(root.path().join(&long)).unwrap(), b"abc");
            assert_eq!(fs::read_link(root.path().join("folder/link")).unwrap().to_str(), Some("../x"));
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_leaves_the_workspace_or_is_no_file_is_refused() {
        use tar::EntryType::{Block, Link, Regular, Symlink};
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("workspace");
        fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink("..", folder.join("up")).unwrap();
        let workspace = Workspace::open(&folder).unwrap();
        let big = entry("big", Regular, "", &vec![0; (1 << 20) + 1]);
        let cases = [
            entry("../out", Regular, "", b"x"),
            entry("/out", Regular, "", b"x"),
            entry("up/out", Regular, "", b"x"),
            entry("link", Symlink, "/etc", b""),
            entry("link", Link, "up", b""),
            entry("device", Block, "", b""),
            big,
            b"this is no archive".repeat(100),
            entry("cut", Regular, "", b"x")[..=BLOCK].to_vec(),
        ];
        for bytes in cases {
            assert_eq!(unpack_bytes(&workspace, bytes, 4096).await, Err(RefusalCategory::Invalid));
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
}
