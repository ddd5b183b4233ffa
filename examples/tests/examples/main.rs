//! Every example, started as one would start it and driven over real sockets.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod docs;
mod gate;
mod metering;
mod nested;
mod policy;
mod process;
mod reporter;
