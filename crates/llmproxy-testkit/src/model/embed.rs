//! Vectors that mean nothing, but always the same.

use serde_json::Value;

use super::{Refusal, Shared, quote, text};
use crate::Seen;

/// Numbers of a vector, where the request does not say how many.
const DIMENSIONS: u64 = 64;
const MAX_DIMENSIONS: u64 = 8192;
const MAX_INPUTS: usize = 2048;

pub(super) fn answer(shared: &Shared, seen: &Seen) -> Result<String, Refusal> {
    let (json, model) = shared.read(seen)?;
    let missing = || Refusal::bad("input: Field required").with_param("input");
    let inputs: Vec<&Value> = match &json["input"] {
        text @ Value::String(_) => vec![text],
        // One input as tokens by number.
        tokens @ Value::Array(items) if items.first().is_some_and(Value::is_number) => vec![tokens],
        Value::Array(items) if !items.is_empty() && items.len() <= MAX_INPUTS => items.iter().collect(),
        _ => return Err(missing()),
    };
    let dimensions = match &json["dimensions"] {
        Value::Null => DIMENSIONS,
        value => value.as_u64().filter(|n| (1..=MAX_DIMENSIONS).contains(n)).ok_or_else(|| {
            Refusal::bad(format!("dimensions must be from 1 to {MAX_DIMENSIONS}")).with_param("dimensions")
        })?,
    };
    let base64 = json["encoding_format"] == "base64";
    let mut tokens = 0;
    let mut data = Vec::with_capacity(inputs.len());
    for (index, input) in inputs.into_iter().enumerate() {
        tokens += match input {
            Value::String(text) => text::count(text),
            Value::Array(numbers) => numbers.len() as u64,
            _ => return Err(missing()),
        };
        let vector = vector(text::hash_text(shared.seed, &input.to_string()), dimensions);
        let vector = if base64 {
            quote(&encode_base64(&vector.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>()))
        } else {
            let numbers: Vec<_> = vector.iter().map(f32::to_string).collect();
            format!("[{}]", numbers.join(","))
        };
        data.push(format!(r#"{{"index":{index},"object":"embedding","embedding":{vector}}}"#));
    }
    let (id, created, model, data) =
        (quote(&format!("embd-{}", shared.id(seen))), super::unix_seconds(), quote(&model), data.join(","));
    let usage = format!(r#"{{"prompt_tokens":{tokens},"total_tokens":{tokens},"completion_tokens":0}}"#);
    Ok(format!(r#"{{"id":{id},"object":"list","created":{created},"model":{model},"data":[{data}],"usage":{usage}}}"#))
}

/// A vector of length 1.
fn vector(seed: u64, dimensions: u64) -> Vec<f32> {
    let number = |index| (text::hash(seed, &[index]) >> 40) as f32 / (1_u32 << 23) as f32 - 1.0;
    let numbers: Vec<f32> = (0..dimensions).map(number).collect();
    let length = numbers.iter().map(|number| number * number).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    numbers.iter().map(|number| number / length).collect()
}

/// RFC 4648, section 4.
fn encode_base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0_u32, |bits, at| bits << 8 | u32::from(group.get(at).copied().unwrap_or(0)));
        for at in 0..4 {
            let sextet = (bits >> (18 - 6 * at)) & 63;
            out.push(if at <= group.len() { char::from(ALPHABET[sextet as usize]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_as_the_rfc_says() {
        let check = |bytes: &str, expected: &str| assert_eq!(encode_base64(bytes.as_bytes()), expected);
        check("", "");
        check("f", "Zg==");
        check("fo", "Zm8=");
        check("foo", "Zm9v");
        check("foobar", "Zm9vYmFy");
    }

    #[test]
    fn vectors_have_length_one_and_differ() {
        let (one, two) = (vector(1, 64), vector(2, 64));
        assert!((one.iter().map(|number| number * number).sum::<f32>() - 1.0).abs() < 1e-4);
        assert_ne!(one, two);
        assert_eq!(one, vector(1, 64));
    }
}
