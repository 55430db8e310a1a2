//! `owner` and `explain`: every kind of place has an answer.
//!
//! Comes in: offsets into images of the corpus. Goes out: owners, paths, explanations. Never here: a whole check.

use super::stage::{Said, Stage, bytes_of};

/// The data of the first guest cluster, its L2 table and its L1 table, as the image says.
struct Places {
    l1_table: u64,
    l2_table: u64,
    data: u64,
    file_bytes: u64,
}

fn places(case: &str) -> Places {
    let bytes = bytes_of(case);
    let word = |at: u64| {
        let at = usize::try_from(at).expect("a small number");
        let word = bytes[at..at + 8].try_into().expect("eight bytes");
        u64::from_be_bytes(word) & 0x00ff_ffff_ffff_fe00
    };
    let l1_table = word(40);
    let l2_table = word(l1_table);
    Places {
        l1_table,
        l2_table,
        data: word(l2_table),
        file_bytes: bytes.len() as u64,
    }
}

#[track_caller]
fn expect_words(said: &Said, words: &[&str]) {
    said.expect_exit(0);
    for word in words {
        assert!(said.out().contains(word), "{word:?} in {}", said.out());
    }
}

#[test]
fn every_cluster_of_the_file_has_an_answer() {
    let stage = Stage::new();
    stage.copy("002-v3-plain", "image");
    let places = places("002-v3-plain");
    let owners = [
        (0, "the header", "header"),
        (300, "the header", "header"),
        (places.l1_table, "L1 table", "l1-table"),
        (places.l2_table, "L2 table", "l2-table"),
        (places.data, "guest data 0x0-0x200", "guest-data"),
        (places.data + 511, "guest data 0x0-0x200", "guest-data"),
    ];
    for (offset, words, kind) in owners {
        for offset in [format!("{offset}"), format!("{offset:#x}")] {
            let said = stage.qfsck(["owner", "image", &offset]);
            expect_words(&said, &["refcount 1, 1 reference\n", words]);
            let said = stage.qfsck(["owner", "--output", "json", "image", &offset]);
            said.expect_exit(0);
            let document = said.document();
            assert_eq!(document["stored"], 1);
            assert_eq!(document["expected"], 1);
            assert_eq!(document["owners"][0]["kind"], kind);
            assert_eq!(document["coverage"]["complete"], true);
        }
    }
    let end = places.file_bytes.to_string();
    for output in ["human", "json"] {
        for offset in [end.as_str(), "1T", "0xffffffffffffffff"] {
            let said = stage.qfsck(["owner", "--output", output, "image", offset]);
            said.expect_exit(64);
            if output == "human" {
                assert_eq!(said.out(), "");
            } else {
                assert!(said.document()["error"]["message"].is_string());
            }
            assert!(said.err().contains("bytes long"), "{}", said.err());
        }
    }
}

#[test]
fn free_leaked_and_shared_clusters_are_told_apart() {
    let stage = Stage::new();
    stage.copy("021-snapshot-deleted", "image");
    let said = stage.qfsck(["owner", "image", "0"]);
    said.expect_exit(0);
    // Some cluster of an image with a deleted snapshot is free.
    let clusters = places("021-snapshot-deleted").file_bytes / 512;
    let is_free = |cluster: u64| {
        let offset = (cluster * 512).to_string();
        let said = stage.qfsck(["owner", "image", &offset]).out();
        said.contains("refcount 0, 0 references") && said.contains("nothing refers to it")
    };
    assert!((0..clusters).any(is_free), "no cluster is free");
    stage.copy("100-refcount-leak", "image");
    let said = stage.qfsck(["owner", "image", "6656"]);
    expect_words(&said, &["refcount 1, 0 references", "nothing refers to it"]);
    stage.copy("178-data-on-snapshot-l1", "image");
    let said = stage.qfsck(["owner", "image", "0x1a00"]);
    expect_words(
        &said,
        &[
            "refcount 1, 2 references",
            "snapshot #0 L1 table",
            "guest data 0x400-0x600",
        ],
    );
}

/// The path of a guest offset: in words, and as the target in JSON.
fn path(stage: &Stage, offset: &str) -> (String, String) {
    let human = stage.qfsck(["owner", "--guest", "image", offset]);
    human.expect_exit(0);
    let json = stage.qfsck(["owner", "--guest", "--output", "json", "image", offset]);
    json.expect_exit(0);
    let target = json.document()["target"].as_str().map(str::to_owned);
    (human.out(), target.expect("a target"))
}

#[test]
fn every_kind_of_guest_offset_has_a_path() {
    let stage = Stage::new();
    let places = places("002-v3-plain");
    let host = format!("at {:#x} of the image file", places.data + 5);
    let paths = [
        ("002-v3-plain", "5", "host", host.as_str()),
        ("002-v3-plain", "0x1fe00", "unallocated", "not allocated"),
        (
            "002-v3-plain",
            "1G",
            "unallocated",
            "past the end of the virtual disk",
        ),
        ("003-empty-image", "0", "unallocated", "not allocated"),
        (
            "028-compressed-deflate",
            "0",
            "compressed",
            "compressed, in",
        ),
        (
            "044-data-file-raw",
            "0",
            "host",
            "of the external data file",
        ),
        (
            "135-l1-entry-unaligned",
            "0x20000",
            "broken",
            "not at a cluster boundary",
        ),
        (
            "154-l2-entry-past-end-of-file",
            "0x8000",
            "broken",
            "past the end of the file",
        ),
        (
            "152-l2-entry-unaligned",
            "0x20000",
            "broken",
            "not at a cluster boundary",
        ),
        ("034-zero-clusters", "0x200", "zero", "reads as zeros"),
    ];
    for (case, offset, target, words) in paths {
        stage.copy(case, "image");
        let (human, found) = path(&stage, offset);
        assert_eq!(found, target, "{case}");
        assert!(human.contains(words), "{case}: {human}");
    }
}

#[test]
fn an_image_without_a_cluster_size_has_no_places() {
    let stage = Stage::new();
    stage.copy("311-cluster-bits-too-small", "image");
    for guest in [&[][..], &["--guest"]] {
        let said = stage.qfsck([&["owner", "image", "0"], guest].concat());
        said.expect_exit(1);
        assert!(
            said.err().contains("no usable cluster size"),
            "{}",
            said.err()
        );
        assert_eq!(said.out(), "");
    }
}

#[test]
fn offsets_are_read_as_people_write_them() {
    let stage = Stage::new();
    stage.copy("002-v3-plain", "image");
    let plain = stage.qfsck(["owner", "--guest", "image", "1048576"]).out();
    for offset in ["0x100000", "0X100000", "1024K", "1024k", "1M", "1m"] {
        assert_eq!(
            stage.qfsck(["owner", "--guest", "image", offset]).out(),
            plain
        );
    }
    for offset in ["1G", "1g", "1T", "1t"] {
        stage
            .qfsck(["owner", "--guest", "image", offset])
            .expect_exit(0);
    }
}

#[test]
fn every_code_is_explained_with_its_remedy() {
    let stage = Stage::new();
    let list = stage.qfsck(["explain"]);
    list.expect_exit(0);
    let list = list.out();
    assert!(list.lines().count() >= 100, "{list}");
    for line in list.lines() {
        let mut columns = line
            .splitn(3, "  ")
            .map(str::trim)
            .filter(|text| !text.is_empty());
        let code = columns.next().expect("a code");
        let said = stage.qfsck(["explain", code]);
        said.expect_exit(0);
        let out = said.out();
        let (head, rest) = out.split_once('\n').expect("several lines");
        let (named, title) = head.split_once(": ").expect("a title");
        assert_eq!(named, code);
        assert!(line.ends_with(title), "{line} against {title}");
        let (_, remedy) = rest.split_once("Remedy: ").expect("a remedy");
        assert!(remedy.trim().len() > 10, "{code}: {remedy}");
        assert!(
            rest.lines().all(|line| line.chars().count() <= 100),
            "{code}"
        );
    }
    let near = stage.qfsck(["explain", "Refcount-Leak"]);
    near.expect_exit(64);
    assert!(near.err().contains("qfsck explain"), "{}", near.err());
}
