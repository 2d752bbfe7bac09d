//! A run as a page of its own: one file without scripts, fonts or pictures from elsewhere, readable in light and dark.
//!
//! `template.html` has the page with `{{name}}` where something is put in; all text that comes from outside goes
//! through [`escape`].

mod plot;

use std::fmt::Write as _;

use self::plot::{Axis, Line, Plot, Scale};
use super::recorder::Point;
use super::{RatioOf, Run, Summary};

const TEMPLATE: &str = include_str!("template.html");

/// The page of a run, beside an `earlier` one if there is one to compare with.
pub(crate) fn html(run: &Run, earlier: Option<&Run>) -> String {
    let sides = Sides { run, earlier };
    let what = sides.name();
    let machine = &run.machine;
    let void = "<p class=\"void\">No round was valid: the controls of each differ by more than 10 %. \
        These figures are of a machine that had other things to do.</p>";
    let parts = [
        ("title", escape(&format!("mainstem bench {what}"))),
        (
            "subtitle",
            escape(&format!(
                "Mainstem {}, {} cores of {}, Linux {}, {}",
                run.version, machine.cores, machine.processor, machine.kernel, machine.file_system
            )),
        ),
        ("void", if run.void { void.to_owned() } else { String::new() }),
        ("figures", sides.figures()),
        ("rate", sides.rate()),
        ("latency", sides.latency()),
        ("distribution", sides.distribution()),
        ("rounds", rounds(run)),
        ("config", config(run)),
    ];
    let mut page = String::with_capacity(64 << 10);
    let mut rest = TEMPLATE;
    // One pass: what is put in is not looked at again.
    while let Some((before, behind)) = rest.split_once("{{") {
        let (name, after) = behind.split_once("}}").unwrap_or((behind, ""));
        page.push_str(before);
        let part = parts.iter().find(|(part, _)| *part == name);
        page.push_str(part.map_or("", |(_, text)| text));
        rest = after;
    }
    page.push_str(rest);
    page
}

/// Text as it may stand in a page.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// What stands beside each other.
struct Sides<'a> {
    run: &'a Run,
    earlier: Option<&'a Run>,
}

impl Sides<'_> {
    fn name(&self) -> String {
        let config = &self.run.config;
        let what = format!("{:?}", config.what).to_lowercase();
        format!("{what}, {} x {} B", config.batch, config.payload)
    }

    /// Each with its name and class, as they are there.
    fn all(&self) -> impl Iterator<Item = (&'static str, &'static str, &Summary)> {
        let subject = ("broker", "a", &self.run.subject);
        let earlier = self.earlier.map(|run| ("broker, earlier", "b", &run.subject));
        let control = self.run.control.as_ref().map(|control| ("control", "c", control));
        [Some(subject), earlier, control].into_iter().flatten()
    }

    fn figures(&self) -> String {
        let mut rows = vec![vec!["".to_owned()]];
        let mut row = |name: &str, cell: &dyn Fn(&Summary) -> String| {
            let cells = self.all().map(|(_, _, summary)| cell(summary));
            rows.push(std::iter::once(name.to_owned()).chain(cells).collect());
        };
        let none = || "–".to_owned();
        row("messages/s", &|s| count(s.messages_per_second));
        row("MB/s", &|s| format!("{:.1}", s.bytes_per_second / 1e6));
        row("server CPU ns/message", &|s| {
            s.cpu_ns_per_message.map_or_else(none, |ns| format!("{ns:.0}"))
        });
        row("server memory", &|s| {
            s.memory_bytes.map_or_else(none, |bytes| format!("{:.0} MB", bytes as f64 / 1e6))
        });
        row("acks", &|s| count(s.acks as f64));
        row("p50", &|s| micros(s.latency_us.p50 as f64));
        row("p90", &|s| micros(s.latency_us.p90 as f64));
        row("p99", &|s| micros(s.latency_us.p99 as f64));
        row("p99.9", &|s| micros(s.latency_us.p999 as f64));
        row("p99.99", &|s| micros(s.latency_us.p9999 as f64));
        row("max", &|s| micros(s.latency_us.max as f64));
        if let Some(head) = rows.first_mut() {
            head.extend(self.all().map(|(name, ..)| name.to_owned()));
        }
        let of = match self.run.ratio_of {
            RatioOf::Rate => "messages/s, broker by control",
            RatioOf::MedianLatency => "p50, control by broker",
        };
        let ratio = |run: &Run| run.ratio.map_or_else(none, |ratio| format!("{ratio:.3}"));
        let mut ratios = format!("<p>Ratio ({of}): <strong>{}</strong>", ratio(self.run));
        if let Some(earlier) = self.earlier {
            let _ = write!(ratios, "; earlier {}", ratio(earlier));
            if let Some(change) = self.run.change_from(earlier) {
                let _ = write!(ratios, "; messages/s {change:+.1} %");
            }
            let differs = self.run.differs_from(earlier);
            if !differs.is_empty() {
                let differs = escape(&differs.join(", "));
                let _ = write!(
                    ratios,
                    "</p>\n<p class=\"void\">The earlier run was another one; it differs in: {differs}"
                );
            }
        }
        format!("{ratios}</p>\n{}", table(rows))
    }

    fn lines(&self, points: impl Fn(&Summary) -> Vec<(f64, f64)>) -> Vec<Line> {
        let line = |(name, class, summary): (&str, &'static str, &Summary)| Line {
            name: name.to_owned(),
            class,
            points: points(summary),
        };
        self.all().map(line).collect()
    }

    fn rate(&self) -> String {
        let points = |summary: &Summary| {
            summary.series.iter().map(|point| (point.at, point.messages_per_second)).collect()
        };
        let x = Axis { label: "seconds", scale: Scale::Linear, text: seconds };
        let y = Axis { label: "messages/s", scale: Scale::Linear, text: count };
        Plot { title: "Messages a second over time", x, y, lines: self.lines(points) }.svg()
    }

    fn latency(&self) -> String {
        let mut lines = Vec::new();
        for (name, class, summary) in self.all().filter(|(_, class, _)| *class != "c") {
            let line = |what: &str, class, of: fn(&Point) -> Option<u64>| {
                let points = summary.series.iter();
                let points = points.filter_map(|point| Some((point.at, of(point)? as f64)));
                Line { name: format!("{name} {what}"), class, points: points.collect() }
            };
            let faint = if class == "a" { "a faint" } else { "b faint" };
            lines.push(line("p50", class, |point| point.p50_us));
            lines.push(line("p99", faint, |point| point.p99_us));
        }
        let x = Axis { label: "seconds", scale: Scale::Linear, text: seconds };
        let y = Axis { label: "", scale: Scale::Log, text: micros };
        Plot { title: "Latency over time", x, y, lines }.svg()
    }

    fn distribution(&self) -> String {
        // 90 % is 10 answers of which one takes longer, 99 % are 100, and so on.
        let points = |summary: &Summary| {
            let distribution = summary.distribution.iter();
            distribution.map(|(at, us)| (100.0 / (100.0 - at), *us as f64)).collect()
        };
        let x = Axis { label: "percentile", scale: Scale::Log, text: percentile };
        let y = Axis { label: "", scale: Scale::Log, text: micros };
        Plot { title: "Latency by percentile", x, y, lines: self.lines(points) }.svg()
    }
}

/// Rows of cells; the first is the header.
fn table(rows: Vec<Vec<String>>) -> String {
    let mut text = String::from("<table>\n");
    for (index, row) in rows.iter().enumerate() {
        let tag = if index == 0 { "th" } else { "td" };
        text.push_str("<tr>");
        for cell in row {
            let _ = write!(text, "<{tag}>{}</{tag}>", escape(cell));
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</table>");
    text
}

fn rounds(run: &Run) -> String {
    let header = ["round", "broker", "control", "ratio", ""];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for (number, round) in (1..).zip(&run.rounds) {
        let rates = |rates: &[f64]| rates.iter().map(|r| count(*r)).collect::<Vec<_>>().join(", ");
        rows.push(vec![
            format!("{number}"),
            rates(&round.subject),
            rates(&round.control),
            round.ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}")),
            if round.void { "void" } else { "" }.to_owned(),
        ]);
    }
    table(rows)
}

fn config(run: &Run) -> String {
    let mut rows = vec![vec!["option".to_owned(), "value".to_owned()]];
    // What the JSON says, so that nothing is forgotten here.
    if let Ok(serde_json::Value::Object(options)) = serde_json::to_value(&run.config) {
        rows.extend(options.into_iter().map(|(name, value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            vec![name, value]
        }));
    }
    table(rows)
}

fn count(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.2} M", value / 1e6),
        value if value >= 1e4 => format!("{:.0} k", value / 1e3),
        value => format!("{value:.0}"),
    }
}

fn micros(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.1} s", value / 1e6),
        value if value >= 1e3 => format!("{:.1} ms", value / 1e3),
        value => format!("{value:.0} µs"),
    }
}

fn seconds(value: f64) -> String {
    // Ticks are multiples of a step: what is behind these digits is rounding.
    format!("{}", (value * 1e3).round() / 1e3)
}

fn percentile(value: f64) -> String {
    let digits = (value.log10().round() as usize).saturating_sub(2);
    format!("{:.digits$} %", 100.0 - 100.0 / value)
}

#[cfg(test)]
mod tests;
