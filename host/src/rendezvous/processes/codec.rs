//! Messages of the hello: how they are written as bytes, and read from a stream that may be anyone's.
//!
//! A message is eight bytes that say whose it is, what it is, the length of its body, and the body. The length is compared with
//! a limit as soon as it is there.

/// The first bytes of every message, by which another program is told from a rank.
const MAGIC: [u8; 8] = *b"EPOXIDE\n";
/// Bytes in front of a body.
const HEAD: usize = MAGIC.len() + 1 + 4;
/// The longest body: the table of all ranks is the longest.
const MAX_BODY: usize = 64 << 10;

/// A message with this body.
///
/// # Panics
///
/// Beyond the limit, which no message of ours comes near.
pub(super) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    assert!(body.len() <= MAX_BODY, "a message of {} bytes", body.len());
    [&MAGIC[..], &[kind], &(body.len() as u32).to_le_bytes(), body].concat()
}

/// Takes the first message from what has come in, if all of it is there: its kind and its body.
///
/// # Errors
///
/// What is wrong with the bytes.
pub(super) fn take_message(bytes: &mut Vec<u8>) -> Result<Option<(u8, Vec<u8>)>, String> {
    let magic = bytes.len().min(MAGIC.len());
    if bytes[..magic] != MAGIC[..magic] {
        return Err("it does not speak as a rank does".to_owned());
    }
    let Some(head) = bytes.first_chunk::<HEAD>() else {
        return Ok(None);
    };
    let (kind, length) = (head[8], u32::from_le_bytes([head[9], head[10], head[11], head[12]]) as usize);
    if length > MAX_BODY {
        return Err(format!("a message of {length} bytes, where {MAX_BODY} are the most"));
    }
    if bytes.len() < HEAD + length {
        return Ok(None);
    }
    let rest = bytes.split_off(HEAD + length);
    let body = std::mem::replace(bytes, rest).split_off(HEAD);
    Ok(Some((kind, body)))
}

/// How many bytes are missing at least until the first message is all there: what lies behind it is not to be read with it.
pub(super) fn missing(bytes: &[u8]) -> usize {
    let whole = match bytes.first_chunk::<HEAD>() {
        Some(head) => HEAD + (u32::from_le_bytes([head[9], head[10], head[11], head[12]]) as usize).min(MAX_BODY),
        None => HEAD,
    };
    whole.saturating_sub(bytes.len())
}

/// Writes the fields of a body.
#[derive(Default)]
pub(super) struct Fields(Vec<u8>);

impl Fields {
    /// Adds a number.
    pub(super) fn number(mut self, number: u32) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    /// Adds bytes, with their length.
    pub(super) fn bytes(self, bytes: &[u8]) -> Self {
        let mut fields = self.number(bytes.len() as u32);
        fields.0.extend(bytes);
        fields
    }

    /// All of them.
    pub(super) fn end(self) -> Vec<u8> {
        self.0
    }
}

/// Reads the fields of a body, of which any may be missing.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next number.
    pub(super) fn number(&mut self) -> Option<u32> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*number))
    }

    /// The next bytes.
    pub(super) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.number()? as usize;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    /// The next bytes, of which there must be so many.
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes()?.try_into().ok()
    }

    /// The next bytes as text to be shown: without characters that steer a terminal, and not long.
    pub(super) fn text(&mut self) -> Option<String> {
        Some(shown(self.bytes()?))
    }
}

/// What somebody sent, to be shown.
pub(super) fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().take(4000).flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_as_they_went_in_whatever_the_pieces() {
        let stream = [message(1, b"one"), message(2, b"")].concat();
        for piece in 1..=stream.len() {
            let (mut bytes, mut messages) = (Vec::new(), Vec::new());
            for piece in stream.chunks(piece) {
                bytes.extend(piece);
                assert!(missing(&bytes) <= stream.len());
                while let Some(message) = take_message(&mut bytes).unwrap() {
                    messages.push(message);
                }
            }
            assert_eq!(messages, [(1, b"one".to_vec()), (2, vec![])], "pieces of {piece}");
        }
    }

    #[test]
    fn no_byte_behind_a_message_is_asked_for() {
        let stream = [message(1, b"one"), vec![7; 100]].concat();
        let mut bytes = Vec::new();
        loop {
            let more = missing(&bytes);
            if more == 0 {
                break;
            }
            bytes.extend(&stream[bytes.len()..bytes.len() + more]);
        }
        assert_eq!(take_message(&mut bytes).unwrap(), Some((1, b"one".to_vec())));
        assert!(bytes.is_empty());
    }

    #[test]
    fn what_is_no_message_is_refused_by_its_first_bytes() {
        assert_eq!(take_message(&mut b"G".to_vec()).unwrap_err(), "it does not speak as a rank does");
        let mut long = message(1, b"");
        long[9..13].copy_from_slice(&u32::MAX.to_le_bytes());
        let said = take_message(&mut long).unwrap_err();
        assert_eq!(said, "a message of 4294967295 bytes, where 65536 are the most");
        // All but the last byte of what is in front of a body may be anything's beginning.
        assert_eq!(take_message(&mut long[..12].to_vec()), Ok(None));
    }

    #[test]
    fn fields_that_are_cut_short_are_missing() {
        let body = Fields::default().number(7).bytes(b"four").end();
        for length in 0..body.len() {
            let mut reader = Reader(&body[..length]);
            assert!(reader.number().and_then(|_| reader.bytes()).is_none(), "{length}");
        }
        let mut reader = Reader(&body);
        assert_eq!((reader.number(), reader.array()), (Some(7), Some(*b"four")));
        assert_eq!(reader.number(), None);
        assert_eq!(shown(b"a\x1b[31m\xff"), "a\\u{1b}[31m\u{fffd}");
    }
}
