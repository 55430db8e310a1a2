//! Values that several commands take.
//!
//! Comes in: a word of the command line. Goes out: its value, or what to write instead. Never here: an option.

use clap::ValueEnum;
use qfsck::Code;
use strsim::osa_distance;

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// A bar if stderr is a terminal
    Auto,
    /// Nothing
    None,
    /// JSON Lines on stderr
    Json,
}

/// Reads the code of a finding; of an unknown one, names those that are spelled alike.
pub(crate) fn parse_code(id: &str) -> Result<Code, String> {
    Code::from_id(id).ok_or_else(|| {
        let mut close: Vec<(usize, &str)> = Code::ALL
            .iter()
            .map(|code| (osa_distance(id, code.id()), code.id()))
            .filter(|(distance, known)| *distance <= 3 || known.contains(id))
            .collect();
        close.sort_unstable();
        // Beside a slip of the finger, what is further away is noise.
        if let Some(&(best @ 0..=3, _)) = close.first() {
            close.retain(|(distance, _)| *distance == best);
        }
        let close: Vec<&str> = close.into_iter().take(3).map(|(_, id)| id).collect();
        match close.as_slice() {
            [] => "there is no such finding; `qfsck explain` lists them all".to_owned(),
            close => format!(
                "there is no such finding; did you mean {}?",
                close.join(" or ")
            ),
        }
    })
}

/// Reads 327680, 0x50000 or 320K.
pub(crate) fn parse_offset(text: &str) -> Result<u64, String> {
    let (number, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (text.get(..at), 10),
        Some((at, 'm' | 'M')) => (text.get(..at), 20),
        Some((at, 'g' | 'G')) => (text.get(..at), 30),
        Some((at, 't' | 'T')) => (text.get(..at), 40),
        _ => (Some(text), 0),
    };
    let number = number.unwrap_or_default();
    let parsed = match number.strip_prefix("0x").or(number.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => number.parse(),
    };
    parsed
        .ok()
        .and_then(|value| value.checked_mul(1 << shift))
        .ok_or_else(|| "give bytes, as 327680, 0x50000 or 320K".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_code_is_answered_with_those_spelled_alike() {
        assert_eq!(parse_code("refcount-leak"), Ok(Code::RefcountLeak));
        for typo in ["refcount-leek", "refcount-laek", "refcountleak"] {
            let answer = parse_code(typo).expect_err("no such code");
            assert!(answer.contains("refcount-leak?"), "{answer}");
        }
        let part = parse_code("guest-data").expect_err("no such code");
        assert!(part.contains("guest-data-overlap"), "{part}");
        for hopeless in ["frobnicate-the-image", "", &"x".repeat(1000)] {
            assert!(parse_code(hopeless).is_err());
        }
    }

    #[test]
    fn offsets_are_read_in_all_their_forms() {
        assert_eq!(parse_offset("327680"), Ok(327_680));
        assert_eq!(parse_offset("0x50000"), Ok(0x5_0000));
        assert_eq!(parse_offset("320K"), Ok(327_680));
        assert_eq!(parse_offset("1T"), Ok(1 << 40));
        assert_eq!(parse_offset("2g"), Ok(2 << 30));
        assert!(parse_offset("99999999T").is_err());
        assert!(parse_offset("").is_err());
        assert!(parse_offset("x").is_err());
    }
}
