//! An answer that comes compressed with gzip: what it says is read from a copy, which is unpacked a little at a time and
//! kept no longer than that. The bytes that the client gets are not touched.

use std::{
    io::{self, Write},
    mem,
};

use flate2::write::MultiGzDecoder;
use llmproxy_sse::{Event, Scanner};

use super::{Large, Lines, Tally, TopLevel};

/// Unpacks an answer and reads it. Takes about 80 KiB, and no more, however much a byte of it unpacks to.
pub(crate) struct Packed(MultiGzDecoder<Reader>);

/// What parts a body into the pieces that are read.
pub(crate) enum Plain {
    Json(TopLevel),
    Events(Scanner),
    Lines(Lines),
}

/// Reads what is unpacked.
struct Reader {
    plain: Plain,
    tally: Tally,
    large: Option<Box<Large>>,
    bytes: u64,
}

// === impl Packed ===

impl Packed {
    pub(crate) fn new(plain: Plain, tally: Tally) -> Self {
        Self(MultiGzDecoder::new(Reader { plain, tally, large: None, bytes: 0 }))
    }

    /// Takes the next piece. Says whether text has come in it.
    ///
    /// # Errors
    ///
    /// If it is no gzip: nothing more can be read.
    pub(crate) fn feed(&mut self, data: &[u8]) -> io::Result<bool> {
        let before = self.0.get_ref().tally.deltas;
        self.0.write_all(data)?;
        // What can be unpacked already must not wait for the next piece.
        self.0.flush()?;
        Ok(self.0.get_ref().tally.deltas > before)
    }

    /// What was found so far, and in how many bytes.
    pub(crate) fn so_far(&self) -> (&Tally, u64) {
        let reader = self.0.get_ref();
        (&reader.tally, reader.bytes)
    }

    /// What was found so far, to be told more.
    pub(crate) fn tally(&mut self) -> &mut Tally {
        &mut self.0.get_mut().tally
    }

    /// What was found, and how many bytes it was found in.
    pub(crate) fn finish(&mut self, is_complete: bool) -> (Tally, u64) {
        let reader = self.0.get_mut();
        if is_complete {
            reader.finish();
        }
        (mem::take(&mut reader.tally), reader.bytes)
    }
}

// === impl Reader ===

impl Reader {
    fn feed(&mut self, data: &[u8]) {
        let (tally, large, mut begun) = (&mut self.tally, &mut self.large, 0);
        let on_event = |event: Event<'_>| {
            tally.split_event(&event, &data[begun..event.end], large);
            begun = event.end;
        };
        match &mut self.plain {
            Plain::Json(members) => {
                members.feed(data, |member, value| self.tally.member(member, value));
                return self.tally.plain_text(data);
            }
            Plain::Events(scanner) => scanner.feed(data, on_event),
            Plain::Lines(lines) => lines.feed(data, on_event),
        }
        self.tally.begin_event(&data[begun..], &mut self.large);
    }

    fn finish(&mut self) {
        let (tally, large) = (&mut self.tally, &mut self.large);
        let on_event = |event: Event<'_>| {
            tally.split_event(&event, b"", large);
        };
        match &mut self.plain {
            Plain::Json(_) => {}
            Plain::Events(scanner) => scanner.finish(on_event),
            Plain::Lines(lines) => lines.finish(on_event),
        }
    }
}

impl Write for Reader {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.bytes += data.len() as u64;
        self.feed(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
