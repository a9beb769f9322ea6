//! Curves as a plot: loss and accuracy side by side, readable on a light and on a dark background.

use std::fmt::Write;

use super::{Curve, Point};

/// The width of the whole picture.
const WIDTH: f64 = 760.0;
/// The height of the picture without the legend.
const HEIGHT: f64 = 300.0;
/// The width and height of one panel's field.
const FIELD: (f64, f64) = (290.0, 220.0);
/// The left edges of the fields.
const LEFT: [f64; 2] = [60.0, 440.0];
/// The upper edge of the fields.
const TOP: f64 = 36.0;
/// The height of a line of the legend.
const LINE: f64 = 20.0;
/// The approximate number of labels on an axis.
const TICKS: f64 = 5.0;

/// Colours that people with any kind of colour vision can tell apart (Okabe, Ito), for light and
/// for dark backgrounds; the dashes differ too.
const STYLES: [(&str, &str, &str); 6] = [
    ("#d55e00", "#ff8c3b", "none"),
    ("#0072b2", "#56b4e9", "none"),
    ("#007a5e", "#2fd6a5", "7 4"),
    ("#a5507e", "#e69fc4", "2 3"),
    ("#7a6a00", "#f0e442", "9 3 2 3"),
    ("#555555", "#bbbbbb", "4 2"),
];

/// The number of a point that a panel shows.
type Value = fn(&Point) -> f64;

/// One of the two panels.
struct PlotPanel {
    title: &'static str,
    left: f64,
    low: f64,
    high: f64,
    value: Value,
}

/// Draws the plot as an SVG document. At least one curve must have a point.
pub fn svg(curves: &[Curve]) -> String {
    let height = HEIGHT + LINE * curves.len() as f64 + 12.0;
    let mut text = String::new();
    let mut put = |line: &str| text.extend([line, "\n"]);
    put(&format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\" font-family=\"system-ui, sans-serif\" font-size=\"12\">"
    ));
    put("<title>Loss and accuracy between two models</title>");
    put(&style(curves.len()));
    put(&format!(
        "<rect class=\"ground\" width=\"{WIDTH}\" height=\"{height}\"/>"
    ));
    let panels: [(&str, Value); 2] = [
        ("loss (nats)", |point| point.loss),
        ("accuracy", |point| point.accuracy),
    ];
    for ((title, value), left) in panels.into_iter().zip(LEFT) {
        PlotPanel::new(title, left, value, curves).draw(curves, &mut put);
    }
    for (at, curve) in curves.iter().enumerate() {
        let y = HEIGHT + LINE * (at as f64 + 0.5);
        let class = at % STYLES.len();
        put(&format!(
            "<path class=\"curve c{class}\" d=\"M{} {y}h36\"/>",
            LEFT[0]
        ));
        let note = format!("{}: barrier {:.3}", curve.name, curve.barrier());
        put(&format!(
            "<text x=\"{}\" y=\"{}\">{}</text>",
            LEFT[0] + 46.0,
            y + 4.0,
            escaped(&note)
        ));
    }
    put("</svg>");
    text
}

fn style(curves: usize) -> String {
    let used = &STYLES[..curves.min(STYLES.len())];
    let rule = |at: usize, colour: &str| format!(".c{at}{{stroke:{colour}}}");
    let styles = used.iter().enumerate();
    let on_light: String = styles
        .clone()
        .map(|(at, style)| rule(at, style.0))
        .collect();
    let on_dark: String = styles.map(|(at, style)| rule(at, style.1)).collect();
    let dashes: String = used
        .iter()
        .enumerate()
        .map(|(at, (.., dash))| format!(".c{at}{{stroke-dasharray:{dash}}}"))
        .collect();
    format!(
        "<style>.ground{{fill:#ffffff}}text{{fill:#1f2328}}.axis{{stroke:#57606a;fill:none}}.grid{{stroke:#d0d7de}}\
         .curve{{fill:none;stroke-width:2}}{dashes}{}@media (prefers-color-scheme: dark){{.ground{{fill:#0d1117}}\
         text{{fill:#e6edf3}}.axis{{stroke:#8d96a0}}.grid{{stroke:#30363d}}{}}}</style>",
        on_light, on_dark
    )
}

impl PlotPanel {
    fn new(title: &'static str, left: f64, value: Value, curves: &[Curve]) -> Self {
        let values = || curves.iter().flat_map(|curve| &curve.points).map(value);
        let (least, most) = (
            values().fold(f64::INFINITY, f64::min),
            values().fold(f64::NEG_INFINITY, f64::max),
        );
        let step = step(most - least);
        Self {
            title,
            left,
            low: (least / step).floor() * step,
            high: (most / step).ceil() * step,
            value,
        }
    }

    fn x(&self, lambda: f64) -> f64 {
        self.left + FIELD.0 * lambda
    }

    fn y(&self, value: f64) -> f64 {
        let span = if self.high > self.low {
            self.high - self.low
        } else {
            1.0
        };
        TOP + FIELD.1 * (1.0 - (value - self.low) / span)
    }

    fn draw(&self, curves: &[Curve], put: &mut impl FnMut(&str)) {
        let (bottom, right) = (TOP + FIELD.1, self.left + FIELD.0);
        put(&format!(
            "<text x=\"{}\" y=\"{}\" font-weight=\"600\">{}</text>",
            self.left,
            TOP - 14.0,
            self.title
        ));
        let step = step(self.high - self.low);
        let mut tick = self.low;
        while tick <= self.high + 0.5 * step {
            let y = self.y(tick);
            put(&format!(
                "<path class=\"grid\" d=\"M{} {y:.1}H{right}\"/>",
                self.left
            ));
            let digits = decimals(step);
            let label = format!("{tick:.digits$}");
            put(&format!(
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                self.left - 7.0,
                y + 4.0
            ));
            tick += step;
        }
        for lambda in [0.0, 0.25, 0.5, 0.75, 1.0] {
            let x = self.x(lambda);
            put(&format!("<path class=\"axis\" d=\"M{x:.1} {bottom}v5\"/>"));
            let label = format!(
                "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{lambda}</text>",
                bottom + 19.0
            );
            put(&label);
        }
        put(&format!(
            "<path class=\"axis\" d=\"M{} {TOP}V{bottom}H{right}\"/>",
            self.left
        ));
        let middle = self.x(0.5);
        put(&format!(
            "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">\u{3bb}</text>",
            bottom + 34.0
        ));
        for (at, curve) in curves.iter().enumerate() {
            let mut path = String::new();
            for (first, point) in curve.points.iter().enumerate() {
                let mark = if first == 0 { 'M' } else { 'L' };
                // Writing to a string cannot fail.
                let _ = write!(
                    path,
                    "{mark}{:.1} {:.1}",
                    self.x(point.lambda),
                    self.y((self.value)(point))
                );
            }
            put(&format!(
                "<path class=\"curve c{}\" d=\"{path}\"/>",
                at % STYLES.len()
            ));
        }
    }
}

/// Returns 1, 2 or 5 times a power of ten, chosen so that a span has about [`TICKS`] of them.
fn step(span: f64) -> f64 {
    if span.is_nan() || span <= 0.0 {
        return 0.1;
    }
    let rough = span / TICKS;
    let power = 10_f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough)
        .unwrap_or(10.0 * power)
}

fn decimals(step: f64) -> usize {
    let whole = |digits: &u8| step * 10_f64.powi(i32::from(*digits)) > 0.999;
    (0..12).find(whole).map_or(12, usize::from)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
