//! Asking a backend how many tokens something is.
