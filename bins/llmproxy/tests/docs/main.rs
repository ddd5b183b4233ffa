//! The documentation, taken at its word: what it says to write is loaded, what it says to type is run.
//!
//! A block's first word says what it is; what follows says what to expect. See [`blocks`] for all of it.

mod blocks;
mod check;
mod place;
mod shell;

use blocks::{Block, Expect};

/// So many blocks of shell are run, or more: a change must not switch them off by the way.
const RUN_AT_LEAST: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn every_block_of_the_documentation_holds() {
    let mut complaints = Vec::new();
    let (mut blocks, mut run) = (0, 0);
    for block in blocks::all() {
        let block = match block {
            Ok(block) => block,
            Err(complaint) => {
                complaints.push(complaint);
                continue;
            }
        };
        blocks += 1;
        let result = match &block {
            Block { expect: Expect::Run, .. } => {
                run += 1;
                shell::run(&block).await
            }
            block => check::check(block),
        };
        if let Err(what) = result {
            complaints.push(format!("{}: {what}", block.at()));
        }
    }
    assert!(complaints.is_empty(), "{} complaint(s):\n\n{}\n", complaints.len(), complaints.join("\n\n"));
    assert!(run >= RUN_AT_LEAST, "only {run} of {blocks} blocks were run; at least {RUN_AT_LEAST} are expected");
}
