//! What a node's state is made of: the standard library's, or where orders of steps are played (`cargo xtask test`), what
//! lets the test decide which thread makes the next one.

#[cfg(not(all(test, shuttle)))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};

#[cfg(all(test, shuttle))]
pub(crate) use shuttle::sync::{Mutex, MutexGuard, atomic};
