//! Bytes in pieces.

use bytes::Bytes;

/// Some ways of cutting `data`: not at all, at every byte, and a few by chance, which are the same for the same bytes.
pub(crate) fn cuts(data: &[u8]) -> Vec<Vec<&[u8]>> {
    let mut rng = fastrand::Rng::with_seed(data.iter().fold(data.len() as u64, |sum, byte| {
        (sum.rotate_left(5) ^ u64::from(*byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }));
    let mut all = vec![vec![data], data.chunks(1).collect()];
    for _ in 0..4 {
        let mut pieces = Vec::new();
        let mut rest = data;
        while !rest.is_empty() {
            // Few pieces, or many.
            let most = if rng.bool() { rest.len() } else { rest.len().min(8) };
            let (piece, after) = rest.split_at(rng.usize(0..=most));
            pieces.push(piece);
            rest = after;
        }
        all.push(pieces);
    }
    all
}

/// The pieces as a body has them.
pub(crate) fn owned(pieces: &[&[u8]]) -> Vec<Bytes> {
    pieces.iter().map(|piece| Bytes::copy_from_slice(piece)).collect()
}
