//! Whether a backend is asked for usage that its client did not ask for: the decision, without HTTP.

use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use crate::config::InjectUsage;

/// How long it counts what a backend has shown. A server may be replaced without anyone noticing.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);

/// What is known of one backend. Forgotten when it goes out, since another version may come back.
#[derive(Debug, Default)]
pub(crate) struct Injection {
    known: Option<Known>,
    /// How often it was forgotten. An answer to what was asked before that teaches nothing.
    era: u32,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    takes: bool,
    until: Instant,
}

/// How one attempt stands to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    kind: Kind,
    era: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Usage is not asked for.
    NotAsked,
    /// It is, and whatever comes is the answer.
    Asked,
    /// It is, and nobody knows yet whether the backend takes that.
    OnTrial,
    /// It was, and the backend refused the request; this is the same one without.
    Withdrawn,
}

// === impl Injection ===

impl Injection {
    /// How the next attempt is to be made.
    pub(crate) fn question(&self, mode: InjectUsage, now: Instant) -> Question {
        let known = self.known.filter(|known| now < known.until);
        let kind = match (mode, known) {
            (InjectUsage::Never, _) | (InjectUsage::Auto, Some(Known { takes: false, .. })) => Kind::NotAsked,
            (InjectUsage::Always, _) | (InjectUsage::Auto, Some(Known { takes: true, .. })) => Kind::Asked,
            (InjectUsage::Auto, None) => Kind::OnTrial,
        };
        Question { kind, era: self.era }
    }

    /// An attempt was answered. Whether that shows, for the first time, that usage must not be asked for.
    pub(crate) fn answered(&mut self, question: Question, status: StatusCode, now: Instant) -> bool {
        if question.era != self.era || !status.is_success() {
            return false;
        }
        let takes = match question.kind {
            Kind::NotAsked => return false,
            Kind::Asked | Kind::OnTrial => true,
            Kind::Withdrawn => false,
        };
        let was_refused = self.known.is_some_and(|known| !known.takes && now < known.until);
        self.known = Some(Known { takes, until: now + REMEMBERED });
        !takes && !was_refused
    }

    /// The backend is out.
    pub(crate) fn forget(&mut self) {
        self.known = None;
        self.era = self.era.wrapping_add(1);
    }
}

// === impl Question ===

impl Question {
    /// Of a request that has no place for it.
    pub(crate) const NONE: Self = Self { kind: Kind::NotAsked, era: 0 };

    /// Whether usage is asked for.
    pub(crate) fn is_asked(self) -> bool {
        matches!(self.kind, Kind::Asked | Kind::OnTrial)
    }

    /// Whether its answer may show something of the backend.
    pub(crate) fn is_a_test(self) -> bool {
        self.kind != Kind::NotAsked
    }

    /// Whether the same backend may have to be asked once more, without it.
    pub(crate) fn is_on_trial(self) -> bool {
        self.kind == Kind::OnTrial
    }

    /// Whether `status` may mean that the backend does not know what we have put in. pydantic's word for it is 422.
    pub(crate) fn may_be_why(self, status: StatusCode) -> bool {
        self.is_on_trial() && matches!(status, StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY)
    }

    /// The same attempt once more, without it.
    pub(crate) fn withdrawn(self) -> Self {
        Self { kind: Kind::Withdrawn, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTO: InjectUsage = InjectUsage::Auto;

    fn refuses(now: Instant) -> Injection {
        let mut injection = Injection::default();
        let question = injection.question(AUTO, now);
        assert!(question.may_be_why(StatusCode::BAD_REQUEST));
        assert!(injection.answered(question.withdrawn(), StatusCode::OK, now), "the first to know");
        injection
    }

    #[test]
    fn an_unknown_backend_is_asked_on_trial_and_only_for_what_a_strict_server_says() {
        let question = Injection::default().question(AUTO, Instant::now());
        assert!(question.is_asked() && question.is_on_trial());
        for (status, expected) in [(400, true), (422, true), (200, false), (404, false), (429, false), (500, false)] {
            assert_eq!(question.may_be_why(StatusCode::from_u16(status).unwrap()), expected, "{status}");
        }
        assert!(!question.withdrawn().is_asked());
        assert!(!question.withdrawn().may_be_why(StatusCode::BAD_REQUEST), "asked once more, not for ever");
    }

    #[test]
    fn a_backend_that_took_it_once_is_believed_when_it_blames_the_request() {
        let (mut injection, now) = (Injection::default(), Instant::now());
        assert!(!injection.answered(injection.question(AUTO, now), StatusCode::OK, now));
        let question = injection.question(AUTO, now);
        assert!(question.is_asked() && !question.may_be_why(StatusCode::BAD_REQUEST));
    }

    #[test]
    fn a_backend_that_refused_it_is_not_asked_for_an_hour() {
        let now = Instant::now();
        let injection = refuses(now);
        assert!(!injection.question(AUTO, now + Duration::from_secs(3599)).is_asked());
        assert!(injection.question(AUTO, now + Duration::from_secs(3600)).is_on_trial());
    }

    #[test]
    fn that_it_refuses_is_told_once_however_many_found_it_out() {
        let now = Instant::now();
        let mut injection = refuses(now);
        let also = Injection::default().question(AUTO, now).withdrawn();
        assert!(!injection.answered(also, StatusCode::OK, now));
        let later = now + REMEMBERED;
        let again = injection.question(AUTO, later).withdrawn();
        assert!(injection.answered(again, StatusCode::OK, later));
    }

    #[test]
    fn only_a_good_answer_shows_anything() {
        let (mut injection, now) = (Injection::default(), Instant::now());
        for status in [400, 404, 422, 429, 503] {
            let question = injection.question(AUTO, now);
            let status = StatusCode::from_u16(status).unwrap();
            assert!(!injection.answered(question, status, now));
            assert!(!injection.answered(question.withdrawn(), status, now));
            assert!(injection.question(AUTO, now).is_on_trial(), "{status}");
        }
    }

    #[test]
    fn a_backend_that_was_out_is_tried_anew_and_its_old_answers_teach_nothing() {
        let now = Instant::now();
        let mut injection = refuses(now);
        let old = injection.question(InjectUsage::Always, now);
        injection.forget();
        assert!(injection.question(AUTO, now).is_on_trial());
        injection.answered(old, StatusCode::OK, now);
        assert!(injection.question(AUTO, now).is_on_trial());
    }

    #[test]
    fn always_and_never_do_not_depend_on_what_is_known() {
        let now = Instant::now();
        for injection in [Injection::default(), refuses(now)] {
            let always = injection.question(InjectUsage::Always, now);
            assert!(always.is_asked() && !always.may_be_why(StatusCode::BAD_REQUEST));
            assert!(!injection.question(InjectUsage::Never, now).is_asked());
        }
    }
}
