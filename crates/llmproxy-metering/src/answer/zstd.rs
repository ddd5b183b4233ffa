//! zstd (RFC 8878), unpacked as its blocks come.
//!
//! The decoder reads whole blocks, which are found here, and hands out a block's bytes only when its window has passed or
//! the frame ends: of a stream that is left, what is still held back comes when the end is made for it.

use std::{
    io::{self, Write},
    mem,
};

use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::packed::MAX_WINDOW_LOG;

/// Unpacks into `W`.
pub(super) struct Zstd<W> {
    decoder: FrameDecoder,
    /// What has come of the next block or header: at most one of these, after a piece was taken.
    pending: Vec<u8>,
    place: Place,
    sink: W,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Frame,
    Block {
        has_checksum: bool,
    },
    /// So many bytes that mean nothing.
    Skip(u64),
}

/// The largest block, in bytes (RFC 8878, section 3.1.1.2.3).
const MAX_BLOCK: usize = 128 * 1024;
const MAGIC: u32 = 0xfd2f_b528;
const SKIPPABLE: u32 = 0x184d_2a50;
const CHECKSUM: usize = 4;
/// A block that is the last and has nothing in it, and a checksum, which nobody compares.
const END: [u8; 3 + CHECKSUM] = [1, 0, 0, 0, 0, 0, 0];

// === impl Zstd ===

impl<W: Write> Zstd<W> {
    pub(super) fn new(sink: W) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(1 << MAX_WINDOW_LOG);
        Self { decoder, pending: Vec::new(), place: Place::Frame, sink }
    }

    pub(super) fn get_mut(&mut self) -> &mut W {
        &mut self.sink
    }

    /// What it is unpacked into.
    pub(super) fn get_ref(&self) -> &W {
        &self.sink
    }

    /// Whether a frame has come to its end, and nothing of another has come.
    pub(super) fn is_between(&self) -> bool {
        self.place == Place::Frame && self.pending.is_empty()
    }

    /// Takes the next piece.
    ///
    /// # Errors
    ///
    /// If it is no zstd, needs a dictionary or too large a window, or the sink takes no more.
    pub(super) fn feed(&mut self, data: &[u8]) -> io::Result<()> {
        self.pending.extend_from_slice(data);
        let mut pending = mem::take(&mut self.pending);
        let mut at = 0;
        while let Some(len) = self.step(&pending[at..])? {
            at += len;
        }
        pending.drain(..at);
        self.pending = pending;
        Ok(())
    }

    /// Nothing follows: what is held back goes to the sink.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if !matches!(self.place, Place::Block { .. }) {
            return Ok(());
        }
        // The last block may have waited for its checksum.
        let mut pending = mem::take(&mut self.pending);
        pending.extend_from_slice(&[0; CHECKSUM]);
        match self.step(&pending) {
            Ok(Some(_)) if self.place == Place::Frame => Ok(()),
            _ => {
                self.decoder.decode_blocks(&END[..], BlockDecodingStrategy::All).map_err(invalid)?;
                self.decoder.collect_to_writer(&mut self.sink).map(drop)
            }
        }
    }

    /// Takes the next block or header off `data` and says how long it was; `None` where more is needed.
    fn step(&mut self, data: &[u8]) -> io::Result<Option<usize>> {
        match self.place {
            Place::Skip(0) => {
                self.place = Place::Frame;
                Ok(Some(0))
            }
            Place::Skip(rest) => {
                let len = data.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
                self.place = Place::Skip(rest - len as u64);
                Ok((len > 0).then_some(len))
            }
            Place::Frame => self.frame(data),
            Place::Block { has_checksum } => self.block(data, has_checksum),
        }
    }

    fn frame(&mut self, data: &[u8]) -> io::Result<Option<usize>> {
        let (Some(magic), Some(rest)) = (data.first_chunk(), data.get(4..)) else { return Ok(None) };
        match u32::from_le_bytes(*magic) {
            MAGIC => {}
            magic if magic & !0xf == SKIPPABLE => {
                let Some(size) = rest.first_chunk() else { return Ok(None) };
                self.place = Place::Skip(u32::from_le_bytes(*size).into());
                return Ok(Some(8));
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
        // RFC 8878, section 3.1.1.1.
        let Some(descriptor) = rest.first().copied() else { return Ok(None) };
        let is_single = descriptor & 0x20 != 0;
        let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
        let size = [usize::from(is_single), 2, 4, 8][usize::from(descriptor >> 6)];
        let len = 5 + usize::from(!is_single) + dictionary + size;
        let Some(header) = data.get(..len) else { return Ok(None) };
        self.decoder.reset(header).map_err(invalid)?;
        self.place = Place::Block { has_checksum: descriptor & 4 != 0 };
        Ok(Some(len))
    }

    fn block(&mut self, data: &[u8], has_checksum: bool) -> io::Result<Option<usize>> {
        let Some(&[low, middle, high]) = data.first_chunk() else { return Ok(None) };
        let header = u32::from_le_bytes([low, middle, high, 0]);
        let (is_last, kind, size) = (header & 1 != 0, header >> 1 & 3, (header >> 3) as usize);
        if size > MAX_BLOCK {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // A block of one byte's repetition has its length in the place of its size.
        let size = if kind == 1 { 1 } else { size };
        let len = 3 + size + if is_last && has_checksum { CHECKSUM } else { 0 };
        let Some(block) = data.get(..len) else { return Ok(None) };
        self.decoder.decode_blocks(block, BlockDecodingStrategy::UptoBlocks(1)).map_err(invalid)?;
        self.decoder.collect_to_writer(&mut self.sink)?;
        if is_last {
            self.place = Place::Frame;
        }
        Ok(Some(len))
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
