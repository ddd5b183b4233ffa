//! The whole proxy over real sockets: the real binary between scripted backends and scripted clients.

mod backpressure;
mod balance;
mod chaos;
mod cli;
mod connections;
mod endings;
mod exchanges;
mod gateway;
mod harness;
mod http2;
mod http2_backend;
mod http2_client;
mod limits;
mod nonsense;
mod operator;
mod raw;
mod refusals;
mod reload;
mod sdk;
mod seed;
mod settings;
mod spellings;
mod start;
mod streams;
mod tls;
mod upstream;
