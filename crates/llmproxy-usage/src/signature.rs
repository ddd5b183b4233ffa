//! Signatures of webhooks, as Standard Webhooks has them: <https://www.standardwebhooks.com>.

use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use uuid::Uuid;

const PREFIX: &str = "whsec_";
/// Bytes of a secret; the bounds are the specification's.
const SIZES: std::ops::RangeInclusive<usize> = 24..=64;

const ADVICE: &str = "make one with: echo whsec_$(openssl rand -base64 32)";

/// The secrets that a webhook is signed with, each by itself: while a receiver changes from one to the next it finds the
/// signature that it knows.
#[derive(Clone)]
pub(crate) struct Secrets(Vec<Hmac<Sha256>>);

// === impl Secrets ===

impl Secrets {
    /// Takes secrets separated by blanks, or says what is wrong, without quoting them.
    pub(crate) fn compile(text: &str) -> Result<Self, String> {
        let secrets: Vec<_> = text.split_whitespace().collect();
        if secrets.is_empty() {
            return Err(format!("is empty, so that nothing would be signed; leave it out, or {ADVICE}"));
        }
        let keys = secrets.iter().enumerate().map(|(index, secret)| {
            key(secret).map_err(|what| match secrets.len() {
                1 => what,
                _ => format!("{what}; it is about number {} of them", index + 1),
            })
        });
        keys.collect::<Result<_, _>>().map(Self)
    }

    /// The value of `webhook-signature`: one signature for each secret.
    pub(crate) fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let head = format!("{id}.{timestamp}.");
        let signatures = self.0.iter().map(|key| {
            let mac = key.clone().chain_update(head.as_bytes()).chain_update(body);
            format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
        });
        signatures.collect::<Vec<_>>().join(" ")
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} secret(s)", self.0.len())
    }
}

/// What stands for a batch of these records in `webhook-id`: the same for the same records in the same order.
pub(crate) fn batch_id(requests: impl Iterator<Item = Uuid>) -> String {
    let hash = requests.fold(Sha256::new(), |hash, id| hash.chain_update(id.as_bytes())).finalize();
    let half = hash.iter().take(16).fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
    format!("batch_{half:032x}")
}

fn key(secret: &str) -> Result<Hmac<Sha256>, String> {
    let text = secret.strip_prefix(PREFIX).ok_or_else(|| format!("must begin with {PREFIX}; {ADVICE}"))?;
    let key = BASE64_STANDARD.decode(text).map_err(|_| format!("must be base64 after {PREFIX}; {ADVICE}"))?;
    if !SIZES.contains(&key.len()) {
        let (least, most) = (SIZES.start(), SIZES.end());
        return Err(format!("must be of {least} to {most} bytes in base64, and is of {}; {ADVICE}", key.len()));
    }
    Ok(Hmac::new_from_slice(&key).expect("a key may have any size"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// That of the specification's own libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    const OTHER: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";

    fn sign(secrets: &str) -> String {
        let secrets = Secrets::compile(secrets).unwrap();
        secrets.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#)
    }

    #[test]
    fn the_signature_is_that_of_the_specification() {
        assert_eq!(sign(SECRET), SIGNATURE);
    }

    #[test]
    fn while_secrets_change_there_is_a_signature_of_each() {
        assert_eq!(sign(&format!(" {OTHER}  {SECRET}\n")), format!("{} {SIGNATURE}", sign(OTHER)));
        assert_ne!(sign(OTHER), SIGNATURE);
    }

    #[test]
    fn what_is_no_secret_is_refused_without_being_quoted() {
        let check = |text: &str, part: &str| {
            let what = Secrets::compile(text).unwrap_err();
            assert!(what.contains(part), "{what}");
            assert!(!what.contains("MfKQ"), "{what}");
        };
        check("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "must begin with whsec_");
        check(" ", "is empty");
        check("whsec_MfKQ9r8*", "base64");
        check("whsec_MfKQ9r8G", "is of 6");
        check(&format!("{SECRET} whsec_"), "number 2");
        assert!(!format!("{:?}", Secrets::compile(SECRET).unwrap()).contains("MfKQ"));
    }

    #[test]
    fn a_batch_has_the_same_id_again_and_another_has_another() {
        let (a, b) = (Uuid::now_v7(), Uuid::now_v7());
        let id = |ids: &[Uuid]| batch_id(ids.iter().copied());
        assert_eq!(id(&[a, b]), id(&[a, b]));
        assert_ne!(id(&[a, b]), id(&[b, a]));
        assert_ne!(id(&[a]), id(&[a, b]));
        assert_eq!(id(&[a]).len(), "batch_".len() + 32);
    }
}
