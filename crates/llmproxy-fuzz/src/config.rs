//! Configurations: whatever is written in the file, it is loaded or said to be wrong.

use llmproxy_config::{LoadError, LoadOptions, Loaded, load_str};

/// The longest text that is tried, in bytes.
const LONGEST: usize = 16 * 1024;

/// The file `data` is loaded or refused, with a list of mistakes that can be read: in order, each with words, and no more of
/// them than the file has bytes. What passes with unknown keys refused passes without, too.
///
/// ```
/// llmproxy_fuzz::config(b"backends: [{url: http://localhost:11434}]\nserver: {listen: ${NAME:-':8000'}}\n");
/// ```
///
/// # Panics
///
/// If that is not so.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // A file that is included may be anything that the machine has, and of any length.
    if text.len() > LONGEST || text.contains("file:") {
        return;
    }
    let load = |strict| {
        let variables = [("NAME".to_owned(), "value".to_owned()), ("EMPTY".to_owned(), String::new())];
        let options = LoadOptions { strict, env: false, variables: Some(variables.into_iter().collect()) };
        load_str(text, &options)
    };
    let (easy, strict) = (load(false), load(true));
    check(text, &easy);
    check(text, &strict);
    assert!(strict.is_err() || easy.is_ok(), "it passes only where more is refused");
    if let (Err(easy), Err(strict)) = (&easy, &strict) {
        assert!(easy.mistakes().len() <= strict.mistakes().len(), "less is refused where more should be");
    }
}

fn check(text: &str, result: &Result<Loaded, LoadError>) {
    match result {
        Ok(loaded) => assert!(!loaded.config.backends.is_empty(), "nothing to do the work"),
        Err(LoadError::Read { .. }) => panic!("nothing was to be read"),
        Err(LoadError::Parse { message }) => assert!(!message.trim().is_empty(), "no word about what is wrong"),
        Err(error) => {
            let mistakes = error.mistakes();
            assert!(!mistakes.is_empty(), "it is refused without a cause");
            // One of a missing key, and one of each that is there.
            assert!(mistakes.len() <= text.len() + 4, "{} mistakes in {} bytes", mistakes.len(), text.len());
            assert!(mistakes.is_sorted_by(|a, b| a.path <= b.path), "they are in no order");
            assert!(mistakes.iter().all(|mistake| !mistake.message.trim().is_empty()), "a mistake without a word");
            assert!(!error.to_string().is_empty());
        }
    }
}
