//! The request's body as the layers below inspect see it.

use std::{
    ops::Range,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};

use crate::BoxError;

/// A body of any origin. Boxed once per request, never per chunk.
pub type BoxBody = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;

/// A request's body: read whole and replayable, or passing through.
///
/// ```
/// use llmproxy_core::RequestBody;
///
/// let body = RequestBody::whole(r#"{"model":"a"}"#);
/// assert!(body.replay().is_some(), "can be sent to another backend");
/// let upload = RequestBody::stream(http_body_util::Full::<bytes::Bytes>::from("RIFF"));
/// assert!(upload.replay().is_none(), "what has passed is gone");
/// ```
pub enum RequestBody {
    /// Read whole. Can be sent any number of times, each time with other edits.
    Replay(Bytes, Edits),
    /// Passes through as it arrives; can be sent once.
    Stream(BoxBody),
    /// A form that passes through behind its beginning, which was read; can be sent once.
    Form(Form),
}

/// A form (RFC 7578) whose beginning was read: as a body, that and the rest.
pub struct Form {
    /// What was read.
    pub head: Bytes,
    /// Where in it the model's name stands.
    pub model: Option<Range<usize>>,
    /// What is still to come.
    pub rest: BoxBody,
}

/// Where in a JSON body the two things stand that a proxy may change, in bytes from its start. See [`Edits::apply`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// The bytes of the model's name, quotes included.
    pub model: Option<Range<usize>>,
    /// What makes the backend report usage at the end of its stream; `None` where the request is no stream, the client
    /// has asked for it or against it, or the API does not know it.
    pub include_usage: Option<Insertion>,
}

/// Bytes to put in the place of others (of none, where the range is empty).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Insertion {
    /// What is replaced.
    pub at: Range<usize>,
    /// By what.
    pub with: &'static str,
}

// === impl RequestBody ===

impl RequestBody {
    /// A body that needs no reading: whole, without edits.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Replay(bytes.into(), Edits::default())
    }

    /// A body that passes through.
    pub fn stream<B>(body: B) -> Self
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        Self::Stream(boxed(body))
    }

    /// The same body once more, where that is possible; costs no copy.
    pub fn replay(&self) -> Option<Self> {
        match self {
            Self::Replay(bytes, edits) => Some(Self::Replay(bytes.clone(), edits.clone())),
            Self::Stream(_) | Self::Form(_) => None,
        }
    }

    /// The same with `wrap` around what passes through; as it is where nothing does.
    pub fn map_stream<B>(self, wrap: impl FnOnce(BoxBody) -> B) -> Self
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        match self {
            Self::Replay(..) => self,
            Self::Stream(body) => Self::stream(wrap(body)),
            Self::Form(form) => Self::Form(Form { rest: boxed(wrap(form.rest)), ..form }),
        }
    }
}

fn boxed<B>(body: B) -> BoxBody
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    use http_body_util::BodyExt;
    body.map_err(Into::into).boxed_unsync()
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Replay(bytes, _) if bytes.is_empty() => Poll::Ready(None),
            Self::Replay(bytes, _) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream(body) => Pin::new(body).poll_frame(cx),
            Self::Form(form) => Pin::new(form).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Replay(bytes, _) => bytes.is_empty(),
            Self::Stream(body) => body.is_end_stream(),
            Self::Form(form) => form.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Replay(bytes, _) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(body) => body.size_hint(),
            Self::Form(form) => form.size_hint(),
        }
    }
}

impl std::fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Replay(bytes, edits) => f.debug_tuple("Replay").field(&bytes.len()).field(edits).finish(),
            Self::Stream(_) => f.write_str("Stream"),
            Self::Form(form) => form.fmt(f),
        }
    }
}

// === impl Form ===

impl Form {
    /// The form with another model's name, where one is wanted and there is a place for it. Every other byte is as it was.
    ///
    /// ```
    /// use llmproxy_core::Form;
    ///
    /// let rest = Default::default();
    /// let form = Form { head: "name=\"model\"\r\n\r\na\r\n--x".into(), model: Some(16..17), rest };
    /// assert_eq!(form.with_model(Some("whisper-1")).head, "name=\"model\"\r\n\r\nwhisper-1\r\n--x");
    /// ```
    ///
    /// # Panics
    ///
    /// If the range is not of the beginning.
    pub fn with_model(self, name: Option<&str>) -> Self {
        let (Some(name), Some(at)) = (name, self.model.clone()) else { return self };
        let head = [&self.head[..at.start], name.as_bytes(), &self.head[at.end..]].concat();
        Self { head: head.into(), model: Some(at.start..at.start + name.len()), rest: self.rest }
    }
}

impl std::fmt::Debug for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Form").field(&self.head.len()).field(&self.model).finish()
    }
}

impl Body for Form {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.head.is_empty() {
            return Pin::new(&mut self.rest).poll_frame(cx);
        }
        Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.head)))))
    }

    fn is_end_stream(&self) -> bool {
        self.head.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, head) = (self.rest.size_hint(), self.head.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(head));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(head));
        }
        hint
    }
}

// === impl Edits ===

impl Edits {
    /// `body` with the model's name replaced and usage asked for, as far as each is wanted and there is a place for it.
    /// Every other byte is as it was. Without anything to change nothing is copied.
    ///
    /// ```
    /// use llmproxy_core::{Edits, Insertion};
    ///
    /// let body = bytes::Bytes::from_static(br#"{"model":"a", "x":1}"#);
    /// let edits = Edits { model: Some(9..12), include_usage: None };
    /// assert_eq!(edits.apply(&body, Some("b"), false), r#"{"model":"b", "x":1}"#);
    /// ```
    ///
    /// # Panics
    ///
    /// If the ranges are not of this body, or overlap.
    pub fn apply(&self, body: &Bytes, model: Option<&str>, include_usage: bool) -> Bytes {
        let model = model.and_then(|name| Some((self.model.clone()?, serde_json::Value::from(name).to_string())));
        let usage = self.include_usage.as_ref().filter(|_| include_usage);
        let mut splices: Vec<(Range<usize>, &str)> = Vec::with_capacity(2);
        splices.extend(model.as_ref().map(|(at, name)| (at.clone(), name.as_str())));
        splices.extend(usage.map(|insertion| (insertion.at.clone(), insertion.with)));
        if splices.is_empty() {
            return body.clone();
        }
        splices.sort_by_key(|(at, _)| at.start);
        let added: usize = splices.iter().map(|(_, with)| with.len()).sum();
        let mut out = BytesMut::with_capacity(body.len() + added);
        let mut done = 0;
        for (at, with) in splices {
            out.extend_from_slice(&body[done..at.start]);
            out.extend_from_slice(with.as_bytes());
            done = at.end;
        }
        out.extend_from_slice(&body[done..]);
        out.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_edits_apply_in_whatever_order_they_stand() {
        let body = Bytes::from_static(br#"{"stream":true,"model":"a"}"#);
        let edits = Edits {
            model: Some(23..26),
            include_usage: Some(Insertion { at: 1..1, with: r#""stream_options":{"include_usage":true},"# }),
        };
        assert_eq!(
            edits.apply(&body, Some("quote\"d"), true),
            r#"{"stream_options":{"include_usage":true},"stream":true,"model":"quote\"d"}"#
        );
        assert_eq!(edits.apply(&body, None, false), body);
    }
}
