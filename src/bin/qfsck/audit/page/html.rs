//! HTML, piece by piece: what was written here passes as it is, everything else is escaped.
//!
//! Comes in: pieces known when this was compiled, and text of any origin. Goes out: a page. Never here: a piece of text
//! from a record, a path or an image that could become an element, an attribute, or act on who reads it.
//!
//! A template engine would bring a language of its own and a compiler for it; what keeps text from becoming HTML is one
//! rule, and the type of [`Html::raw`] holds it.

use std::fmt::{self, Write};

use indicatif::HumanBytes;
use qfsck::escaped;

/// A page as it grows.
#[derive(Debug, Default)]
pub(super) struct Html {
    page: String,
}

impl Html {
    /// HTML that was written by hand: no text that comes from anywhere lives as long.
    pub(super) fn raw(&mut self, html: &'static str) -> &mut Self {
        self.page.push_str(html);
        self
    }

    /// Text, for between elements and for attributes in double quotes.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        for character in text.chars() {
            match character {
                '&' => self.page.push_str("&amp;"),
                '<' => self.page.push_str("&lt;"),
                '>' => self.page.push_str("&gt;"),
                '"' => self.page.push_str("&quot;"),
                '\'' => self.page.push_str("&#39;"),
                ' '..='~' => self.page.push(character),
                // What reorders text or cannot be seen is spelled out, as on a terminal.
                _ => {
                    let shown = escaped(character.encode_utf8(&mut [0; 4]).as_bytes());
                    self.page.push_str(&shown);
                }
            }
        }
        self
    }

    /// Text with places to fill in.
    pub(super) fn words(&mut self, text: fmt::Arguments<'_>) -> &mut Self {
        self.text(&text.to_string())
    }

    /// A number for people: `10,000`.
    pub(super) fn number(&mut self, number: u64) -> &mut Self {
        self.text(&grouped(number))
    }

    /// A number for programs.
    pub(super) fn plain(&mut self, number: u64) -> &mut Self {
        // A string takes everything.
        let _written = write!(self.page, "{number}");
        self
    }

    /// A number of bytes.
    pub(super) fn bytes(&mut self, bytes: u64) -> &mut Self {
        self.words(format_args!("{}", HumanBytes(bytes)))
    }

    /// The page as it is now.
    pub(super) fn into_page(self) -> String {
        self.page
    }
}

/// `10,000`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let mut html = Html::default();
        html.text(text);
        html.into_page()
    }

    #[test]
    fn text_stays_text() {
        assert_eq!(
            shown("<b onclick='x' class=\"y\">&amp;"),
            "&lt;b onclick=&#39;x&#39; class=&quot;y&quot;&gt;&amp;amp;"
        );
        assert_eq!(shown("a\\b\u{202e}c\n\x1b"), "a\\b\\u{202e}c\\x0a\\x1b");
        assert_eq!(shown("Ünïcödé 日本語"), "Ünïcödé 日本語");
    }

    #[test]
    fn no_character_of_all_comes_out_as_markup_or_unseen() {
        for number in 0..=u32::from(char::MAX) {
            let Some(character) = char::from_u32(number) else {
                continue;
            };
            let text = shown(&format!("a{character}b"));
            let inner = text
                .strip_prefix('a')
                .and_then(|text| text.strip_suffix('b'))
                .expect("what stands beside it stays");
            assert!(!inner.is_empty(), "{character:?} is lost");
            let entities = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"];
            if entities.contains(&inner) {
                continue;
            }
            let is_markup = |found: char| "<>&\"'".contains(found);
            let acts = |found: char| {
                found.is_control()
                    || ('\u{200b}'..='\u{200f}').contains(&found)
                    || ('\u{2028}'..='\u{202e}').contains(&found)
                    || ('\u{2060}'..='\u{206f}').contains(&found)
                    || found == '\u{feff}'
                    || found == '\u{61c}'
            };
            assert!(!inner.contains(is_markup), "{character:?}: {inner:?}");
            assert!(!inner.contains(acts), "{character:?}: {inner:?}");
        }
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
