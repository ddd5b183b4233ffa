//! What an unknown word was probably meant to be.

/// The one of `known` that is close enough to `word` to be meant by it.
///
/// ```
/// assert_eq!(llmproxy_core::nearest("wieght", ["url", "weight"]), Some("weight"));
/// ```
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    let near = |other: &str| if word.len().min(other.len()) > 5 { 2 } else { 1 };
    known
        .into_iter()
        .map(|other| (distance(&word, other), other))
        .filter(|(distance, other)| *distance <= near(other))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, other)| other)
}

/// How many letters must be changed, added, left out or swapped with their neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_word_that_was_meant() {
        let known = ["url", "weight", "timeout", "max_concurrent"];
        assert_eq!(nearest("wieght", known), Some("weight"));
        assert_eq!(nearest("Timeout", known), Some("timeout"));
        assert_eq!(nearest("max_concurent", known), Some("max_concurrent"));
        assert_eq!(nearest("uri", known), Some("url"));
        assert_eq!(nearest("colour", known), None);
    }
}
