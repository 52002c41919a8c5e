//! What the ranks write, line by line, with the rank's number in front.
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// A line that is longer comes in pieces, so that memory is bounded.
const LONGEST_LINE: u64 = 64 << 10;

/// Who takes lines, or what it said when it refused one.
type Taker = Result<Box<dyn Write + Send>, Option<io::Error>>;

/// Where lines go.
#[derive(Clone)]
pub(super) struct Sink {
    /// Once it has refused one, it is given none any more.
    to: Arc<Mutex<Taker>>,
    /// Digits of the longest rank.
    width: usize,
}

impl Sink {
    pub(super) fn new(to: impl Write + Send + 'static, ranks: u32) -> Self {
        let width = ranks.saturating_sub(1).to_string().len();
        Self { to: Arc::new(Mutex::new(Ok(Box::new(to)))), width }
    }

    /// Copies what a rank writes, until it closes its end.
    pub(super) fn copy(&self, rank: u32, from: impl Read) {
        let mut from = BufReader::new(from);
        let front = format!("[{rank:>width$}] ", width = self.width).into_bytes();
        loop {
            let mut line = front.clone();
            match from.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
                // Its last line may have no end.
                Ok(0) => return,
                Ok(_) if line.ends_with(b"\n") => {}
                Ok(_) => line.push(b'\n'),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            }
            self.write(&line);
        }
    }

    /// Says something of the launcher's own.
    pub(super) fn say(&self, text: &str) {
        self.write(format!("epoxide: {text}\n").as_bytes());
    }

    fn write(&self, line: &[u8]) {
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        let written = to.as_mut().map_or(Ok(()), |to| to.write_all(line).and_then(|()| to.flush()));
        if let Err(error) = written {
            *to = Err(Some(error));
        }
    }

    /// What it said when it refused a line.
    pub(super) fn take_error(&self) -> Option<io::Error> {
        self.to.lock().unwrap_or_else(PoisonError::into_inner).as_mut().err()?.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was written, where a test sees it.
    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn copied(ranks: u32, rank: u32, from: &[u8]) -> String {
        let page = Page::default();
        Sink::new(page.clone(), ranks).copy(rank, from);
        String::from_utf8(page.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn every_line_has_its_rank_in_front_and_an_end() {
        assert_eq!(copied(4, 3, b"one\n\ntwo"), "[3] one\n[3] \n[3] two\n");
        assert_eq!(copied(16, 3, b"one\n"), "[ 3] one\n");
        assert_eq!(copied(2, 0, b""), "");
    }

    #[test]
    fn a_line_without_end_is_bounded() {
        let copied = copied(2, 1, &vec![b'x'; 100 << 10]);
        let lines: Vec<_> = copied.lines().map(|line| line.strip_prefix("[1] ").unwrap().len()).collect();
        assert_eq!(lines, [64 << 10, 36 << 10]);
    }

    #[test]
    fn what_nobody_takes_is_dropped() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let sink = Sink::new(Full, 2);
        sink.copy(0, &b"one\ntwo\n"[..]);
        assert_eq!(sink.take_error().map(|error| error.kind()), Some(io::ErrorKind::StorageFull));
    }
}
