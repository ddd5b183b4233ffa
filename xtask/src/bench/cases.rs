//! What is measured but memory.

/// One kind of load, and its name in the report.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) load: Load,
}

/// What is sent. Gaps are in microseconds, sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    Json { clients: usize, size: usize },
    Streams { clients: u64, gap: u64 },
    Big { megabytes: u64 },
    Leave,
}

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "small, 1 connection",
        about: "1 KB of JSON for 512 bytes of it, one after another.",
        load: Load::Json { clients: 1, size: 1024 },
    },
    Case {
        name: "small, 64 connections",
        about: "1 KB of JSON for 512 bytes of it, on 64 connections.",
        load: Load::Json { clients: 64, size: 1024 },
    },
    Case {
        name: "64 KB prompt",
        about: "64 KB of JSON for 512 bytes of it, on 16 connections.",
        load: Load::Json { clients: 16, size: 64 * 1024 },
    },
    Case {
        name: "1 MB body",
        about: "1 MB of JSON for 512 bytes of it, on 4 connections.",
        load: Load::Json { clients: 4, size: 1024 * 1024 },
    },
    Case {
        name: "1 stream",
        about: "Streams of 64 chunks, one each 5 ms, one after another.",
        load: Load::Streams { clients: 1, gap: 5_000 },
    },
    Case {
        name: "200 streams",
        about: "Streams of 64 chunks, one each 20 ms, 200 at a time: 10,000 chunks a second while all are there.",
        load: Load::Streams { clients: 200, gap: 20_000 },
    },
    Case {
        name: "100 MB stream",
        about: "One stream of 100 MB, as fast as it is taken.",
        load: Load::Big { megabytes: 100 },
    },
    Case {
        name: "leaving",
        about: "From a client's leaving in the middle of a stream until the backend sees it.",
        load: Load::Leave,
    },
];
