//! The command line of the benchmark.

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) quick: bool,
    pub(crate) instructions: bool,
    pub(crate) rounds: usize,
    /// Cases, by parts of their names; all if there are none.
    pub(crate) only: Vec<String>,
    /// Targets besides the mock alone, likewise.
    pub(crate) targets: Vec<String>,
    pub(crate) peers: Vec<String>,
    pub(crate) port: u16,
}

// === impl Options ===

impl Options {
    /// What the arguments say.
    pub(crate) fn parse(args: &[String]) -> Result<Self, String> {
        let mut options = Self {
            quick: false,
            instructions: false,
            rounds: 0,
            only: Vec::new(),
            targets: Vec::new(),
            peers: Vec::new(),
            port: 18_100,
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("`{arg}` wants a value"));
            match arg.as_str() {
                "--quick" => options.quick = true,
                "--instructions" => options.instructions = true,
                "--rounds" => options.rounds = number(arg, value()?)?,
                "--port" => options.port = number(arg, value()?)?,
                "--only" => options.only.push(value()?.clone()),
                "--target" => options.targets.push(value()?.clone()),
                "--peer" => options.peers.push(value()?.clone()),
                _ => return Err(format!("`bench` has no option `{arg}`")),
            }
        }
        if options.rounds == 0 {
            options.rounds = if options.quick { 1 } else { 5 };
        }
        Ok(options)
    }
}

/// The number that an option was given.
pub(crate) fn number<T: std::str::FromStr>(arg: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("`{arg}` wants a number, not `{value}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(args: &[&str]) -> Result<usize, String> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        Options::parse(&args).map(|options| options.rounds)
    }

    #[test]
    fn options_are_what_was_said() {
        assert_eq!(rounds(&[]), Ok(5));
        assert_eq!(rounds(&["--quick"]), Ok(1));
        assert_eq!(rounds(&["--quick", "--rounds", "3"]), Ok(3));
        for wrong in [&["--rounds"][..], &["--rounds", "x"], &["--slow"]] {
            assert!(rounds(wrong).is_err(), "{wrong:?}");
        }
    }
}
