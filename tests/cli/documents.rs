//! JSON: one valid document whatever happens, with `qemu-img`'s keys where and as `qemu-img` has them.
//!
//! Comes in: every image of the corpus, and things that are no images. Goes out: documents. Never here: whether the
//! numbers in them are right (`oracle`).

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::stage::{Said, Stage, bytes_of, corpus};

/// Keys `qemu-img` leaves out when they are zero.
const COUNTS: [&str; 9] = [
    "image-end-offset",
    "total-clusters",
    "allocated-clusters",
    "fragmented-clusters",
    "compressed-clusters",
    "corruptions",
    "leaks",
    "corruptions-fixed",
    "leaks-fixed",
];

const VERDICTS: [&str; 5] = ["clean", "leaks", "repairable", "do-not-boot", "unreadable"];

fn expect_contract(document: &Value, about: &str) {
    assert!(document["filename"].is_string(), "{about}: filename");
    assert!(document["format"].is_string(), "{about}: format");
    assert!(document["check-errors"].is_u64(), "{about}: check-errors");
    assert_eq!(document["schema"], 1, "{about}: schema");
    let verdict = document["verdict"].as_str().unwrap_or_default();
    assert!(VERDICTS.contains(&verdict), "{about}: verdict {verdict}");
    for key in COUNTS {
        let count = document.get(key);
        assert!(
            count.is_none_or(|count| count.as_u64().is_some_and(|count| count > 0)),
            "{about}: {key} is {count:?}, and not an integer above zero or absent"
        );
    }
    if document.get("error").is_none() {
        for key in ["findings", "unreliable"] {
            assert!(document[key].is_array(), "{about}: {key}");
        }
        for key in ["totals", "coverage", "features"] {
            assert!(document[key].is_object(), "{about}: {key}");
        }
        assert!(document["coverage"]["complete"].is_boolean(), "{about}");
    } else {
        assert!(document["error"]["message"].is_string(), "{about}");
        assert!(document["error"]["advice"].is_string(), "{about}");
        assert_ne!(document["check-errors"], 0, "{about}: check-errors");
        assert_eq!(verdict, "unreadable", "{about}");
    }
}

/// The exit code and the numbers of a document say the same.
fn expect_agreement(said: &Said, document: &Value, about: &str) {
    let count = |key: &str| document[key].as_u64().unwrap_or(0);
    let expected = if document.get("error").is_some() {
        63
    } else if count("check-errors") > 0 {
        1
    } else if count("corruptions") > 0 {
        2
    } else if count("leaks") > 0 {
        3
    } else {
        0
    };
    assert_eq!(said.exit, Some(expected), "{about}: {document}");
}

#[test]
fn every_image_of_the_corpus_gets_one_document_that_keeps_the_contract() {
    let stage = Stage::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let entries = fs::read_dir(root).expect("the corpus is part of the repository");
    let cases = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|case| corpus(case).is_file());
    let mut images = 0;
    for case in cases {
        images += 1;
        let arguments = ["check", "--output", "json"].map(Into::into);
        let said = stage.qfsck(arguments.into_iter().chain([corpus(&case)]));
        let document = said.document();
        expect_contract(&document, &case);
        expect_agreement(&said, &document, &case);
        assert_eq!(
            document["filename"].as_str().map(Path::new),
            Some(corpus(&case).as_path()),
            "{case}"
        );
        let is_error = document.get("error").is_some();
        assert_eq!(said.err().is_empty(), !is_error, "{case}: {}", said.err());
    }
    assert!(images >= 200, "the corpus has only {images} images");
}

#[test]
fn there_is_one_document_even_on_failure() {
    let stage = Stage::new();
    stage.put("empty", b"");
    stage.put("raw", &[0; 5000]);
    stage.put("stump", b"QFI\xfb");
    fs::create_dir(stage.path("directory")).expect("a directory can be made");
    let failures = [
        ("empty", 63),
        ("raw", 63),
        ("stump", 63),
        ("directory", 1),
        ("missing", 1),
        ("empty/inside", 1),
    ];
    for (name, code) in failures {
        for output in ["json", "jsonl"] {
            let said = stage.qfsck(["check", "--output", output, name]);
            said.expect_exit(code);
            let document = said.document();
            expect_contract(&document, name);
            assert_eq!(document["format"], "unknown", "{name}");
            assert_eq!(document["filename"], name);
            let message = document["error"]["message"].as_str().unwrap_or_default();
            assert!(message.contains(name), "{message}");
            assert!(said.err().contains(message), "stderr says it as well");
        }
        let said = stage.qfsck(["owner", "--output", "json", name, "0"]);
        said.expect_exit(code);
        assert_eq!(said.document()["filename"], name, "owner");
    }
    let said = stage.qfsck(["check", "--output", "json", "--data-file", "missing", "raw"]);
    said.expect_exit(1);
    expect_contract(&said.document(), "a missing data file");
}

#[test]
fn there_is_a_document_for_what_has_no_answer() {
    let stage = Stage::new();
    // What is asked for cannot be done with any image, or has no answer in this one.
    stage.copy("002-v3-plain", "image");
    let mut no_cluster_size = bytes_of("002-v3-plain");
    no_cluster_size[20..24].copy_from_slice(&63_u32.to_be_bytes());
    stage.put("sizeless", &no_cluster_size);
    let questions: [(&[&str], i32); 5] = [
        (&["check", "-f", "raw", "image"], 63),
        (&["check", "-f", "raw", "missing"], 63),
        (&["owner", "image", "1T"], 64),
        (&["owner", "sizeless", "0"], 1),
        (&["owner", "--guest", "sizeless", "0"], 1),
    ];
    for (arguments, code) in questions {
        for output in ["json", "jsonl"] {
            let said = stage.qfsck(arguments.iter().chain(&["--output", output]));
            said.expect_exit(code);
            let document = said.document();
            expect_contract(&document, &format!("{arguments:?}"));
            let message = document["error"]["message"].as_str().unwrap_or_default();
            assert!(said.err().contains(message), "stderr says it as well");
        }
    }
    let several = [
        "check", "--output", "jsonl", "-f", "raw", "image", "missing",
    ];
    let said = stage.qfsck(several);
    said.expect_exit(63);
    assert_eq!(said.documents().len(), 2, "one for each image");
    let said = stage.qfsck(["check", "-q", "--output", "json", "-f", "raw", "image"]);
    assert_eq!(said.out(), "");
}

#[test]
fn several_images_are_one_document_a_line() {
    let stage = Stage::new();
    stage.copy("002-v3-plain", "clean");
    stage.copy("104-refcount-zero-data", "corrupt");
    stage.put("empty", b"");
    let names = ["clean", "missing", "empty", "corrupt", "clean"];
    let said = stage.qfsck(["check", "--output", "jsonl"].iter().chain(&names));
    said.expect_exit(2);
    let documents = said.documents();
    let filenames: Vec<_> = documents
        .iter()
        .map(|document| document["filename"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(filenames, names, "every image, in the order given");
    for document in &documents {
        expect_contract(document, "a line");
    }
    assert_eq!(
        documents[0], documents[4],
        "the same image, the same document"
    );
    assert!(said.stdout.ends_with(b"\n"));
}

#[test]
fn quiet_is_quiet() {
    let stage = Stage::new();
    stage.copy("100-refcount-leak", "leaks");
    for output in ["human", "json", "jsonl"] {
        let said = stage.qfsck(["check", "-q", "--output", output, "leaks"]);
        said.expect_exit(3);
        assert_eq!((said.out(), said.err()), (String::new(), String::new()));
        let said = stage.qfsck(["check", "--quiet", "--output", output, "missing"]);
        said.expect_exit(1);
        assert_eq!(said.out(), "");
        assert_ne!(said.err(), "", "errors are said all the same");
    }
}

#[test]
fn json_is_the_same_at_any_number_of_threads() {
    let stage = Stage::new();
    for case in [
        "015-snapshots-diverged",
        "142-l2-table-garbage",
        "171-shared-cluster-counted",
    ] {
        stage.copy(case, "image");
        let with = |jobs| stage.qfsck(["check", "--output", "json", "--jobs", jobs, "image"]);
        let alone = with("1").out();
        for jobs in ["2", "7", "1024"] {
            assert_eq!(with(jobs).out(), alone, "{case} with {jobs} threads");
        }
    }
}
