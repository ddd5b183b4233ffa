//! How old a system may be that the binary runs on.

/// A version of glibc.
pub(super) type Version = (u32, u32);

/// The newest version of glibc that a symbol in `binary` asks for. Programs name versions as text: `GLIBC_2.17`.
pub(super) fn glibc(binary: &[u8]) -> Option<Version> {
    const PREFIX: &[u8] = b"\0GLIBC_";
    let starts = binary.windows(PREFIX.len()).enumerate().filter(|(_, window)| *window == PREFIX);
    let versions = starts.filter_map(|(at, _)| {
        let rest = &binary[at + PREFIX.len()..];
        parse(std::str::from_utf8(rest.split(|byte| *byte == 0).next()?).ok()?)
    });
    versions.max()
}

/// `2.17`, or `2.2.5`, whose last number does not matter.
pub(super) fn parse(text: &str) -> Option<Version> {
    let mut numbers = text.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_is_found_by_number() {
        assert_eq!(glibc(b"x\0GLIBC_2.2.5\0GLIBC_2.17\0GLIBC_2.9\0malloc\0"), Some((2, 17)));
        assert_eq!(glibc(b"x\0GLIBC_PRIVATE\0"), None);
        assert_eq!(glibc(b"GLIBC"), None);
        assert!(parse("2.17") < parse("2.28") && parse("2.9") < parse("2.17"));
    }
}
