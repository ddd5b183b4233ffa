//! Who may: whoever has the token.

use http::{HeaderMap, StatusCode, header};
use sha2::{Digest, Sha256};

/// The header of the Go program's clients; `Authorization: Bearer` is as good.
pub(crate) const HEADER: &str = "x-admin-token";

/// The token's hash: compared with another hash it takes no time that tells anything of the token.
#[derive(Clone)]
pub(crate) struct Token([u8; 32]);

// === impl Token ===

impl Token {
    pub(crate) fn new(token: &str) -> Self {
        // As what is sent: from a file or a secret it comes with a line's end.
        Self(Sha256::digest(token.trim_ascii()).into())
    }

    /// Whether a request with these headers may come in.
    ///
    /// # Errors
    ///
    /// With the status and what to say.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
        let bearer = || headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked(7);
        let bearer = bearer().filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer ")).map(|(_, token)| token);
        let Some(token) = headers.get(HEADER).map(|value| value.as_bytes()).or(bearer) else {
            return Err((StatusCode::UNAUTHORIZED, "send the token of admin.token in the header X-Admin-Token"));
        };
        let given: [u8; 32] = Sha256::digest(token.trim_ascii()).into();
        if given == self.0 { Ok(()) } else { Err((StatusCode::FORBIDDEN, "that is not the token of admin.token")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[(&'static str, &'static str)]) -> Result<(), u16> {
        check_against("s3cret", headers)
    }

    fn check_against(token: &str, headers: &[(&'static str, &'static str)]) -> Result<(), u16> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().expect("a good value"));
        }
        Token::new(token).check(&map).map_err(|(status, _)| status.as_u16())
    }

    #[test]
    fn the_token_opens_and_nothing_else() {
        assert_eq!(check(&[]), Err(401));
        assert_eq!(check(&[("x-admin-token", "s3cret")]), Ok(()));
        assert_eq!(check(&[("authorization", "Bearer s3cret")]), Ok(()));
        assert_eq!(check(&[("authorization", "bearer s3cret")]), Ok(()));
        assert_eq!(check(&[("x-admin-token", "s3cre")]), Err(403));
        assert_eq!(check(&[("x-admin-token", "")]), Err(403));
        assert_eq!(check(&[("authorization", "Basic s3cret")]), Err(401));
        assert_eq!(check(&[("authorization", "s3")]), Err(401));
        assert_eq!(check(&[("x-admin-token", "wrong"), ("authorization", "Bearer s3cret")]), Err(403));
    }

    #[test]
    fn white_space_around_it_is_no_part_of_it() {
        for token in ["s3cret\n", " s3cret\r\n"] {
            assert_eq!(check_against(token, &[("x-admin-token", "s3cret")]), Ok(()), "{token:?}");
        }
    }
}
