//! Which backend has seen which prefix, and how long ago: a table of fixed size.
//!
//! An entry is one prefix at one backend. Its place is one of the [`WINDOW`] places that follow from its hash. Where all of
//! them are taken, the entry that is oldest there makes room; nothing is ever moved, allocated or swept.
//!
//! An entry is put in when its backend is asked, so that the next request may follow at once, and is known to be true when
//! an answer begins; where none does, what is not known is taken back.
//!
//! Age is counted in tokens: how many a backend has been given to compute since. That is by what a server's own cache
//! forgets, and a backend that does nothing forgets nothing.

use crate::policy::Block;

/// Places where an entry may be.
const WINDOW: usize = 16;
/// So many backends have their entries of a prefix at the same place, and those of the next group elsewhere. Fewer than a
/// window, so that a prefix that all of them have leaves room for others.
const GROUP: usize = 8;
/// Bits of an entry that say which backend it is of.
const BACKEND_BITS: u32 = 15;
/// Of an entry that is known to be so: the backend has begun an answer to a prompt with this prefix.
const KNOWN: u64 = 1 << BACKEND_BITS;
/// Bits of an entry below its time.
const TIME_SHIFT: u32 = BACKEND_BITS + 1;

/// A set of the backends of one group.
type Set = u8;

/// The table. A place is the prefix's hash and then, in one word, the time of its last use, whether it is known, and the backend; a
/// hash of 0 is an empty place, and a time of 0 one that was given back.
#[derive(Debug)]
pub(super) struct Index {
    places: Vec<[u64; 2]>,
    clocks: Vec<Clock>,
    /// The age from which an entry does not count any more.
    lifetime: u64,
}

/// The time of one backend.
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    /// Tokens that it has been given to compute.
    now: u64,
    /// The latest that it has been: tokens that were not computed after all take it back.
    latest: u64,
    /// What is as old as this does not count.
    forgotten: u64,
}

// === impl Index ===

impl Index {
    /// A table of so many bytes, whose entries count until their backends have computed `lifetime` tokens more.
    pub(super) fn new(bytes: usize, lifetime: u64) -> Self {
        // Made of integers that are 0, so that the system gives the memory when it is first used.
        let places = vec![[0; 2]; (bytes / size_of::<[u64; 2]>()).max(WINDOW)];
        Self { places, clocks: Vec::new(), lifetime }
    }

    /// How many of `blocks`, from the first, the backend of each index in `backends` is taken to have.
    pub(super) fn find(&self, blocks: &[Block], backends: impl Iterator<Item = usize> + Clone) -> Vec<usize> {
        let mut groups: Vec<(usize, [usize; GROUP])> = Vec::new();
        for backend in backends.clone() {
            let group = backend / GROUP;
            if !groups.iter().any(|(known, _)| *known == group) {
                let mut found = [0; GROUP];
                // Most prompts begin with something new, or are all alike in the beginning: then this is all there is to do.
                if let Some(first) = blocks.first() {
                    let having = self.holders(first, group);
                    self.search(blocks, group, (1, blocks.len()), having, &mut found);
                }
                groups.push((group, found));
            }
        }
        let found = |backend: usize| {
            let group = groups.iter().find(|(group, _)| *group == backend / GROUP);
            group.map_or(0, |(_, found)| found[backend % GROUP])
        };
        backends.map(found).collect()
    }

    /// The backend is asked for this prompt, which gives it so many `tokens` to compute.
    pub(super) fn insert(&mut self, blocks: &[Block], backend: usize, tokens: u64) {
        if backend >= 1 << BACKEND_BITS {
            return;
        }
        if self.clocks.len() <= backend {
            self.clocks.resize(backend + 1, Clock::default());
        }
        // It goes on in any case, so that what comes now is not as old as what was forgotten.
        let clock = &mut self.clocks[backend];
        clock.now = clock.now.saturating_add(tokens.max(1));
        clock.latest = clock.latest.max(clock.now);
        let value = clock.now << TIME_SHIFT | backend as u64;
        for block in blocks {
            self.put(key(block, backend / GROUP), value);
        }
    }

    /// The backend has begun its answer to this prompt.
    pub(super) fn confirm(&mut self, blocks: &[Block], backend: usize) {
        let Some(Clock { now, .. }) = self.clocks.get(backend).copied() else { return };
        let value = now.max(1) << TIME_SHIFT | KNOWN | backend as u64;
        // What is known of a prefix is known of all shorter ones.
        for block in blocks.iter().rev() {
            let key = key(block, backend / GROUP);
            if self.entry(key, backend).is_some_and(|(_, value)| value & KNOWN != 0) {
                break;
            }
            self.put(key, value);
        }
    }

    /// The backend has not begun one, nor computed any of `tokens` and what of the prompt nobody knows that it has.
    pub(super) fn take_back(&mut self, blocks: &[Block], backend: usize, tokens: u64) {
        let mut of_prompt = 0;
        for (at, block) in blocks.iter().enumerate().rev() {
            let Some((place, value)) = self.entry(key(block, backend / GROUP), backend) else { continue };
            if value & KNOWN != 0 {
                break;
            }
            // Not emptied: others of the same window may be behind it.
            self.places[place][1] = backend as u64;
            let before = at.checked_sub(1).map_or(0, |before| blocks[before].tokens);
            of_prompt += block.tokens.saturating_sub(before);
        }
        if let Some(Clock { now, forgotten, .. }) = self.clocks.get_mut(backend) {
            *now = now.saturating_sub(tokens + of_prompt).max(*forgotten + 1);
        }
    }

    /// Nothing counts any more that the backend had.
    pub(super) fn forget(&mut self, backend: usize) {
        if let Some(clock) = self.clocks.get_mut(backend) {
            clock.now = clock.latest;
            clock.forgotten = clock.latest;
        }
    }

    /// Bytes that it takes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.places.capacity() * size_of::<[u64; 2]>() + self.clocks.capacity() * size_of::<Clock>()
    }

    /// For each of `set`, which have the first `least` of `blocks` and not more than `most`, how many they have.
    ///
    /// A prefix is put in whole, and what is put in again becomes young again from its first block to its last: so who has
    /// a block has those before it. But for those that had to make room to others by chance: then less is found than there
    /// is, never more.
    fn search(
        &self,
        blocks: &[Block],
        group: usize,
        (least, most): (usize, usize),
        set: Set,
        found: &mut [usize; GROUP],
    ) {
        if set == 0 {
            return;
        }
        if least == most {
            for (backend, found) in found.iter_mut().enumerate() {
                if set & 1 << backend != 0 {
                    *found = least;
                }
            }
            return;
        }
        let middle = (least + most).div_ceil(2);
        let having = self.holders(&blocks[middle - 1], group) & set;
        self.search(blocks, group, (middle, most), having, found);
        self.search(blocks, group, (least, middle - 1), set & !having, found);
    }

    /// The backends of the group that have this block.
    fn holders(&self, block: &Block, group: usize) -> Set {
        let key = key(block, group);
        let mut set = 0;
        for [hash, value] in self.window(key) {
            if *hash == 0 {
                break;
            }
            if *hash == key && self.age(*value) < self.lifetime {
                set |= 1 << (backend(*value) % GROUP);
            }
        }
        set
    }

    fn put(&mut self, key: u64, value: u64) {
        let (mut oldest, mut known) = ((0, 0), 0);
        for (at, [hash, other]) in self.window(key).iter().enumerate() {
            if *hash == 0 {
                oldest.1 = at;
                break;
            }
            if *hash == key && backend(*other) == backend(value) {
                oldest.1 = at;
                known = if self.age(*other) < self.lifetime { other & KNOWN } else { 0 };
                break;
            }
            let age = self.age(*other);
            if age > oldest.0 {
                oldest = (age, at);
            }
        }
        let start = self.start(key);
        self.places[start + oldest.1] = [key, value | known];
    }

    /// Where this backend's entry of a prefix is, if it counts, and what it says.
    fn entry(&self, key: u64, of: usize) -> Option<(usize, u64)> {
        let places = self.window(key).iter().take_while(|[hash, _]| *hash != 0);
        let at = { places }.position(|[hash, value]| *hash == key && backend(*value) == of)?;
        let place = self.start(key) + at;
        let value = self.places[place][1];
        (self.age(value) < self.lifetime).then_some((place, value))
    }

    fn window(&self, key: u64) -> &[[u64; 2]] {
        &self.places[self.start(key)..][..WINDOW]
    }

    /// Where the window of a key begins: as far into the table as the key is into all keys.
    fn start(&self, key: u64) -> usize {
        let starts = self.places.len() - WINDOW + 1;
        ((u128::from(key) * starts as u128) >> u64::BITS) as usize
    }

    /// Tokens that its backend has been given since this entry was used.
    fn age(&self, value: u64) -> u64 {
        let (Clock { now, forgotten, .. }, then) = (self.clocks[backend(value)], value >> TIME_SHIFT);
        if then <= forgotten { u64::MAX } else { now.saturating_sub(then) }
    }
}

fn backend(value: u64) -> usize {
    (value & ((1 << BACKEND_BITS) - 1)) as usize
}

/// What is looked for in the table. 0 is no key.
fn key(block: &Block, group: usize) -> u64 {
    (block.hash ^ (group as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).max(1)
}

#[cfg(test)]
mod tests;
