//! Ranks that are processes and go on without one of them.
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::frame::{Kind, header};
use super::member::Link;
use super::tests::{SOON, link, sleeper};
use super::{Known, Processes};

/// A long payload that was begun when its round was in vain is whole before anything follows it: who reads late finds frames and no pieces.
#[test]
fn a_frame_that_was_begun_in_vain_is_whole_when_the_group_goes_on() {
    let (mut child, process) = sleeper();
    let (slow, mut reader) = UnixStream::pair().unwrap();
    let (a, dead) = UnixStream::pair().unwrap();
    let dying = Link { connection: a.into(), local: true, process: Some(process), pid: None };
    let rank = Processes::new(0, vec![None, link(slow), Some(dying)], SOON).unwrap();
    std::thread::scope(|scope| {
        let gathers = scope.spawn(|| rank.all_gather(&vec![7; 4 << 20]));
        let mut begun = vec![0; 1000];
        reader.read_exact(&mut begun).unwrap();
        child.kill().unwrap();
        let said = gathers.join().unwrap().unwrap_err().to_string();
        assert_eq!(said, "rank 2 is gone: its process ended without a word");
        rank.mask(&[2]).unwrap();
        let goes_on = scope.spawn(|| rank.all_gather(b"on"));
        let mut left = vec![0; header(Kind::Gather, 1, 0, 0).len() + (4 << 20) - begun.len()];
        reader.read_exact(&mut left).unwrap();
        let frame = [begun, left].concat();
        assert!(frame.starts_with(&header(Kind::Gather, 1, 4 << 20, 0)) && frame.ends_with(&[7; 4 << 20]));
        let next = (1 << 32) + 1;
        let mut on = vec![0; header(Kind::Gather, next, 2, 0).len() + 2];
        reader.read_exact(&mut on).unwrap();
        assert_eq!(on, [&header(Kind::Gather, next, 2, 0)[..], b"on"].concat());
        reader.write_all(&header(Kind::Gather, next, 0, 0)).unwrap();
        assert_eq!(goes_on.join().unwrap().unwrap()[..2], [b"on".to_vec(), Vec::new()]);
    });
    child.wait().unwrap();
    drop(dead);
}

/// The end of a process is seen on its host alone: who is on another one does not wait for that, and is told by those.
#[test]
fn who_masks_a_rank_says_whether_its_process_has_ended() {
    let (mut child, process) = sleeper();
    let ends = [UnixStream::pair().unwrap(), UnixStream::pair().unwrap()];
    let [(near, _near), (far, gone)] = ends;
    let link =
        |connection: UnixStream, local, process| Link { connection: connection.into(), local, process, pid: None };
    let beside = Processes::new(0, vec![None, Some(link(near, true, Some(process)))], SOON).unwrap();
    let elsewhere = Processes::new(0, vec![None, Some(link(far, false, None))], SOON).unwrap();
    child.kill().unwrap();
    drop(gone);
    assert_eq!(beside.mask(&[1]).unwrap(), Known { over: 0b10, may_live: 0 });
    let begun = Instant::now();
    assert_eq!(elsewhere.mask(&[1]).unwrap(), Known { over: 0, may_live: 0b10 });
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    child.wait().unwrap();
}
