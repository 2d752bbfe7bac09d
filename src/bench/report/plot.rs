//! Lines in a plane, as SVG.

use std::fmt::Write as _;

use super::escape;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 36.0;
/// Points of a line: more are thinned out.
const MAX_POINTS: usize = 2_000;

/// How numbers lie on an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// From 0 on.
    Linear,
    /// Powers of ten.
    Log,
}

/// A line, and what it is.
pub(super) struct Line {
    pub(super) name: String,
    /// `a`, `b` or `c`, as the page colours them, and perhaps `faint`.
    pub(super) class: &'static str,
    pub(super) points: Vec<(f64, f64)>,
}

/// A plot.
pub(super) struct Plot<'a> {
    /// What it shows, for those who do not see it.
    pub(super) title: &'a str,
    pub(super) x: Axis<'a>,
    pub(super) y: Axis<'a>,
    pub(super) lines: Vec<Line>,
}

/// One axis.
pub(super) struct Axis<'a> {
    pub(super) label: &'a str,
    pub(super) scale: Scale,
    /// How a number is written.
    pub(super) text: fn(f64) -> String,
}

/// An axis with a range, in pixels.
struct Ruler {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Ruler {
    fn new(scale: Scale, values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Self {
        let most = values.clone().fold(0.0, f64::max);
        let (low, high) = match scale {
            Scale::Linear => (0.0, if most > 0.0 { most * 1.05 } else { 1.0 }),
            Scale::Log => {
                let least = values.filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
                let least = if least.is_finite() { least } else { 1.0 };
                let low = 10_f64.powf(least.log10().floor());
                (low, 10_f64.powf(most.max(low * 10.0).log10().ceil()))
            }
        };
        Self { scale, low, high, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value.max(self.low) / self.low).log10() / (self.high / self.low).log10(),
        };
        self.from + share * (self.to - self.from)
    }

    /// Where lines and numbers stand.
    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let rough = self.high / 5.0;
                let power = 10_f64.powf(rough.log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| step * power >= rough);
                let step = step.unwrap_or(10.0) * power;
                (0..).map(|n| f64::from(n) * step).take_while(|tick| *tick <= self.high).collect()
            }
            Scale::Log => {
                let decades = (self.high / self.low).log10().round() as i32;
                (0..=decades).map(|n| self.low * 10_f64.powi(n)).collect()
            }
        }
    }
}

impl Plot<'_> {
    /// As an element of a page.
    pub(super) fn svg(&self) -> String {
        let points = self.lines.iter().flat_map(|line| line.points.iter());
        let x = Ruler::new(self.x.scale, points.clone().map(|point| point.0), LEFT, WIDTH - RIGHT);
        let y = Ruler::new(self.y.scale, points.map(|point| point.1), HEIGHT - BOTTOM, TOP);
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
            escape(self.title)
        );
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for tick in y.ticks() {
            let at = y.at(tick);
            let text = escape(&(self.y.text)(tick));
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                LEFT - 6.0,
                at + 4.0,
            );
        }
        for tick in x.ticks() {
            let at = x.at(tick);
            let text = escape(&(self.x.text)(tick));
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                bottom + 14.0,
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <text x=\"{LEFT}\" y=\"12\">{}</text>",
            HEIGHT - 6.0,
            escape(self.x.label),
            escape(self.y.label),
        );
        let mut legend = LEFT + 220.0;
        for line in &self.lines {
            let every = line.points.len().div_ceil(MAX_POINTS).max(1);
            let mut path = String::new();
            for (at_x, at_y) in line.points.iter().step_by(every) {
                let _ = write!(path, "{:.1},{:.1} ", x.at(*at_x), y.at(*at_y));
            }
            let _ = writeln!(
                svg,
                "<polyline class=\"{class}\" points=\"{}\"/>\
                 <text class=\"{class}\" x=\"{legend:.1}\" y=\"12\">{}</text>",
                path.trim_end(),
                escape(&line.name),
                class = line.class,
            );
            legend += 16.0 + 7.0 * line.name.chars().count() as f64;
        }
        svg.push_str("</svg>\n");
        svg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_axis_begins_at_zero_and_has_round_ticks() {
        let ruler = Ruler::new(Scale::Linear, [30.0, 70.0].into_iter(), 0.0, 735.0);
        assert_eq!(ruler.ticks(), [0.0, 20.0, 40.0, 60.0]);
        assert_eq!((ruler.at(0.0), ruler.at(70.0).round()), (0.0, 700.0));
    }

    #[test]
    fn a_log_axis_has_whole_decades_also_around_nothing() {
        let ruler = Ruler::new(Scale::Log, [30.0, 7_000.0].into_iter(), 0.0, 300.0);
        assert_eq!(ruler.ticks(), [10.0, 100.0, 1_000.0, 10_000.0]);
        assert_eq!((ruler.at(10.0), ruler.at(100.0).round(), ruler.at(0.0)), (0.0, 100.0, 0.0));
        assert_eq!(Ruler::new(Scale::Log, [].into_iter(), 0.0, 1.0).ticks(), [1.0, 10.0]);
    }
}
