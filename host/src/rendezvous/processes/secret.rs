//! A secret that all ranks have: who connects proves that it has it, and so does who is connected to. It is never sent.
use std::fmt;
use std::io;

use hmac_sha256::HMAC;
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// The secret.
#[derive(Clone)]
pub(crate) struct Secret(Vec<u8>);

/// Bytes of chance, which a proof is for: it is of no use again.
pub(super) type Nonce = [u8; 32];
/// What only who has the secret can make.
pub(super) type Proof = [u8; 32];

impl Secret {
    /// The secret with these bytes.
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// The proof for what was said, by whom.
    fn prove(&self, by: &str, said: &[&[u8]]) -> HMAC {
        let mut mac = HMAC::new(&self.0);
        for part in [by.as_bytes()].iter().chain(said) {
            // With their lengths, so that no two conversations are the same bytes.
            mac.update((part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac
    }
}

/// Proves what was said, `by` whom; without a secret, with nothing.
pub(super) fn prove(secret: Option<&Secret>, by: &str, said: &[&[u8]]) -> Proof {
    secret.map_or([0; 32], |secret| secret.prove(by, said).finalize())
}

/// Whether a proof is right. It takes as long whatever the proof is.
pub(super) fn is_proven(secret: Option<&Secret>, by: &str, said: &[&[u8]], proof: &Proof) -> bool {
    secret.is_none_or(|secret| secret.prove(by, said).finalize_verify(proof))
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret")
    }
}

/// Bytes of chance.
///
/// # Errors
///
/// What the system says.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let (mut bytes, mut filled) = ([0; N], 0);
    while filled < N {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(more) => filled += more,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_of_one_secret_one_side_and_one_conversation() {
        let [ours, theirs] = [b"ours", b"them"].map(|bytes| Secret::new(bytes));
        let said: [&[u8]; 2] = [b"ab", b"c"];
        let proof = prove(Some(&ours), "connector", &said);
        assert!(is_proven(Some(&ours), "connector", &said, &proof));
        assert!(!is_proven(Some(&theirs), "connector", &said, &proof));
        assert!(!is_proven(Some(&ours), "acceptor", &said, &proof));
        assert!(!is_proven(Some(&ours), "connector", &[b"a", b"bc"], &proof));
        assert!(!is_proven(Some(&ours), "connector", &said, &[0; 32]));
        assert_eq!(format!("{ours:?}"), "Secret");
    }

    #[test]
    fn chance_is_not_twice_the_same() {
        assert_ne!(random::<32>().unwrap(), random::<32>().unwrap());
    }
}
