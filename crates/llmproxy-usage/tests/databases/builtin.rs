//! The builtin store.
