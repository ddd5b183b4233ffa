//! Reading a request's body: whole into one piece of memory, or passing it on under the same limits.

use std::{
    future::{Future, poll_fn},
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use llmproxy_core::{BoxBody, BoxError, End, Ended, Form, RequestBody};
use tokio::time::{Sleep, sleep, timeout};

use crate::{InspectError, budget::Reservation, form::Scanner, metrics::REFUSED};

/// How much of a form is read for what it says before its file, in bytes; the piece that reaches it counts whole.
const MAX_FORM_HEAD: usize = 64 * 1024;

/// What bounds one body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_size: u64,
    pub(crate) gap: Duration,
}

/// A body that is being read.
pub(crate) struct Reader {
    body: BoxBody,
    limits: Limits,
    reservation: Reservation,
    // A body that comes in one piece is used as it came; only a second piece starts the buffer.
    single: Bytes,
    buffer: Vec<u8>,
}

/// A body that passes through under the limits.
struct Passing {
    prefix: Bytes,
    body: BoxBody,
    limits: Limits,
    passed: u64,
    sleep: Option<Pin<Box<Sleep>>>,
    /// Reads on in a form whose model is known: another one behind the file may be the one that the backend takes.
    form: Option<Box<Scanner>>,
}

// === impl Reader ===

impl Reader {
    /// Begins to read.
    ///
    /// # Errors
    ///
    /// If the length is known and too large; then no byte was read.
    pub(crate) fn new(body: BoxBody, limits: Limits, reservation: Reservation) -> Result<Self, InspectError> {
        if body.size_hint().lower() > limits.max_size {
            return Err(InspectError::TooLarge { limit: limits.max_size });
        }
        Ok(Self { body, limits, reservation, single: Bytes::new(), buffer: Vec::new() })
    }

    /// Reads up to the first byte that is not white space, and tells it; `None` where there is none.
    pub(crate) async fn peek(&mut self) -> Result<Option<u8>, InspectError> {
        let mut seen = 0;
        loop {
            let found = self.bytes()[seen..].iter().find(|byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n'));
            if let Some(byte) = found {
                return Ok(Some(*byte));
            }
            seen = self.bytes().len();
            if !self.read().await? {
                return Ok(None);
            }
        }
    }

    /// Reads all of it.
    pub(crate) async fn whole(mut self) -> Result<Bytes, InspectError> {
        while self.read().await? {}
        Ok(self.take().0)
    }

    /// Reads a form until it says no more about the model and the stream, or is no such form, or has grown too long.
    pub(crate) async fn form(&mut self, form: &mut Scanner) -> Result<(), InspectError> {
        let mut seen = 0;
        while !form.is_settled() && seen < MAX_FORM_HEAD && self.read().await? {
            form.feed(&self.bytes()[seen..]);
            seen = self.bytes().len();
        }
        Ok(())
    }

    /// Passes on what was read and what is still to come.
    pub(crate) fn pass(self) -> RequestBody {
        let limits = self.limits;
        let (prefix, body) = self.take();
        RequestBody::stream(Passing { prefix, body, limits, passed: 0, sleep: None, form: None })
    }

    /// The same of a form whose model stands at `model` of what was read.
    pub(crate) fn pass_form(self, model: Option<Range<usize>>, form: Scanner) -> RequestBody {
        let limits = self.limits;
        let (head, body) = self.take();
        let passed = head.len() as u64;
        let form = Some(Box::new(form));
        let rest = Passing { prefix: Bytes::new(), body, limits, passed, sleep: None, form }.boxed_unsync();
        RequestBody::Form(Form { head, model, rest })
    }

    fn take(self) -> (Bytes, BoxBody) {
        let bytes = match (self.buffer.is_empty(), self.single.is_empty()) {
            (true, true) => Bytes::new(),
            (true, false) => self.reservation.attach(self.single),
            (false, _) => self.reservation.attach(self.buffer),
        };
        (bytes, self.body)
    }

    fn bytes(&self) -> &[u8] {
        if self.buffer.is_empty() { &self.single } else { &self.buffer }
    }

    /// Reads one piece more; false at the end.
    async fn read(&mut self) -> Result<bool, InspectError> {
        loop {
            let frame = poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx));
            let frame = timeout(self.limits.gap, frame)
                .await
                .map_err(|_| InspectError::Timeout { after: self.limits.gap })?
                .transpose()
                .map_err(InspectError::of_body)?;
            match frame.map(Frame::into_data) {
                None => return Ok(false),
                Some(Ok(data)) if !data.is_empty() => return self.push(data).map(|()| true),
                // An empty piece says nothing, and trailers of a request mean nothing to a JSON body.
                Some(_) => {}
            }
        }
    }

    fn push(&mut self, data: Bytes) -> Result<(), InspectError> {
        let size = self.bytes().len() + data.len();
        if size as u64 > self.limits.max_size {
            return Err(InspectError::TooLarge { limit: self.limits.max_size });
        }
        if self.bytes().is_empty() {
            self.reserve(size)?;
            self.single = data;
            return Ok(());
        }
        if size > self.buffer.capacity() {
            // Grown by what has arrived, not by what was announced: an announcement costs its sender nothing.
            let announced = self.body.size_hint().exact().map_or(u64::MAX, |rest| rest.saturating_add(size as u64));
            let most = usize::try_from(announced.min(self.limits.max_size)).unwrap_or(usize::MAX);
            let capacity = (2 * self.bytes().len()).min(most).max(size);
            self.reserve(capacity)?;
            self.buffer.reserve_exact(capacity - self.buffer.len());
        }
        let single = std::mem::take(&mut self.single);
        self.buffer.extend_from_slice(&single);
        self.buffer.extend_from_slice(&data);
        Ok(())
    }

    fn reserve(&mut self, bytes: usize) -> Result<(), InspectError> {
        if self.reservation.grow_to(bytes as u64) { Ok(()) } else { Err(InspectError::Busy) }
    }
}

// === impl Passing ===

impl Passing {
    /// The error as a body's error: the exchange did not end by the backend's fault. It is counted here, as whoever
    /// inspected the request has long passed it on.
    fn fail(error: InspectError) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        metrics::counter!(REFUSED, "reason" => error.code()).increment(1);
        Poll::Ready(Some(Err(Ended::new(End::ClientGone, error).into())))
    }
}

impl Body for Passing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let frame = if this.prefix.is_empty() {
            let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
                // Only the wait for the client counts, not the time in which nobody asks for more.
                let gap = this.limits.gap;
                ready!(this.sleep.get_or_insert_with(|| Box::pin(sleep(gap))).as_mut().poll(cx));
                return Self::fail(InspectError::Timeout { after: gap });
            };
            this.sleep = None;
            frame
        } else {
            Some(Ok(Frame::data(std::mem::take(&mut this.prefix))))
        };
        match frame {
            Some(Ok(frame)) => {
                if let (Some(form), Some(data)) = (&mut this.form, frame.data_ref()) {
                    form.feed(data);
                    if form.found().is_duplicate {
                        return Self::fail(InspectError::Duplicate { param: "model" });
                    }
                    if form.is_lost() {
                        return Self::fail(InspectError::BadForm);
                    }
                }
                this.passed += frame.data_ref().map_or(0, |data| data.len() as u64);
                if this.passed > this.limits.max_size {
                    return Self::fail(InspectError::TooLarge { limit: this.limits.max_size });
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(source)) => Self::fail(InspectError::of_body(source)),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.prefix.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, prefix) = (self.body.size_hint(), self.prefix.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + prefix);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(prefix));
        }
        hint
    }
}
