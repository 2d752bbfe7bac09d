//! What goes to stdout, and nothing else does.
//!
//! | `-o` | one thing | many things |
//! | --- | --- | --- |
//! | `table` | a table or a list of names and values | a table; long ones in parts of 1 000 rows |
//! | `json` | an object, indented | an array, one element a line |
//! | `jsonl` | an object on one line | an object a line |
//!
//! Many things are written as they come: memory holds at most one part of a table. The only writer of stdout is the
//! lock that [`Output`] holds. A reader that has gone is [`OutputError`] around a broken pipe, which ends the
//! command quietly.

use std::io::{self, BufWriter, IsTerminal, Write};

use comfy_table::{ColumnConstraint, Table, Width, presets};
use serde::Serialize;

/// Rows of a table that are laid out together.
const ROWS_TOGETHER: usize = 1_000;
/// Spaces between two columns.
const GAP: u16 = 2;

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One JSON object a line.
    Jsonl,
}

/// Stdout cannot be written. Everything before may have been read.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub(crate) struct OutputError(#[from] io::Error);

impl OutputError {
    /// Whether the reader has gone, as `head` does.
    pub(crate) fn reader_has_gone(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

/// The writer of stdout.
pub(crate) struct Output {
    format: Format,
    out: Box<dyn Write>,
}

impl Output {
    /// Takes stdout for itself.
    pub(crate) fn stdout(format: Format) -> Self {
        Self { format, out: Box::new(BufWriter::with_capacity(64 << 10, io::stdout().lock())) }
    }

    /// How results are written.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Writes one thing; `table` draws it for people.
    pub(crate) fn one(
        &mut self,
        value: &impl Serialize,
        table: impl FnOnce() -> String,
    ) -> Result<(), OutputError> {
        match self.format {
            Format::Table => self.text(&table())?,
            Format::Json => {
                serde_json::to_writer_pretty(&mut self.out, value).map_err(io::Error::from)?;
                self.out.write_all(b"\n")?;
            }
            Format::Jsonl => self.json_line(value)?,
        }
        Ok(self.out.flush()?)
    }

    /// Writes many things, as they come.
    pub(crate) fn many(&mut self, header: &'static [&'static str]) -> Many<'_> {
        Many { output: self, header, rows: Vec::new(), widths: Vec::new(), written: 0 }
    }

    /// Writes one line of JSON, whatever the format, for a program that waits for it.
    pub(crate) fn line(&mut self, value: &impl Serialize) -> Result<(), OutputError> {
        self.json_line(value)?;
        Ok(self.out.flush()?)
    }

    fn text(&mut self, text: &str) -> Result<(), OutputError> {
        self.out.write_all(text.as_bytes())?;
        Ok(self.out.write_all(b"\n")?)
    }

    fn json_line(&mut self, value: &impl Serialize) -> Result<(), OutputError> {
        serde_json::to_writer(&mut self.out, value).map_err(io::Error::from)?;
        Ok(self.out.write_all(b"\n")?)
    }
}

/// One of many things: an object in JSON, a row in a table.
pub(crate) trait Row: Serialize {
    /// The cells of its row, one for each column.
    fn cells(&self) -> Vec<String>;
}

/// Many things on their way to stdout. Ends with [`Many::finish`].
pub(crate) struct Many<'a> {
    output: &'a mut Output,
    header: &'static [&'static str],
    rows: Vec<Vec<String>>,
    /// Of the parts before, so that the columns of all parts stand in line.
    widths: Vec<u16>,
    written: u64,
}

impl Many<'_> {
    /// Adds one.
    pub(crate) fn push(&mut self, row: &impl Row) -> Result<(), OutputError> {
        match self.output.format {
            Format::Table => {
                self.rows.push(row.cells());
                if self.rows.len() >= ROWS_TOGETHER {
                    self.draw()?;
                }
            }
            Format::Json => {
                self.output.out.write_all(if self.written == 0 { b"[\n  " } else { b",\n  " })?;
                serde_json::to_writer(&mut self.output.out, row).map_err(io::Error::from)?;
            }
            Format::Jsonl => self.output.json_line(row)?,
        }
        self.written += 1;
        Ok(())
    }

    /// Shows what was added so far, for a reader who watches.
    pub(crate) fn flush(&mut self) -> Result<(), OutputError> {
        self.draw()?;
        Ok(self.output.out.flush()?)
    }

    /// How many were added.
    pub(crate) fn count(&self) -> u64 {
        self.written
    }

    /// Writes what is left.
    pub(crate) fn finish(mut self) -> Result<(), OutputError> {
        match self.output.format {
            Format::Table => self.draw()?,
            Format::Json => {
                let end: &[u8] = if self.written == 0 { b"[]\n" } else { b"\n]\n" };
                self.output.out.write_all(end)?;
            }
            Format::Jsonl => {}
        }
        Ok(self.output.out.flush()?)
    }

    fn draw(&mut self) -> Result<(), OutputError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let first = self.widths.is_empty();
        let rows = std::mem::take(&mut self.rows);
        let mut table = plain();
        if first {
            table.set_header(self.header.iter().copied());
        }
        table.add_rows(rows);
        for (index, width) in self.widths.iter().enumerate() {
            if let Some(column) = table.column_mut(index) {
                column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(*width)));
            }
        }
        pad(&mut table);
        self.widths = table.column_max_content_widths().iter().map(|width| width + GAP).collect();
        self.output.text(&table.trim_fmt())
    }
}

/// A table with a header, as text without the last line break.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = plain();
    table.set_header(header.iter().copied());
    table.add_rows(rows);
    pad(&mut table);
    table.trim_fmt()
}

/// Names and values, one pair a line.
pub(crate) fn fields(pairs: Vec<(&str, String)>) -> String {
    let mut table = plain();
    table.add_rows(pairs.into_iter().map(|(name, value)| [name.to_owned(), value]));
    pad(&mut table);
    table.trim_fmt()
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

fn pad(table: &mut Table) {
    for column in table.column_iter_mut() {
        column.set_padding((0, GAP));
    }
}

/// Says something to the person at the terminal. That nobody listens is no failure.
pub(crate) fn say(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Counts long work on stderr, for people only: nothing is drawn if stderr is no terminal.
pub(crate) struct Progress {
    bar: indicatif::ProgressBar,
}

impl Progress {
    /// Counts towards a number, if it is known, in the words of `what`.
    pub(crate) fn start(what: &'static str, total: Option<u64>) -> Self {
        let bar = match total {
            Some(total) => indicatif::ProgressBar::new(total),
            None => indicatif::ProgressBar::no_length(),
        };
        let template = if total.is_some() {
            "{msg:<34} {wide_bar} {human_pos}/{human_len}"
        } else {
            "{spinner} {human_pos} {msg} ({per_sec}) {elapsed}"
        };
        if let Ok(style) = indicatif::ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what);
        Self { bar }
    }

    /// As [`Progress::start`], but silent while results go to the same terminal.
    pub(crate) fn beside_results(what: &'static str) -> Self {
        let progress = Self::start(what, None);
        if io::stdout().is_terminal() {
            progress.bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
        progress
    }

    /// What is done now.
    pub(crate) fn says(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    /// Counts `done` more.
    pub(crate) fn add(&self, done: u64) {
        self.bar.inc(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[derive(Serialize)]
    struct Pair {
        name: &'static str,
        count: u64,
    }

    impl Row for Pair {
        fn cells(&self) -> Vec<String> {
            vec![self.name.to_owned(), self.count.to_string()]
        }
    }

    fn written(format: Format, rows: &[Pair]) -> String {
        let shared = Shared::default();
        let mut output = Output { format, out: Box::new(shared.clone()) };
        let mut many = output.many(&["NAME", "COUNT"]);
        for row in rows {
            many.push(row).expect("written");
        }
        many.finish().expect("written");
        let bytes = shared.0.lock().expect("not poisoned").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn many_things_are_a_table_an_array_or_lines() {
        let rows = || [Pair { name: "a", count: 1 }, Pair { name: "longer", count: 20 }];
        assert_eq!(written(Format::Table, &rows()), "NAME    COUNT\na       1\nlonger  20\n");
        assert_eq!(
            written(Format::Json, &rows()),
            "[\n  {\"name\":\"a\",\"count\":1},\n  {\"name\":\"longer\",\"count\":20}\n]\n"
        );
        assert_eq!(
            written(Format::Jsonl, &rows()),
            "{\"name\":\"a\",\"count\":1}\n{\"name\":\"longer\",\"count\":20}\n"
        );
    }

    #[test]
    fn nothing_is_an_empty_array_and_otherwise_no_byte() {
        assert_eq!(written(Format::Json, &[]), "[]\n");
        assert_eq!(written(Format::Jsonl, &[]), "");
        assert_eq!(written(Format::Table, &[]), "");
    }

    #[test]
    fn the_parts_of_a_long_table_have_one_header_and_stand_in_line() {
        let mut rows: Vec<Pair> =
            (0..ROWS_TOGETHER as u64).map(|count| Pair { name: "first", count }).collect();
        rows.push(Pair { name: "x", count: 7 });
        let text = written(Format::Table, &rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), ROWS_TOGETHER + 2);
        assert_eq!(lines.first(), Some(&"NAME   COUNT"));
        assert_eq!(lines.last(), Some(&"x      7"));
    }
}
