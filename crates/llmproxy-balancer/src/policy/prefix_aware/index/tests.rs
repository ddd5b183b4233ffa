//! What is found is what was put in, within the bounds.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const MIB: usize = 1 << 20;
const FOREVER: u64 = u64::MAX;

/// A prompt of `length` blocks that has the first `shared` of them in common with others of its `family`.
fn prompt(family: u64, own: u64, shared: usize, length: usize) -> Vec<Block> {
    let mut chain = mix(family);
    let blocks = (0..length).map(|at| {
        chain = mix(chain ^ if at < shared { 0 } else { mix(own) });
        Block { hash: chain, tokens: 64 * (at as u64 + 1) }
    });
    blocks.collect()
}

/// Scatters bits, as hashes are.
fn mix(value: u64) -> u64 {
    let value = (value ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 32)
}

fn find<const N: usize>(index: &Index, blocks: &[Block], backends: [usize; N]) -> [usize; N] {
    index.find(blocks, backends.into_iter()).try_into().unwrap()
}

#[test]
fn the_longest_prefix_of_each_backend_is_found() {
    let mut index = Index::new(MIB, FOREVER);
    let (a, b) = (prompt(1, 1, 5, 20), prompt(1, 2, 5, 30));
    index.insert(&a, 0, 1);
    index.insert(&b, 1, 1);
    index.insert(&b[..12], 2, 1);
    assert_eq!(find(&index, &a, [0, 1, 2, 3]), [20, 5, 5, 0]);
    assert_eq!(find(&index, &b, [3, 2, 1, 0]), [0, 12, 30, 5], "in the order in which they are asked for");
    assert_eq!(find(&index, &prompt(2, 1, 5, 20), [0, 1, 2]), [0, 0, 0]);
    assert_eq!(find(&index, &[], [0, 1]), [0, 0]);
}

#[test]
fn every_length_is_found_exactly() {
    let mut index = Index::new(MIB, FOREVER);
    let blocks = prompt(1, 1, 0, 33);
    for length in 0..=33 {
        index.forget(0);
        index.insert(&blocks[..length], 0, 1);
        assert_eq!(find(&index, &blocks, [0]), [length]);
    }
}

#[test]
fn a_prefix_may_be_at_more_backends_than_a_group_has() {
    let mut index = Index::new(MIB, FOREVER);
    let blocks = prompt(1, 1, 0, 10);
    for backend in (0..60).step_by(2) {
        index.insert(&blocks, backend, 1);
    }
    let found = index.find(&blocks, 0..60);
    for (backend, found) in found.into_iter().enumerate() {
        assert_eq!(found, if backend % 2 == 0 { 10 } else { 0 }, "{backend}");
    }
}

#[test]
fn what_a_backend_had_is_forgotten_and_what_it_gets_after_is_not() {
    let mut index = Index::new(MIB, FOREVER);
    let (a, b) = (prompt(1, 1, 0, 10), prompt(2, 1, 0, 10));
    index.insert(&a, 0, 100);
    index.insert(&a, 1, 100);
    index.forget(0);
    index.forget(7);
    assert_eq!(find(&index, &a, [0, 1]), [0, 10]);
    // Even if there is nothing to compute.
    index.insert(&b, 0, 0);
    index.insert(&a[..4], 0, 0);
    assert_eq!([find(&index, &a, [0, 1]), find(&index, &b, [0, 1])], [[4, 10], [10, 0]]);
}

#[test]
fn what_is_older_than_a_cache_is_large_does_not_count_and_use_makes_it_young() {
    let mut index = Index::new(MIB, 1000);
    let (old, used, other) = (prompt(1, 1, 0, 4), prompt(2, 1, 0, 4), prompt(3, 1, 0, 4));
    index.insert(&old, 0, 100);
    index.insert(&used, 0, 100);
    index.insert(&old, 1, 100);
    index.insert(&other, 0, 600);
    index.insert(&used, 0, 0);
    assert_eq!([find(&index, &old, [0]), find(&index, &used, [0])], [[4], [4]]);
    index.insert(&other, 0, 600);
    assert_eq!(find(&index, &old, [0, 1]), [0, 4], "the other one has had nothing to do");
    assert_eq!(find(&index, &used, [0]), [4]);
}

#[test]
fn a_full_table_keeps_what_was_used_last() {
    // Room for 8,192.
    let mut index = Index::new(128 << 10, FOREVER);
    let bytes = index.bytes();
    let kept = |index: &Index, range: std::ops::Range<u64>| {
        let count = range.end - range.start;
        let found: usize = range.map(|own| find(index, &prompt(9, own, 0, 8), [0])[0]).sum();
        found as f64 / (8 * count) as f64
    };
    for own in 0..5_000 {
        index.insert(&prompt(9, own, 0, 8), 0, 500);
        // One that is always in use.
        index.insert(&prompt(5, 5, 0, 8), 0, 500);
    }
    assert!(index.bytes() - bytes < 1000, "{}", index.bytes());
    assert!(kept(&index, 4_800..5_000) > 0.99, "{}", kept(&index, 4_800..5_000));
    assert!(kept(&index, 4_500..4_600) > 0.9, "{}", kept(&index, 4_500..4_600));
    assert!(kept(&index, 0..2_500) < 0.01, "{}", kept(&index, 0..2_500));
    assert_eq!(find(&index, &prompt(5, 5, 0, 8), [0]), [8]);
}

#[test]
fn a_million_prefixes_fit_into_the_default_memory() {
    let memory = crate::config::DEFAULT_INDEX_MEMORY as usize;
    let mut index = Index::new(memory, FOREVER);
    let one = |own: u64| [Block { hash: mix(own), tokens: 64 }];
    for own in 0..1_000_000 {
        index.insert(&one(own), own as usize % 4, 300);
    }
    let found: usize = (0..1_000_000).map(|own| find(&index, &one(own), [own as usize % 4])[0]).sum();
    assert!(found > 999_900, "{found} are found");
    assert!(index.bytes() <= memory + 1024, "{} bytes", index.bytes());
}

#[test]
fn hashes_at_both_ends_have_their_places() {
    let mut index = Index::new(0, FOREVER);
    for hash in [0, 1, u64::MAX, u64::MAX - 1] {
        let blocks = [Block { hash, tokens: 1 }];
        for backend in [0, 8, (1 << 15) - 1] {
            index.insert(&blocks, backend, 1);
            assert_eq!(find(&index, &blocks, [backend]), [1], "{hash} at {backend}");
        }
    }
    index.insert(&[Block { hash: 5, tokens: 1 }], 1 << 15, 1);
    assert_eq!(find(&index, &[Block { hash: 5, tokens: 1 }], [1 << 15, 0]), [0, 0], "so many there are not");
}

#[derive(Clone, Debug)]
enum Step {
    Insert { backend: usize, family: u64, own: u64, length: usize },
    Forget(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let insert = (0..20_usize, 0..3_u64, 0..12_u64, 0..24_usize)
        .prop_map(|(backend, family, own, length)| Step::Insert { backend, family, own, length });
    prop::collection::vec(prop_oneof![20 => insert, 1 => (0..20_usize).prop_map(Step::Forget)], 1..300)
}

proptest! {
    /// In a table that is far too small, and in one that is not, whose finds are exact.
    #[test]
    fn no_match_is_longer_than_what_was_put_in_and_no_table_grows(steps in steps(), is_small in any::<bool>()) {
        let memory = if is_small { 2048 } else { MIB };
        let mut index = Index::new(memory, FOREVER);
        let mut had: HashSet<(usize, u64)> = HashSet::new();
        for step in steps {
            match step {
                Step::Insert { backend, family, own, length } => {
                    let blocks = prompt(family, own, 6, length);
                    index.insert(&blocks, backend, 10);
                    for block in &blocks {
                        had.insert((backend, block.hash));
                    }
                }
                Step::Forget(backend) => {
                    index.forget(backend);
                    had.retain(|(of, _)| *of != backend);
                }
            }
            prop_assert!(index.bytes() <= memory + 1024);
        }
        for family in 0..3 {
            for own in 0..12 {
                let blocks = prompt(family, own, 6, 24);
                for (backend, found) in index.find(&blocks, 0..20).into_iter().enumerate() {
                    let known = blocks.iter().take_while(|block| had.contains(&(backend, block.hash))).count();
                    prop_assert!(found <= known, "{found} of {known}");
                    prop_assert!(is_small || found == known, "{found} of {known}");
                }
            }
        }
    }
}

#[test]
fn what_is_taken_back_is_what_nobody_knows() {
    let mut index = Index::new(MIB, FOREVER);
    let (a, b) = (prompt(1, 1, 5, 20), prompt(1, 2, 5, 30));
    index.insert(&a, 0, 1000);
    index.confirm(&a, 0);
    index.insert(&a, 1, 1000);
    for _ in 0..3 {
        index.insert(&b, 0, 1000);
    }
    assert_eq!(find(&index, &b, [0, 1]), [30, 5], "a burst follows its first");
    index.take_back(&b, 0, 0);
    assert_eq!(find(&index, &b, [0, 1]), [5, 5]);
    assert_eq!(find(&index, &a, [0, 1]), [20, 20]);
    index.confirm(&b, 0);
    index.take_back(&b, 0, 0);
    assert_eq!(find(&index, &b, [0, 1]), [30, 5], "another one of the burst was answered");
    index.take_back(&a, 1, 0);
    assert_eq!(find(&index, &a, [0, 1]), [20, 0]);
    index.forget(0);
    index.insert(&b, 0, 1);
    index.take_back(&b, 0, 1 << 40);
    assert_eq!(find(&index, &b, [0, 1]), [0, 0], "what was known of it is forgotten");
    index.insert(&b, 0, 1);
    assert_eq!(find(&index, &b, [0, 1]), [30, 0]);
}

#[test]
fn what_was_taken_back_makes_nothing_older() {
    let mut index = Index::new(MIB, 5000);
    let (a, b) = (prompt(1, 1, 0, 20), prompt(1, 2, 0, 20));
    index.insert(&a, 0, 1500);
    index.confirm(&a, 0);
    for _ in 0..20 {
        index.insert(&b, 0, 1500);
        index.take_back(&b, 0, 220);
    }
    assert_eq!(find(&index, &a, [0]), [20]);
}
