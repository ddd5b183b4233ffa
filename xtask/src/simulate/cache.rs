//! A server's KV blocks: who holds them, what can be found in them again, and which is given away next.
//!
//! As vLLM does it (`vllm/v1/core/block_pool.py`, `kv_cache_manager.py`): a block that was computed whole is found by the
//! hash of its tokens and all before them; it stays findable after its sequence has ended, until somebody needs the room;
//! of those that nobody holds, the one that was let go first is given away first, and of one sequence the last block.

use std::collections::{HashMap, VecDeque};

/// Tokens in a block: vLLM's default.
pub(crate) const BLOCK: usize = 16;

/// All blocks of one server.
#[derive(Debug)]
pub(crate) struct Cache {
    blocks: Vec<Block>,
    /// Those with nothing in them that could be found.
    blank: Vec<usize>,
    /// Those that nobody holds and that can be found, oldest first, with the time at which they were let go. An entry
    /// whose block was taken up again since is passed over.
    idle: VecDeque<(usize, u64)>,
    /// How many of these entries count.
    idle_blocks: usize,
    by_hash: HashMap<u64, usize>,
    clock: u64,
}

#[derive(Clone, Debug, Default)]
struct Block {
    hash: Option<u64>,
    holders: usize,
    let_go: u64,
}

/// Room for one sequence.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) blocks: Vec<usize>,
    /// How many of them, from the first, need not be computed.
    pub(crate) found: usize,
}

// === impl Cache ===

impl Cache {
    pub(crate) fn new(blocks: usize) -> Self {
        Self {
            blocks: vec![Block::default(); blocks],
            blank: (0..blocks).rev().collect(),
            idle: VecDeque::new(),
            idle_blocks: 0,
            by_hash: HashMap::new(),
            clock: 0,
        }
    }

    pub(crate) fn size(&self) -> usize {
        self.blocks.len()
    }

    /// How many blocks sequences hold.
    pub(crate) fn held(&self) -> usize {
        self.blocks.len() - self.blank.len() - self.idle_blocks
    }

    /// How many of these blocks, from the first, are there.
    pub(crate) fn find(&self, hashes: &[u64]) -> usize {
        hashes.iter().take_while(|hash| self.by_hash.contains_key(hash)).count()
    }

    /// Takes `total` blocks: of those that may be found, the ones that are there, and for the rest empty ones. `None`
    /// where others hold too many.
    pub(crate) fn take(&mut self, hashes: &[u64], total: usize) -> Option<Room> {
        let found: Vec<usize> = hashes.iter().map_while(|hash| self.by_hash.get(hash).copied()).take(total).collect();
        let woken = found.iter().filter(|block| self.blocks[**block].holders == 0).count();
        let fresh = total - found.len();
        if self.blank.len() + self.idle_blocks - woken < fresh {
            return None;
        }
        for block in &found {
            self.blocks[*block].holders += 1;
        }
        self.idle_blocks -= woken;
        let mut room = Room { found: found.len(), blocks: found };
        for _ in 0..fresh {
            let block = self.blank.pop().or_else(|| self.evict()).expect("there is enough, as was just counted");
            self.blocks[block].holders = 1;
            room.blocks.push(block);
        }
        Some(room)
    }

    /// What is in `block` can be found from now on, if it is not already in another one.
    pub(crate) fn filled(&mut self, block: usize, hash: u64) {
        if self.blocks[block].hash.is_none() && !self.by_hash.contains_key(&hash) {
            self.blocks[block].hash = Some(hash);
            self.by_hash.insert(hash, block);
        }
    }

    /// A sequence has ended.
    pub(crate) fn let_go(&mut self, blocks: &[usize]) {
        for block in blocks.iter().rev() {
            let Block { hash, holders, let_go } = &mut self.blocks[*block];
            *holders -= 1;
            if *holders > 0 {
                continue;
            }
            if hash.is_none() {
                self.blank.push(*block);
                continue;
            }
            self.clock += 1;
            *let_go = self.clock;
            self.idle.push_back((*block, self.clock));
            self.idle_blocks += 1;
        }
        if self.idle.len() > 4 * self.blocks.len() {
            let blocks = &self.blocks;
            self.idle.retain(|(block, at)| blocks[*block].holders == 0 && blocks[*block].let_go == *at);
        }
    }

    /// Empties the oldest block that nobody holds.
    fn evict(&mut self) -> Option<usize> {
        while let Some((block, at)) = self.idle.pop_front() {
            let entry = &mut self.blocks[block];
            if entry.holders > 0 || entry.let_go != at {
                continue;
            }
            if let Some(hash) = entry.hash.take() {
                self.by_hash.remove(&hash);
            }
            self.idle_blocks -= 1;
            return Some(block);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sequence of these blocks comes, is computed and goes.
    fn pass(cache: &mut Cache, hashes: &[u64]) -> usize {
        let room = cache.take(hashes, hashes.len()).unwrap();
        for (block, hash) in room.blocks.iter().zip(hashes) {
            cache.filled(*block, *hash);
        }
        cache.let_go(&room.blocks);
        room.found
    }

    #[test]
    fn what_was_computed_is_found_again_up_to_the_first_difference() {
        let mut cache = Cache::new(8);
        assert_eq!(pass(&mut cache, &[1, 2, 3]), 0);
        assert_eq!(pass(&mut cache, &[1, 2, 3]), 3);
        assert_eq!(pass(&mut cache, &[1, 2, 4]), 2);
        assert_eq!(cache.find(&[9, 2, 3]), 0, "a prefix begins at the beginning");
    }

    #[test]
    fn the_sequence_that_was_used_longest_ago_is_evicted_from_its_end() {
        let mut cache = Cache::new(6);
        pass(&mut cache, &[1, 2]);
        pass(&mut cache, &[3, 4]);
        pass(&mut cache, &[5, 6]);
        // Used again, so that 3 and 4 are the oldest.
        pass(&mut cache, &[1, 2]);
        pass(&mut cache, &[7]);
        assert_eq!([cache.find(&[1, 2]), cache.find(&[3, 4]), cache.find(&[5, 6])], [2, 1, 2]);
        pass(&mut cache, &[8, 9]);
        assert_eq!([cache.find(&[1, 2]), cache.find(&[3, 4]), cache.find(&[5, 6])], [2, 0, 1]);
    }

    #[test]
    fn what_is_held_is_not_given_away_and_who_shares_it_needs_no_room_for_it() {
        let mut cache = Cache::new(4);
        let first = cache.take(&[1, 2], 3).unwrap();
        cache.filled(first.blocks[0], 1);
        cache.filled(first.blocks[1], 2);
        assert_eq!(cache.take(&[8, 9], 2), None, "one is left");
        let second = cache.take(&[1, 2], 3).unwrap();
        assert_eq!((second.found, &second.blocks[..2]), (2, &first.blocks[..2]));
        cache.let_go(&first.blocks);
        assert_eq!(cache.take(&[8, 9], 2), None, "the first two are still the second's");
        cache.let_go(&second.blocks);
        assert_eq!(cache.take(&[8, 9, 10, 11], 4).unwrap().found, 0);
        assert_eq!(cache.find(&[1]), 0);
    }

    #[test]
    fn a_sequence_that_does_not_fit_takes_nothing() {
        let mut cache = Cache::new(3);
        pass(&mut cache, &[1, 2]);
        assert_eq!(cache.take(&[1, 2, 3, 4], 4), None);
        assert_eq!(cache.take(&[7, 8, 9], 3).unwrap().blocks.len(), 3, "nobody holds anything");
    }

    #[test]
    fn no_block_is_lost_or_doubled_whatever_comes() {
        let (mut cache, mut rng) = (Cache::new(50), fastrand::Rng::with_seed(1));
        let mut held: Vec<Room> = Vec::new();
        for _ in 0..5000 {
            let family = rng.u64(..6) * 100;
            let hashes: Vec<u64> = (0..rng.u64(1..12)).map(|at| family + at).collect();
            if let Some(room) = cache.take(&hashes, hashes.len() + 1) {
                for (block, hash) in room.blocks.iter().zip(&hashes) {
                    cache.filled(*block, *hash);
                }
                held.push(room);
            }
            while held.len() > 4 || (rng.bool() && !held.is_empty()) {
                let room = held.swap_remove(rng.usize(..held.len()));
                cache.let_go(&room.blocks);
            }
            let mut mine: Vec<usize> = held.iter().flat_map(|room| room.blocks.iter().copied()).collect();
            mine.sort_unstable();
            mine.dedup();
            assert_eq!(mine.len() + cache.blank.len() + cache.idle_blocks, cache.size());
        }
    }
}
