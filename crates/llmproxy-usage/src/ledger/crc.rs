//! Checksums: SQLite's pages have none, and a disk may give back something else than it was given.

/// The checksum of a record's row. That of the body is apart, as it is not always read.
pub(super) fn crc_of(seq: i64, record: &str, body: Option<&[u8]>) -> i64 {
    crc(&[&seq.to_le_bytes(), record.as_bytes()]) | (body.map_or(0, crc_of_body) << 32)
}

/// Whether the number and the record are those that `crc` was made of.
pub(super) fn is_whole(crc: i64, seq: i64, record: &str) -> bool {
    crc & 0xffff_ffff == crc_of(seq, record, None)
}

/// Whether the body is.
pub(super) fn is_body_whole(crc: i64, body: &[u8]) -> bool {
    crc >> 32 & 0xffff_ffff == crc_of_body(body)
}

fn crc_of_body(body: &[u8]) -> i64 {
    crc(&[body])
}

pub(super) fn crc(parts: &[&[u8]]) -> i64 {
    let mut hasher = crc32fast::Hasher::new();
    parts.iter().for_each(|part| hasher.update(part));
    i64::from(hasher.finalize())
}
