//! What two ranks send each other once they are connected: frames, each a header of fixed size and a payload.
//!
//! A header says how long its payload is and how many file descriptors come with it. Both are compared with a limit before anything is
//! kept, and memory grows with the bytes that come, not with what a header promises.
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// The longest payload of a frame.
pub(super) const MAX_PAYLOAD: usize = 16 << 20;
/// The most file descriptors of a frame.
pub(super) const MAX_FDS: usize = 16;
/// Bytes of a header.
pub(super) const HEADER: usize = 24;

const MAGIC: [u8; 3] = *b"EPX";

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A payload of an all-gather.
    Gather = 1,
    /// The rank leaves.
    Leave = 2,
    /// The rank gives up; its payload says why.
    Abort = 3,
    /// The rank goes on without the one that it says this to.
    Masked = 4,
    /// The one that it says this to is let in again: the payload says which ranks still are not, and the round the one before the next.
    Welcome = 5,
}

/// A frame that has come in.
#[derive(Debug)]
pub(super) struct Frame {
    pub kind: Kind,
    /// Which all-gather it belongs to.
    pub round: u64,
    pub payload: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// The header of a frame.
pub(super) fn header(kind: Kind, round: u64, payload: usize, fds: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..3].copy_from_slice(&MAGIC);
    header[3] = kind as u8;
    header[4..8].copy_from_slice(&(fds as u32).to_le_bytes());
    header[8..16].copy_from_slice(&round.to_le_bytes());
    header[16..24].copy_from_slice(&(payload as u64).to_le_bytes());
    header
}

/// Kind, file descriptors, round and length of a payload.
fn read_header(header: &[u8; HEADER]) -> Result<(Kind, usize, u64, usize), String> {
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    let kind = match header[3] {
        1 => Kind::Gather,
        2 => Kind::Leave,
        3 => Kind::Abort,
        4 => Kind::Masked,
        5 => Kind::Welcome,
        other => return Err(format!("a frame of the unknown kind {other}")),
    };
    let fds = u32::from_le_bytes(std::array::from_fn(|i| header[4 + i])) as usize;
    if fds > MAX_FDS {
        return Err(format!("a frame with {fds} file descriptors, where {MAX_FDS} are the most"));
    }
    let payload = word(16);
    if payload > MAX_PAYLOAD as u64 {
        return Err(format!("a frame of {payload} bytes, where {MAX_PAYLOAD} are the most"));
    }
    Ok((kind, fds, word(8), payload as usize))
}

/// What has come in of frames that are not complete.
#[derive(Debug, Default)]
pub(super) struct Partial {
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Partial {
    /// Takes what a read brought.
    pub(super) fn push(&mut self, bytes: &[u8], fds: impl IntoIterator<Item = OwnedFd>) {
        self.bytes.extend_from_slice(bytes);
        self.fds.extend(fds);
    }

    /// The next frame, if all of it is there.
    ///
    /// # Errors
    ///
    /// What is wrong with the bytes. Nothing that follows can be trusted then.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, String> {
        let magic = self.bytes.len().min(MAGIC.len());
        if self.bytes[..magic] != MAGIC[..magic] {
            return Err("no frame of ours".to_owned());
        }
        let Some(header) = self.bytes.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let (kind, fds, round, payload) = read_header(header)?;
        if self.bytes.len() < HEADER + payload {
            return Ok(None);
        }
        // They come with the first byte of their frame.
        if self.fds.len() < fds {
            return Err(format!("a frame of {fds} file descriptors with {}", self.fds.len()));
        }
        let rest = self.bytes.split_off(HEADER + payload);
        let payload = std::mem::replace(&mut self.bytes, rest).split_off(HEADER);
        Ok(Some(Frame { kind, round, payload, fds: self.fds.drain(..fds).collect() }))
    }

    /// Whether more descriptors have come than any frame may have.
    pub(super) fn too_many_fds(&self) -> bool {
        // Those of a frame that is complete are taken by it; a peer is at most one frame ahead.
        self.fds.len() > 4 * MAX_FDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(kind: Kind, round: u64, payload: &[u8]) -> Vec<u8> {
        [&header(kind, round, payload.len(), 0), payload].concat()
    }

    #[test]
    fn frames_come_out_as_they_went_in_whatever_the_pieces() {
        let stream = [framed(Kind::Gather, 7, b"seven"), framed(Kind::Gather, 8, b""), framed(Kind::Abort, 0, b"why")];
        let stream = stream.concat();
        for piece in 1..=stream.len() {
            let (mut partial, mut frames) = (Partial::default(), Vec::new());
            for piece in stream.chunks(piece) {
                partial.push(piece, []);
                while let Some(frame) = partial.next().unwrap() {
                    frames.push((frame.kind, frame.round, frame.payload));
                }
            }
            let whole =
                [(Kind::Gather, 7, b"seven".to_vec()), (Kind::Gather, 8, vec![]), (Kind::Abort, 0, b"why".to_vec())];
            assert_eq!(frames, whole, "pieces of {piece}");
        }
    }

    #[test]
    fn what_is_no_frame_is_refused_by_its_header_alone() {
        let refused = |header: [u8; HEADER]| {
            let mut partial = Partial::default();
            partial.push(&header, []);
            partial.next().map(|frame| frame.is_some()).unwrap_err()
        };
        assert_eq!(refused(*b"GET / HTTP/1.1\r\nHost: a:"), "no frame of ours");
        assert_eq!(
            refused(header(Kind::Gather, 1, MAX_PAYLOAD + 1, 0)),
            "a frame of 16777217 bytes, where 16777216 are the most"
        );
        assert_eq!(
            refused(header(Kind::Gather, 1, 0, MAX_FDS + 1)),
            "a frame with 17 file descriptors, where 16 are the most"
        );
        assert_eq!(refused(header(Kind::Gather, 1, 0, 1)), "a frame of 1 file descriptors with 0");
        let mut unknown = header(Kind::Leave, 0, 0, 0);
        unknown[3] = 9;
        assert_eq!(refused(unknown), "a frame of the unknown kind 9");
    }
}
