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

/// C1 controls, line separators, the marks that reorder text on a terminal, and everything that takes no room on it: what
/// Unicode lets a program ignore (zero-width and variation selectors, tags, soft hyphens, fillers), and the blank Braille
/// pattern. Two names that look the same are shown differently.
pub(crate) fn is_deceptive(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{00ad}'
                | '\u{034f}'
                | '\u{061c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{2800}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
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
    fn what_takes_no_room_on_a_terminal_is_spelled_out() {
        let invisible = [
            '\u{ad}',
            '\u{34f}',
            '\u{61c}',
            '\u{115f}',
            '\u{17b4}',
            '\u{180e}',
            '\u{200b}',
            '\u{200d}',
            '\u{202e}',
            '\u{2066}',
            '\u{2069}',
            '\u{2800}',
            '\u{3164}',
            '\u{fe0f}',
            '\u{feff}',
            '\u{ffa0}',
            '\u{fff9}',
            '\u{1d173}',
            '\u{e0041}',
            '\u{e0100}',
            '\u{e01ef}',
        ];
        for character in invisible {
            let name = format!("a{character}b");
            let spelled = format!("a{}b", character.escape_unicode());
            assert_eq!(escaped(name.as_bytes()), spelled);
            assert_eq!(escaped_path(Path::new(&name)), spelled);
        }
        for seen in ["Ünïcödé", "日本語", "e\u{301}", "\u{1f4be}", "ไทย"] {
            assert_eq!(escaped(seen.as_bytes()), seen);
        }
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
