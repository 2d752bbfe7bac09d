//! What the demo did and saw: steps with rates and percentiles, and promises that held or did not.

use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::child::Server;
use crate::cli::output::table;

/// The whole story.
#[derive(Default, Serialize)]
pub(super) struct Report {
    ok: bool,
    steps: Vec<Step>,
    checks: Vec<Check>,
    /// What `--keep` left behind.
    #[serde(rename = "broker")]
    pub(super) left: Option<Left>,
}

#[derive(Serialize)]
struct Step {
    step: &'static str,
    what: &'static str,
    messages: u64,
    seconds: f64,
    messages_per_second: Option<f64>,
    calls: u64,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    max_ms: Option<f64>,
}

#[derive(Serialize)]
struct Check {
    check: &'static str,
    held: bool,
    detail: String,
}

/// A broker that is still up.
#[derive(Serialize)]
pub(super) struct Left {
    server: String,
    http: String,
    data: String,
    pid: Option<u32>,
    directory: String,
}

impl Left {
    /// How to reach it.
    pub(super) fn new(broker: &Server, directory: &Path) -> Self {
        Self {
            server: broker.addresses().grpc.clone(),
            http: broker.addresses().http.clone(),
            data: directory.join("data").display().to_string(),
            pid: broker.pid(),
            directory: directory.display().to_string(),
        }
    }
}

impl Report {
    /// Adds what a step did.
    pub(super) fn step(&mut self, step: &'static str, what: &'static str, measured: Measured) {
        let seconds = measured.took.as_secs_f64();
        let calls = measured.calls.as_ref();
        let quantile = |q: f64| calls.map(|calls| calls.value_at_quantile(q) as f64 / 1e3);
        self.steps.push(Step {
            step,
            what,
            messages: measured.messages,
            seconds,
            messages_per_second: (measured.messages > 0)
                .then_some(measured.messages as f64 / seconds),
            calls: calls.map_or(0, |calls| calls.len()),
            p50_ms: quantile(0.5),
            p99_ms: quantile(0.99),
            max_ms: quantile(1.0),
        });
    }

    /// Adds a promise, whether it held, and the numbers behind it.
    pub(super) fn check(&mut self, check: &'static str, held: bool, detail: String) {
        self.checks.push(Check { check, held, detail });
        self.ok = self.checks.iter().all(|check| check.held);
    }

    /// Whether everything was checked and held.
    pub(super) fn held(&self) -> bool {
        self.ok
    }

    /// The story for people.
    pub(super) fn table(&self) -> String {
        let number =
            |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.2}"));
        let steps = self.steps.iter().map(|step| {
            vec![
                step.step.to_owned(),
                step.what.to_owned(),
                if step.messages == 0 { String::new() } else { grouped(step.messages) },
                format!("{:.2}", step.seconds),
                step.messages_per_second.map_or_else(String::new, |rate| grouped(rate as u64)),
                number(step.p50_ms),
                number(step.p99_ms),
                number(step.max_ms),
            ]
        });
        let header =
            ["STEP", "WHAT", "MESSAGES", "SECONDS", "PER SECOND", "P50 MS", "P99 MS", "MAX MS"];
        let checks = self.checks.iter().map(|check| {
            let verdict = if check.held { "held" } else { "BROKEN" };
            vec![verdict.to_owned(), check.check.to_owned(), check.detail.clone()]
        });
        let mut text = format!(
            "{}\n\n{}",
            table(&header, steps.collect()),
            table(&["", "PROMISE", "SEEN"], checks.collect())
        );
        if let Some(left) = &self.left {
            let pid = left.pid.map_or_else(|| "PID".to_owned(), |pid| pid.to_string());
            text.push_str(&format!(
                "\n\nThe broker is up at {server} (metrics and health at http://{http}):\n  \
                 mainstem --server {server} topic list\n  \
                 mainstem --server {server} query -t demo-packages --key tokio\n\
                 It ends with `kill {pid}`; then remove {directory}.",
                server = left.server,
                http = left.http,
                directory = left.directory,
            ));
        }
        text
    }
}

/// `1234567` as `1 234 567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Calls, their times and what they moved.
pub(super) struct Measured {
    started: Instant,
    took: Duration,
    messages: u64,
    /// Microseconds. `None`: the step is one thing that was done once.
    calls: Option<Histogram<u64>>,
}

impl Measured {
    /// Begins now.
    pub(super) fn start() -> Self {
        Self {
            started: Instant::now(),
            took: Duration::ZERO,
            messages: 0,
            // Up to a minute with three digits; `None` cannot happen with these bounds.
            calls: Histogram::new_with_bounds(1, 60_000_000, 3).ok(),
        }
    }

    /// Something that was done once.
    pub(super) fn once(took: Duration) -> Self {
        Self { started: Instant::now(), took, messages: 0, calls: None }
    }

    /// Adds a call.
    pub(super) fn call(&mut self, took: Duration, messages: u64) {
        self.messages += messages;
        if let Some(calls) = &mut self.calls {
            calls.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        }
    }

    /// Adds what somebody else measured at the same time.
    pub(super) fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        if let (Some(calls), Some(others)) = (&mut self.calls, &other.calls) {
            // The bounds are the same, so nothing is refused.
            let _ = calls.add(others);
        }
    }

    /// Ends now.
    pub(super) fn end(mut self) -> Self {
        self.took = self.started.elapsed();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1 000"), (1_234_567, "1 234 567")] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn one_broken_promise_breaks_the_report_and_no_promise_is_none_that_held() {
        let mut report = Report::default();
        assert!(!report.held());
        report.check("a", true, String::new());
        assert!(report.held());
        report.check("b", false, String::new());
        report.check("c", true, String::new());
        assert!(!report.held());
    }
}
