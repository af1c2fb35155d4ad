//! The label that is stuck to a unit: a QR code of unit and serial, and the
//! same for people. Pure.

use std::fmt::Write as _;

use model::UnitName;
use qrcode::{Color, EcLevel, QrCode};
use serde::Serialize;

/// Modules of white that a reader needs around a code.
const QUIET: usize = 4;
/// Width and height of the label in millimetres: a common size of rolls.
const SIZE: (u32, u32) = (62, 29);

/// What stands on a label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Label {
    pub(crate) unit: UnitName,
    pub(crate) serial: String,
    pub(crate) product: String,
    /// What the QR code says.
    pub(crate) text: String,
    #[serde(skip)]
    modules: Modules,
}

/// The squares of a code, row by row; true is dark.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Modules(Vec<Vec<bool>>);

/// Too much for a code that a label has room for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("label of {0}: the serial is too long for a QR code")]
pub(crate) struct TooLong(UnitName);

impl Label {
    /// Makes a label.
    pub(crate) fn new(unit: &UnitName, serial: &str, product: &str) -> Result<Self, TooLong> {
        let text = format!("leapserv:{unit}?serial={}", escape(serial));
        // Stickers get scratched: 15 % of the code may be lost.
        let code = QrCode::with_error_correction_level(&text, EcLevel::M)
            .map_err(|_| TooLong(unit.clone()))?;
        let dark: Vec<bool> = code
            .to_colors()
            .into_iter()
            .map(|color| color == Color::Dark)
            .collect();
        let modules = dark.chunks(code.width()).map(<[bool]>::to_vec).collect();
        Ok(Self {
            unit: unit.clone(),
            serial: serial.to_owned(),
            product: product.to_owned(),
            text,
            modules: Modules(modules),
        })
    }

    /// As a drawing to print.
    pub(crate) fn svg(&self) -> String {
        let (width, height) = SIZE;
        let side = self.modules.0.len() + 2 * QUIET;
        let mut path = String::new();
        for (y, row) in self.modules.0.iter().enumerate() {
            for (x, _) in row.iter().enumerate().filter(|(_, dark)| **dark) {
                let _ = write!(path, "M{} {}h1v1h-1z", x + QUIET, y + QUIET);
            }
        }
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}mm\" height=\"{height}mm\" \
             viewBox=\"0 0 {width} {height}\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n\
             <svg width=\"{height}\" height=\"{height}\" viewBox=\"0 0 {side} {side}\" \
             shape-rendering=\"crispEdges\"><path d=\"{path}\"/></svg>\n"
        );
        let lines = [
            (9.0, 5.0, "bold", self.unit.name()),
            (14.0, 3.2, "normal", self.unit.customer().as_str()),
            (20.5, 3.2, "normal", self.serial.as_str()),
            (25.0, 2.4, "normal", self.product.as_str()),
        ];
        // What is left of the code's square, and how wide a letter is to its height.
        let (left, room, wide) = (f64::from(height), f64::from(width - height - 1), 0.62);
        for (y, most, weight, text) in lines {
            let letters = text.chars().count().max(1);
            #[allow(clippy::cast_precision_loss, reason = "a handful of letters")]
            let size = f64::min(most, room / (letters as f64 * wide));
            let _ = writeln!(
                svg,
                "<text x=\"{left}\" y=\"{y}\" font-family=\"sans-serif\" font-weight=\"{weight}\" \
                 font-size=\"{size:.2}\">{}</text>",
                xml(text)
            );
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// For a terminal: two rows of the code in each line, light on dark.
    pub(crate) fn terminal(&self) -> String {
        let side = self.modules.0.len() + 2 * QUIET;
        let light = |x: usize, y: usize| {
            let row = y.checked_sub(QUIET).and_then(|y| self.modules.0.get(y));
            let dark = x.checked_sub(QUIET).and_then(|x| row?.get(x));
            dark != Some(&true)
        };
        let mut text = String::new();
        for y in (0..side).step_by(2) {
            for x in 0..side {
                text.push(match (light(x, y), y + 1 < side && light(x, y + 1)) {
                    (true, true) => '█',
                    (true, false) => '▀',
                    (false, true) => '▄',
                    (false, false) => ' ',
                });
            }
            text.push('\n');
        }
        let _ = write!(
            text,
            "{}\nserial {}\n{}",
            self.unit, self.serial, self.product
        );
        text
    }
}

/// Escapes what has a meaning in a URI.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

/// A machine says its serial and product itself: they are text and no drawing.
fn xml(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars().filter(|c| !c.is_control()) {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(serial: &str) -> Label {
        let unit = "motivatit/houma-1".parse().unwrap();
        Label::new(&unit, serial, "Dell Inc. OptiPlex 7010 <Micro>").unwrap()
    }

    #[test]
    fn the_code_says_unit_and_serial() {
        assert_eq!(
            label("LEAP-0001").text,
            "leapserv:motivatit/houma-1?serial=LEAP-0001"
        );
        assert_eq!(
            label("A&B 1").text,
            "leapserv:motivatit/houma-1?serial=A%26B%201"
        );
        let unit: UnitName = "motivatit/houma-1".parse().unwrap();
        assert!(Label::new(&unit, &"x".repeat(5000), "").is_err());
    }

    /// Both drawings show the same squares, with room around them.
    #[test]
    fn both_drawings_show_the_code() {
        let label = label("LEAP-0001");
        let modules = &label.modules.0;
        let (svg, terminal) = (label.svg(), label.terminal());
        // The three corners of any code.
        let corner = |x: usize, y: usize| (0..7).all(|i| modules[y][x + i] && modules[y + i][x]);
        let far = modules.len() - 7;
        assert!(corner(0, 0) && corner(far, 0) && corner(0, far) && !corner(far, far));
        let rows: Vec<Vec<char>> = terminal
            .lines()
            .map(|line| line.chars().collect())
            .collect();
        for (y, row) in modules.iter().enumerate() {
            for (x, dark) in row.iter().enumerate() {
                let (x, y) = (x + QUIET, y + QUIET);
                let square = format!("M{x} {y}h1v1h-1z");
                assert_eq!(svg.contains(&square), *dark, "{square}");
                let lit = if y % 2 == 0 { "█▀" } else { "█▄" };
                assert_eq!(!lit.contains(rows[y / 2][x]), *dark, "{x} {y}");
            }
        }
        assert!(rows[0].iter().chain(&rows[1]).all(|c| *c == '█'));
        assert!(
            rows.iter()
                .take(modules.len() / 2)
                .all(|row| row[..QUIET] == ['█'; QUIET])
        );
        assert!(terminal.contains("serial LEAP-0001"));
    }

    #[test]
    fn what_a_machine_says_is_text_and_fits() {
        let svg = label("</text><script>\u{1b}").svg();
        assert!(svg.contains("&lt;/text&gt;&lt;script&gt;<"), "{svg}");
        assert!(svg.contains("Micro&gt;</text>") && !svg.contains('\u{1b}'));
        // A long one is set smaller.
        let long = label(&"S".repeat(60)).svg();
        assert!(long.contains("font-size=\"0.86\""), "{long}");
    }
}
