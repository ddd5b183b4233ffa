//! The whole proxy over real sockets: the real binary between scripted backends and scripted clients.

mod endings;
mod harness;
