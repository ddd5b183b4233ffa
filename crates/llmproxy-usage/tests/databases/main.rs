//! The reporters that write into SQL databases, against real ones.
//!
//! SQLite is always there. `cargo xtask test` starts a PostgreSQL of its own, and with `--long` a MariaDB, and says where
//! they are; without it their tests are left out.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod builtin;
mod builtin_file;
#[path = "../common/mod.rs"]
mod common;
mod database;
mod sqlite;

#[cfg(feature = "databases")]
mod servers;
