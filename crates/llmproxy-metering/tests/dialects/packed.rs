//! Compressed answers that are not as they should be, or not as they mostly are. How good ones are read, every dialect's
//! test shows.

use super::*;

const PATH: &str = "/v1/chat/completions";
const DELTA: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
const PLAIN: &str = r#"{"id":"c","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}}"#;

fn by_size(packed: &[u8]) -> Option<Tokens> {
    Some((GUESS, packed.len() as u64 / 4, Estimated))
}

#[tokio::test(start_paused = true)]
async fn what_breaks_off_in_nonsense_passes_and_is_estimated() {
    for coding in CODINGS {
        let mut pieces = pack(coding, &[DELTA, DELTA, DELTA]);
        pieces.truncate(2);
        let nonsense = [b'\xff'; 64];
        let chunks: Vec<&[u8]> = pieces.iter().map(|piece| &**piece).chain([&nonsense[..]]).collect();
        let record = pass_packed(PATH, EVENTS, coding, &chunks, false).await;
        assert_eq!((tokens(&record), record.end), (by_size(&chunks.concat()), End::Complete), "{coding}");
        let whole = pack(coding, &[PLAIN]).concat();
        let record = pass_packed(PATH, JSON, coding, &[&whole, &nonsense], false).await;
        assert_eq!(tokens(&record), Some((5, 7, Backend)), "{coding}: what was found stands");
        let record = pass_packed(PATH, JSON, coding, &[PLAIN.as_bytes()], false).await;
        assert_eq!(tokens(&record), by_size(PLAIN.as_bytes()), "{coding}: it is not packed at all");
    }
}

#[tokio::test(start_paused = true)]
async fn what_breaks_off_without_a_word_is_counted_as_far_as_it_came() {
    for coding in CODINGS {
        let packed = pack(coding, &[DELTA, DELTA, DELTA]);
        let chunks: Vec<&[u8]> = packed[..2].iter().map(|piece| &**piece).collect();
        let record = pass_packed(PATH, EVENTS, coding, &chunks, false).await;
        assert_eq!(tokens(&record), Some((GUESS, 2, Estimated)), "{coding}");
    }
}

#[tokio::test(start_paused = true)]
async fn codings_that_are_not_read_are_estimated_by_their_size() {
    let packed = pack("gzip", &[PLAIN]).concat();
    for coding in ["gzip, br", "br, gzip", "deflate", "compress", "aes128gcm"] {
        let record = pass_packed(PATH, JSON, coding, &[&packed], false).await;
        assert_eq!(tokens(&record), by_size(&packed), "{coding}");
    }
    assert_eq!(tokens(&*pass_packed(PATH, JSON, "X-GZip", &[&packed], false).await), Some((5, 7, Backend)));
}

/// Compressed with a window of two to this power.
fn with_window(coding: &str, log: u32, plain: &str) -> Vec<u8> {
    let mut packed = Vec::new();
    if coding == "br" {
        brotli::CompressorWriter::new(&mut packed, 4096, 5, log).write_all(plain.as_bytes()).unwrap();
    } else {
        let mut encoder = zstd::stream::write::Encoder::new(&mut packed, 3).unwrap();
        encoder.window_log(log).unwrap();
        encoder.write_all(plain.as_bytes()).unwrap();
        encoder.finish().unwrap();
    }
    packed
}

#[tokio::test(start_paused = true)]
async fn no_more_memory_is_taken_than_is_allowed() {
    for coding in ["br", "zstd"] {
        for (log, is_read) in [(10, true), (16, true), (17, true), (22, true), (23, true), (24, false)] {
            let packed = with_window(coding, log, PLAIN);
            let record = pass_packed(PATH, JSON, coding, &[&packed], false).await;
            let expected = if is_read { Some((5, 7, Backend)) } else { by_size(&packed) };
            assert_eq!(tokens(&record), expected, "{coding} {log}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_grows_without_end_is_given_up() {
    let long = PLAIN.replace("\"c\"", &format!("\"{}\"", "0".repeat(32 << 20)));
    for coding in ["br", "zstd"] {
        let packed = pack(coding, &[&long]).concat();
        assert!(packed.len() < 16 * 1024, "{coding}: {}", packed.len());
        let record = pass_packed(PATH, JSON, coding, &[&packed], false).await;
        assert_eq!(tokens(&record), by_size(&packed), "{coding}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_packed_in_several_parts_is_read_through() {
    let (head, tail) = PLAIN.split_at(30);
    for coding in ["gzip", "zstd"] {
        let mut parts = vec![pack(coding, &[head]).concat(), pack(coding, &[tail, ""]).concat()];
        if coding == "zstd" {
            // RFC 8878, section 3.1.2: a frame that is skipped.
            parts.insert(1, b"\x53\x2a\x4d\x18\x05\x00\x00\x00hello".to_vec());
            parts.push(b"\x50\x2a\x4d\x18\x00\x00\x00\x00".to_vec());
        }
        let packed = parts.concat();
        for at in 0..=packed.len() {
            let (head, tail) = packed.split_at(at);
            let record = pass_packed(PATH, JSON, coding, &[head, tail], false).await;
            assert_eq!(tokens(&record), Some((5, 7, Backend)), "{coding} at {at}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_larger_than_its_window_is_read_to_its_end() {
    // Numbers that hardly repeat.
    let mut seed = 1_u32;
    let mut numbers = String::new();
    while numbers.len() < 500_000 {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        numbers += &format!("0.{seed},");
    }
    let json = format!(r#"{{"data":[{{"embedding":[{numbers}1]}}],"usage":{{"prompt_tokens":5,"total_tokens":5}}}}"#);
    for coding in ["br", "zstd"] {
        let packed = with_window(coding, 17, &json);
        let chunks: Vec<&[u8]> = packed.chunks(16 * 1024).collect();
        let record = pass_packed("/v1/embeddings", JSON, coding, &chunks, false).await;
        assert_eq!(tokens(&record), Some((5, 0, Backend)), "{coding}");
    }
}
