//! What is true of every row of the catalog.

use super::*;

#[test]
fn codes_are_unique_kebab_case_and_found_by_name() {
    for &code in Code::ALL {
        let id = code.id();
        assert!(
            id.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'),
            "{id}"
        );
        assert_eq!(Code::from_id(id), Some(code));
    }
    assert_eq!(Code::from_id("no-such-code"), None);
}

#[test]
fn rows_speak_in_sentences() {
    for &code in Code::ALL {
        assert!(
            !code.title().ends_with('.'),
            "{code}: a title is no sentence"
        );
        assert!(code.help().ends_with('.'), "{code}");
        assert!(code.remedy().ends_with('.'), "{code}");
    }
}
