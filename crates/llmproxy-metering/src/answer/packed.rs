//! An answer that comes compressed: what it says is read from a copy, which is unpacked a little at a time and kept no
//! longer than that. The bytes that the client gets are not touched.
//!
//! gzip, brotli and zstd are read. What is packed twice (`gzip, br`) is not: no server does it, and each coding would need
//! the memory of its window.

use std::{
    io::{self, Write},
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
};

use brotli_decompressor::DecompressorWriter;
use flate2::write::MultiGzDecoder;
use llmproxy_sse::{Event, Scanner};

use super::{Large, Lines, Tally, TopLevel, zstd::Zstd};

/// How an answer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    Brotli,
    Zstd,
}

/// Unpacks an answer and reads it.
///
/// Takes about 80 KiB for gzip. For the others it takes the window that the answer says it was made with, if that is no
/// more than 8 MiB, and some 200 KiB beside it; of this the system gives only what is used.
pub(crate) struct Packed(Unpacker);

enum Unpacker {
    Gzip(Box<MultiGzDecoder<Reader>>),
    Brotli(Box<Brotli>),
    Zstd(Box<Zstd<Reader>>),
}

struct Brotli {
    decoder: DecompressorWriter<Reader>,
    is_begun: bool,
}

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
    /// How many there were before they were unpacked.
    taken: u64,
    /// So many more bytes may be unpacked of what has come.
    room: u64,
}

/// The base-2 logarithm of the largest window that is unpacked with, in bytes: 8 MiB. zstd must not use more in HTTP
/// (RFC 9659), and brotli does so only when it is told to.
pub(super) const MAX_WINDOW_LOG: u32 = 23;
/// An answer that grows to more than this many times its size is made to, not written.
const MAX_RATIO: u64 = 1100;
/// So many bytes are unpacked in any case.
const MIN_ROOM: u64 = 1024 * 1024;
/// How much brotli unpacks at a time, in bytes.
const BUFFER: usize = 4 * 1024;

// === impl Coding ===

impl Coding {
    /// The coding of that name; `None` where it is none that is read.
    pub(crate) fn of(name: &[u8]) -> Option<Self> {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match () {
            () if is("gzip") || is("x-gzip") => Some(Self::Gzip),
            () if is("br") => Some(Self::Brotli),
            () if is("zstd") => Some(Self::Zstd),
            () => None,
        }
    }
}

// === impl Packed ===

impl Packed {
    pub(crate) fn new(coding: Coding, plain: Plain, tally: Tally) -> Self {
        let reader = Reader { plain, tally, large: None, bytes: 0, taken: 0, room: MIN_ROOM };
        Self(match coding {
            Coding::Gzip => Unpacker::Gzip(Box::new(MultiGzDecoder::new(reader))),
            Coding::Brotli => {
                let decoder = DecompressorWriter::new(reader, BUFFER);
                Unpacker::Brotli(Box::new(Brotli { decoder, is_begun: false }))
            }
            Coding::Zstd => Unpacker::Zstd(Box::new(Zstd::new(reader))),
        })
    }

    /// Takes the next piece. Says whether text has come in it; what zstd holds back until its end is not seen before.
    ///
    /// # Errors
    ///
    /// If it is not what it says, or takes too much to unpack: nothing more can be read.
    pub(crate) fn feed(&mut self, data: &[u8]) -> io::Result<bool> {
        let before = self.so_far().0.deltas;
        let reader = self.reader();
        reader.taken += data.len() as u64;
        reader.room = reader.room.saturating_add(data.len() as u64 * MAX_RATIO);
        // What a stranger sent goes through others' code. Where that gives up, the client's answer goes on.
        catch_unwind(AssertUnwindSafe(|| self.unpack(data)))
            .unwrap_or_else(|_| Err(io::ErrorKind::InvalidData.into()))?;
        Ok(self.so_far().0.deltas > before)
    }

    /// What was found so far, and in how many bytes.
    pub(crate) fn so_far(&self) -> (&Tally, u64) {
        let reader = match &self.0 {
            Unpacker::Gzip(decoder) => decoder.get_ref(),
            Unpacker::Brotli(brotli) => brotli.decoder.get_ref(),
            Unpacker::Zstd(zstd) => zstd.get_ref(),
        };
        (&reader.tally, reader.bytes)
    }

    /// What was found so far, to be told more.
    pub(crate) fn tally(&mut self) -> &mut Tally {
        &mut self.reader().tally
    }

    /// What was found, and how many bytes it was found in. Of a body that is complete, and what it was packed from is not,
    /// a part was found.
    pub(crate) fn finish(mut self, is_complete: bool) -> (Tally, u64) {
        // If it fails there is nothing more to be had.
        let is_whole = catch_unwind(AssertUnwindSafe(|| self.end())).unwrap_or(false);
        let reader = self.reader();
        if is_complete {
            reader.finish();
            if !is_whole {
                reader.bytes = reader.bytes.max(reader.taken);
                if let Some(heard) = &mut reader.tally.heard {
                    heard.miss();
                }
            }
        }
        (mem::take(&mut reader.tally), reader.bytes)
    }

    /// Has what is held back unpacked; says whether what was packed has come to its end.
    fn end(&mut self) -> bool {
        match &mut self.0 {
            Unpacker::Gzip(decoder) => decoder.try_finish().is_ok(),
            Unpacker::Brotli(brotli) => brotli.decoder.close().is_ok(),
            Unpacker::Zstd(zstd) => {
                let is_whole = zstd.is_between();
                zstd.finish().is_ok() && is_whole
            }
        }
    }

    fn unpack(&mut self, data: &[u8]) -> io::Result<()> {
        match &mut self.0 {
            Unpacker::Gzip(decoder) => {
                decoder.write_all(data)?;
                // What can be unpacked already must not wait for the next piece.
                decoder.flush()
            }
            Unpacker::Brotli(brotli) => brotli.feed(data),
            Unpacker::Zstd(zstd) => zstd.feed(data),
        }
    }

    fn reader(&mut self) -> &mut Reader {
        match &mut self.0 {
            Unpacker::Gzip(decoder) => decoder.get_mut(),
            Unpacker::Brotli(brotli) => brotli.decoder.get_mut(),
            Unpacker::Zstd(zstd) => zstd.get_mut(),
        }
    }
}

// === impl Brotli ===

impl Brotli {
    fn feed(&mut self, data: &[u8]) -> io::Result<()> {
        let Some(first) = data.first() else { return Ok(()) };
        if !mem::replace(&mut self.is_begun, true) && window_log(*first).is_none_or(|log| log > MAX_WINDOW_LOG) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.decoder.write_all(data)
    }
}

/// The base-2 logarithm of a brotli stream's window (RFC 7932, section 9.1); `None` where the first byte has another
/// meaning.
fn window_log(first: u8) -> Option<u32> {
    let (low, high) = (u32::from(first >> 1 & 7), u32::from(first >> 4 & 7));
    match (first & 1, low, high) {
        (0, ..) => Some(16),
        (_, 0, 0) => Some(17),
        (_, 0, 1) => None,
        (_, 0, _) => Some(8 + high),
        (_, low, _) => Some(17 + low),
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
        self.room = self.room.checked_sub(data.len() as u64).ok_or(io::ErrorKind::OutOfMemory)?;
        self.feed(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_of_brotli_is_in_its_first_byte() {
        let check = |first: u8, expected: Option<u32>| assert_eq!(window_log(first), expected, "{first:#b}");
        check(0b0000_0000, Some(16));
        check(0b0000_0001, Some(17));
        check(0b0000_0011, Some(18));
        check(0b1011_1011, Some(22));
        check(0b0000_1111, Some(24));
        check(0b0010_0001, Some(10));
        check(0b0111_0001, Some(15));
        check(0b0001_0001, None);
    }
}
