//! Names from inside an image, made fit to be shown.
//!
//! Comes in: bytes a stranger may have written. Goes out: text without control or direction characters, of bounded
//! length. Never here: trust.

use std::path::Path;

/// Characters of a name that are shown before it is cut.
const SHOWN_CHARACTERS: usize = 128;

/// The bytes as printable text: what is not printable UTF-8 becomes `\xNN` or `\u{NNNN}`, and a long name is cut.
pub fn escaped(bytes: &[u8]) -> String {
    let mut shown = String::new();
    let mut characters = 0;
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            characters += 1;
            if characters > SHOWN_CHARACTERS {
                shown.push('…');
                return shown;
            }
            push_escaped(&mut shown, character);
        }
        for byte in chunk.invalid() {
            characters += 1;
            if characters > SHOWN_CHARACTERS {
                shown.push('…');
                return shown;
            }
            push_hex(&mut shown, u32::from(*byte));
        }
    }
    shown
}

/// A path a person gave, as printable text. It is shown whole: a path that was cut names no file.
pub fn escaped_path(path: &Path) -> String {
    let mut shown = String::new();
    for chunk in path.as_os_str().as_encoded_bytes().utf8_chunks() {
        for character in chunk.valid().chars() {
            push_escaped(&mut shown, character);
        }
        for byte in chunk.invalid() {
            push_hex(&mut shown, u32::from(*byte));
        }
    }
    shown
}

fn push_escaped(shown: &mut String, character: char) {
    match character {
        '\\' => shown.push_str("\\\\"),
        _ if character.is_ascii_control() => {
            push_hex(shown, u32::from(character));
        }
        _ if is_deceptive(character) => shown.extend(character.escape_unicode()),
        _ => shown.push(character),
    }
}

fn push_hex(shown: &mut String, byte: u32) {
    let digit = |value: u32| char::from_digit(value & 0xf, 16).unwrap_or('0');
    shown.extend(['\\', 'x', digit(byte >> 4), digit(byte)]);
}

/// C1 controls, line separators, and the marks that reorder or hide text on a terminal.
pub(crate) fn is_deceptive(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{061c}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::{escaped, escaped_path};
    use std::path::Path;

    #[test]
    fn controls_bidi_and_broken_utf8_are_spelled_out() {
        assert_eq!(escaped(b"daily 2026"), "daily 2026");
        assert_eq!(escaped(b"\x1b[31mred\n"), "\\x1b[31mred\\x0a");
        assert_eq!(escaped(b"a\xff\\"), "a\\xff\\\\");
        assert_eq!(escaped("x\u{202e}y".as_bytes()), "x\\u{202e}y");
        assert_eq!(escaped("Schnappschuß".as_bytes()), "Schnappschuß");
    }

    #[test]
    fn paths_are_printable_and_whole() {
        let long = "d/".repeat(500);
        assert_eq!(escaped_path(Path::new(&long)), long);
        assert_eq!(escaped_path(Path::new("a\x1b[31m\n")), "a\\x1b[31m\\x0a");
    }

    #[test]
    fn long_names_are_cut() {
        let shown = escaped(&[b'a'; 5000]);
        assert!(shown.ends_with('…'));
        assert_eq!(shown.chars().count(), 129);
        assert!(escaped(&[0xff; 5000]).len() < 1000);
    }
}
