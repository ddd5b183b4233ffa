//! What the state that threads share is made of: the standard library's, or where every order of their steps is played
//! (`cargo xtask test`, or `--cfg shuttle` by hand), what lets a test decide which thread makes the next step.

#[cfg(all(test, shuttle))]
pub(crate) use shuttle::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(all(test, shuttle)))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};
