//! How the page looks: on paper, by day, by night.
//!
//! Comes in: nothing. Goes out: a style sheet. Never here: a file, a font or an image from elsewhere; a fact that only a
//! colour tells.

use super::html::Html;

/// Colours by day; what is printed uses them as well.
const DAY: &str = "\
--paper:#fcfbf8;--ink:#1d1c1a;--soft:#5d5a53;--line:#d8d4ca;--panel:#f3f0e9;--link:#0b4f8a;\
--bad:#a8201a;--warn:#7d5200;--wait:#2f5580;--good:#2b6539;\
--data:#a9c0d0;--metadata:#2d5f86;--leak:#dca63c;--free:#f0ede5;--unknown:#cfcac0;--mark:#ffffff;--scratch:#1d1c1a;--stroke:#1d1c1a";

/// Colours by night.
const NIGHT: &str = "\
--paper:#14161a;--ink:#e9e6df;--soft:#aaa69c;--line:#363a42;--panel:#1c1f25;--link:#8fc1f0;\
--bad:#ff8a80;--warn:#e8b75a;--wait:#8fb8e8;--good:#86c995;\
--data:#41596b;--metadata:#7fb4dc;--leak:#d79b2e;--free:#1f2329;--unknown:#4a4d54;--mark:#14161a;--scratch:#14161a;--stroke:#e9e6df";

/// Everything but the colours.
const SHAPES: &str = include_str!("look.css");

/// Writes the style sheet.
pub(super) fn write(html: &mut Html) {
    html.raw(":root{color-scheme:light dark;").raw(DAY);
    html.raw("}\n@media screen and (prefers-color-scheme:dark){:root{")
        .raw(NIGHT);
    html.raw("}}\n").raw(SHAPES);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn colours(palette: &str) -> BTreeMap<&str, [f64; 3]> {
        let pairs = palette.split(';').filter_map(|pair| {
            let (name, colour) = pair.split_once(":#")?;
            let channel = |at: usize| {
                let digits = colour.get(at..at + 2).expect("six digits");
                let value = u8::from_str_radix(digits, 16).expect("hexadecimal digits");
                f64::from(value) / 255.0
            };
            Some((name, [channel(0), channel(2), channel(4)]))
        });
        pairs.collect()
    }

    /// Relative luminance, as the guidelines for accessible pages define it.
    fn luminance(colour: [f64; 3]) -> f64 {
        let [red, green, blue] = colour.map(|channel| {
            if channel <= 0.04045 {
                channel / 12.92
            } else {
                ((channel + 0.055) / 1.055).powf(2.4)
            }
        });
        0.2126 * red + 0.7152 * green + 0.0722 * blue
    }

    fn contrast(one: [f64; 3], other: [f64; 3]) -> f64 {
        let (one, other) = (luminance(one), luminance(other));
        (one.max(other) + 0.05) / (one.min(other) + 0.05)
    }

    #[test]
    fn all_text_has_enough_contrast_by_day_and_by_night() {
        for palette in [DAY, NIGHT] {
            let colours = colours(palette);
            for ground in ["--paper", "--panel"] {
                for text in [
                    "--ink", "--soft", "--link", "--bad", "--warn", "--wait", "--good",
                ] {
                    let found = contrast(colours[text], colours[ground]);
                    assert!(found >= 4.5, "{text} on {ground}: {found:.2}");
                }
            }
            // Marks on the map, and the map's cells on the page, are no text.
            for (mark, ground) in [
                ("--mark", "--bad"),
                ("--mark", "--metadata"),
                ("--scratch", "--leak"),
                ("--stroke", "--unknown"),
                ("--metadata", "--paper"),
                ("--bad", "--paper"),
            ] {
                let found = contrast(colours[mark], colours[ground]);
                assert!(found >= 3.0, "{mark} on {ground}: {found:.2}");
            }
        }
    }

    #[test]
    fn the_sheet_asks_for_nothing_from_elsewhere_and_ends_no_element() {
        let mut html = Html::default();
        write(&mut html);
        let sheet = html.into_page();
        for word in ["url(", "@import", "http", "<", "expression"] {
            assert!(!sheet.contains(word), "{word}");
        }
    }
}
