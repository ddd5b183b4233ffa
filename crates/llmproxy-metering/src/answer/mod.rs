//! What an answer says about itself, found while its bytes pass.

mod event;
mod json;
mod tally;
mod withhold;

pub(crate) use json::{Member, TopLevel};
pub(crate) use tally::Tally;
pub(crate) use withhold::Withhold;
