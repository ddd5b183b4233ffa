//! Named steps: each is run and timed, whatever became of the one before, and all are summed up.

use std::time::Duration;

/// Something that passes or fails.
pub(crate) struct Step {
    name: &'static str,
    run: Box<dyn FnOnce() -> Result<(), String>>,
}

struct Done {
    name: &'static str,
    result: Result<(), String>,
    took: Duration,
}

/// Runs all of `steps`, even if one fails. Returns whether all passed.
pub(crate) fn run_all(title: &str, steps: Vec<Step>) -> bool {
    let done: Vec<Done> = steps.into_iter().map(Step::run).collect();
    eprint!("{}", summary(title, &done));
    done.iter().all(|done| done.result.is_ok())
}

fn summary(title: &str, done: &[Done]) -> String {
    let width = done.iter().map(|done| done.name.len()).max().unwrap_or_default();
    let mut text = format!("\n==> {title}, in short\n");
    for Done { name, result, took } in done {
        let seconds = took.as_secs_f64();
        match result {
            Ok(()) => text += &format!("    {name:width$}  passed  {seconds:6.1} s\n"),
            Err(error) => text += &format!("    {name:width$}  FAILED  {seconds:6.1} s  {error}\n"),
        }
    }
    let failed: Vec<&str> = done.iter().filter(|done| done.result.is_err()).map(|done| done.name).collect();
    text += &match failed.len() {
        0 => format!("==> {title} passed\n"),
        _ => format!("==> {title} FAILED: {}\n", failed.join(", ")),
    };
    text
}

// === impl Step ===

impl Step {
    /// A step of that name.
    pub(crate) fn new(name: &'static str, run: impl FnOnce() -> Result<(), String> + 'static) -> Self {
        Self { name, run: Box::new(run) }
    }

    #[expect(clippy::disallowed_types, reason = "real commands take real time, and there is no tokio here")]
    fn run(self) -> Done {
        eprintln!("\n==> {}", self.name);
        let started = std::time::Instant::now();
        let result = (self.run)();
        Done { name: self.name, result, took: started.elapsed() }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use super::*;

    #[test]
    fn a_failure_stops_no_other_step_and_fails_the_whole() {
        let ran = Rc::new(Cell::new(0));
        let step = |name, result: Result<(), String>| {
            let ran = ran.clone();
            Step::new(name, move || {
                ran.set(ran.get() + 1);
                result
            })
        };
        assert!(!run_all("both", vec![step("first", Err("broken".into())), step("second", Ok(()))]));
        assert_eq!(ran.get(), 2);
        assert!(run_all("one", vec![step("only", Ok(()))]));
    }

    #[test]
    fn the_summary_names_every_step_and_what_failed() {
        let done = [
            Done { name: "fmt", result: Ok(()), took: Duration::from_millis(1500) },
            Done { name: "clippy", result: Err("two warnings".into()), took: Duration::from_secs(61) },
        ];
        assert_eq!(
            summary("check", &done),
            "\n==> check, in short\n\
             \x20   fmt     passed     1.5 s\n\
             \x20   clippy  FAILED    61.0 s  two warnings\n\
             ==> check FAILED: clippy\n"
        );
    }
}
