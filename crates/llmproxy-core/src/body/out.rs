//! What a shape lets go on, and what it holds.

use std::collections::VecDeque;

use bytes::Bytes;

/// Chunks on their way out, in order.
///
/// ```
/// use bytes::Bytes;
/// use llmproxy_core::body::Out;
///
/// let mut out = Out::default();
/// out.push(Bytes::from("data: 1\n\n"));
/// out.push(Bytes::new());
/// assert_eq!(out.pop().unwrap(), "data: 1\n\n");
/// assert!(out.is_empty());
///
/// out.push(Bytes::from("data: 2\n\n"));
/// out.hold();
/// out.push(Bytes::from("data: [DONE]\n\n"));
/// assert_eq!(out.pop().unwrap(), "data: 2\n\n");
/// assert!(out.pop().is_none() && !out.is_empty());
/// out.release();
/// assert_eq!(out.pop().unwrap(), "data: [DONE]\n\n");
/// ```
#[derive(Debug, Default)]
pub struct Out {
    // Nearly always one chunk comes out for one that goes in: no allocation then.
    first: Option<Bytes>,
    // Each open stream has several of these; what is rare is kept elsewhere.
    more: Option<Box<More>>,
}

#[derive(Debug, Default)]
struct More {
    chunks: VecDeque<Bytes>,
    // So many go on before those that are held; all of them where nothing is.
    ahead: Option<usize>,
}

// === impl Out ===

impl Out {
    /// Lets `data` go on. Empty data is nothing.
    pub fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        if self.is_empty() {
            self.first = Some(data);
        } else {
            self.more().chunks.push_back(data);
        }
    }

    /// Takes the next chunk that may go on; `None` where there is none.
    pub fn pop(&mut self) -> Option<Bytes> {
        let Some(more) = &mut self.more else { return self.first.take() };
        if let Some(ahead) = &mut more.ahead {
            *ahead = ahead.checked_sub(1)?;
        }
        self.first.take().or_else(|| more.chunks.pop_front())
    }

    /// Holds what is pushed from now on, until it is released or the body has ended and its end may pass. Where something is
    /// held already, that goes on being held as well.
    ///
    /// Nothing bounds what is held but the shape.
    pub fn hold(&mut self) {
        let count = self.chunks().count();
        self.more().ahead.get_or_insert(count);
    }

    /// Lets all go on that was held.
    pub fn release(&mut self) {
        if let Some(more) = &mut self.more {
            more.ahead = None;
        }
    }

    /// Whether there is no chunk, held ones included.
    pub fn is_empty(&self) -> bool {
        self.first.is_none() && self.more.as_ref().is_none_or(|more| more.chunks.is_empty())
    }

    /// Holds all, unless it was said from where on.
    pub(super) fn hold_all(&mut self) {
        self.more().ahead.get_or_insert(0);
    }

    /// Whether one may go on.
    pub(super) fn is_ready(&self) -> bool {
        !self.is_empty() && self.more.as_ref().is_none_or(|more| more.ahead != Some(0))
    }

    /// In bytes.
    pub(super) fn len(&self) -> u64 {
        self.chunks().map(|data| data.len() as u64).sum()
    }

    fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    fn chunks(&self) -> impl Iterator<Item = &Bytes> {
        self.first.iter().chain(self.more.iter().flat_map(|more| &more.chunks))
    }
}
