//! The page of a night: what it says, that it stays small, and that nothing in it is more than text.
//!
//! Comes in: fleets of the corpus with names and records a stranger would write. Goes out: pages, looked at as text here and
//! with a browser in `audit_browser`. Never here: a judgement on an image.

use std::ffi::OsStr;
use std::fmt::Write;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant, SystemTime};

use nix::libc;

use super::locks::set_lock;
use super::stage::{Said, Stage, bytes_of};

/// Names no page may take for anything but names.
pub(super) const HOSTILE: [&[u8]; 7] = [
    b"<img src=x onerror=alert(1)>.qcow2",
    b"\"><script>alert(1)<",
    b"'&amp;&lt;'.qcow2",
    b"line\nend \x1b[31mred\x07",
    "bidi \u{202e}2wocq\u{2066}.\u{200b}zero".as_bytes(),
    b"not \xff\xfe text",
    b"]]>--><!--<![CDATA[<style>*{display:none}",
];

/// A state of three nights: in the second, images are damaged and one is gone; in the third, one is healed.
pub(super) fn fleet() -> Stage {
    let stage = Stage::new();
    fs::create_dir(stage.path("images")).expect("a directory can be made");
    let clean = bytes_of("002-v3-plain");
    for number in 0..12 {
        stage.put(format!("images/vm-{number:02}"), &clean);
    }
    stage.copy("100-refcount-leak", "images/leaky");
    stage.copy("049-corrupt-bit-only", "images/old-damage");
    night(&stage);
    stage.copy("104-refcount-zero-data", "images/vm-03");
    fs::remove_file(stage.path("images/vm-11")).expect("an image can be removed");
    night(&stage);
    stage.put("images/vm-03", &clean);
    stage.copy("173-data-on-l2", "images/vm-04");
    stage.copy("311-cluster-bits-too-small", "images/vm-05");
    stage.put("images/disk.qcow2", b"");
    for name in HOSTILE {
        let mut path = b"images/".to_vec();
        path.extend(name);
        stage.put(
            OsStr::from_bytes(&path),
            &bytes_of("104-refcount-zero-data"),
        );
    }
    night(&stage);
    stage
}

fn night(stage: &Stage) {
    let said = stage.qfsck(["audit", "--state", "state", "images"]);
    said.expect_exit(0);
}

pub(super) fn report(stage: &Stage, more: &[&str]) -> Said {
    stage.qfsck([&["audit", "report", "--html", "page.html"], more].concat())
}

pub(super) fn page(stage: &Stage) -> String {
    fs::read_to_string(stage.path("page.html")).expect("there is a page, and it is text")
}

/// What a reader reads: no elements, and no styles.
fn words(page: &str) -> String {
    let mut text = String::new();
    let mut rest = page;
    while let Some((before, tag)) = rest.split_once('<') {
        text.push_str(before);
        let (tag, after) = tag.split_once('>').expect("every element ends");
        rest = after;
        if tag == "style" {
            rest = after.split_once("</style>").expect("a style ends").1;
        }
        if !matches!(
            tag,
            "code" | "/code" | "strong" | "/strong" | "span" | "/span" | "/a"
        ) {
            text.push(' ');
        }
    }
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let entities = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&amp;", "&"),
    ];
    entities
        .iter()
        .fold(text, |text, (entity, is)| text.replace(entity, is))
}

#[track_caller]
fn expect_words(page: &str, expected: &[&str]) {
    let words = words(page);
    for expected in expected {
        assert!(words.contains(expected), "{expected:?} is not in {words}");
    }
}

#[test]
fn the_first_screen_says_what_is_damaged_what_is_new_and_what_could_not_be_read() {
    let stage = fleet();
    report(&stage, &["--state", "state"]).expect_exit(0);
    let page = page(&stage);
    expect_words(
        &page,
        &[
            "night 3, begun 20",
            // Seven with strange names, vm-04, vm-05, the empty one; and the old one.
            "11 of 21 images are damaged, 10 of them since last night",
            "11 Damaged",
            "10 New damage since last night",
            "1 Could not be read",
            "1 healed, 8 new, 0 gone",
            "1 of them counts as damaged as well",
            "Changes since night 2",
            "2 newly damaged, 8 new, and damaged, 1 healed.",
        ],
    );
    assert!(page.find("Damaged</h2>") < page.find("id=\"fleet\""));
    // In the night before, one image was gone.
    let rows = "state/nights/00000002.jsonl";
    report(&stage, &[rows, "--before", "state/nights/00000001.jsonl"]).expect_exit(0);
    expect_words(
        &self::page(&stage),
        &["1 gone", "Changes since night 1", "--summary does"],
    );
}

#[test]
fn a_damaged_image_that_could_not_be_read_tonight_is_told_as_it_was_last_read() {
    let stage = fleet();
    let open = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(stage.path("images/vm-04"));
    let started = open.expect("it can be opened");
    set_lock(&started, libc::F_WRLCK, 0, 0).expect("it can be locked");
    night(&stage);
    report(&stage, &["--state", "state"]).expect_exit(0);
    expect_words(
        &page(&stage),
        &[
            "10 Damaged",
            "Not read tonight, and damaged when last read: 1.",
            "vm-04 busy, damaged when last read",
        ],
    );
    // It counts among those that could not be read, not as new damage when it is read again.
    set_lock(&started, libc::F_UNLCK, 0, 0).expect("it can be unlocked");
    night(&stage);
    report(&stage, &["--state", "state"]).expect_exit(0);
    let page = page(&stage);
    expect_words(&page, &["11 Damaged", "0 New damage since last night"]);
    assert!(!words(&page).contains("damaged when last read"));
}

/// Elements the page is made of, and those among them that have no end.
const ELEMENTS: [&str; 47] = [
    "!DOCTYPE", "a", "body", "caption", "code", "col", "colgroup", "dd", "defs", "details", "div",
    "dl", "dt", "em", "footer", "g", "h1", "h2", "h3", "head", "header", "html", "input", "li",
    "main", "meta", "nav", "p", "path", "pattern", "rect", "section", "span", "strong", "style",
    "summary", "svg", "table", "tbody", "td", "text", "th", "thead", "time", "title", "tr", "ul",
];
const ENDLESS: [&str; 4] = ["!DOCTYPE", "meta", "col", "input"];

/// Ends the test unless each element is one the page is made of, ends where it ought to, and asks for nothing.
pub(super) fn expect_sound(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page;
    while let Some((text, tag)) = rest.split_once('<') {
        assert!(!text.contains('>'), "a loose > in {text:?}");
        for entity in text.split('&').skip(1) {
            let known = ["lt;", "gt;", "quot;", "#39;", "amp;", "ensp;"];
            assert!(
                known.iter().any(|known| entity.starts_with(known)),
                "a loose & before {entity:?}"
            );
        }
        let (tag, after) = tag.split_once('>').expect("every element ends");
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "what ends is what began last");
            continue;
        }
        let is_closed = tag.ends_with('/');
        let tag = tag.trim_end_matches('/');
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        assert!(ELEMENTS.contains(&name), "an element {name:?}");
        expect_attributes(name, attributes);
        if !is_closed && !ENDLESS.contains(&name) {
            open.push(name);
        }
        if name == "style" {
            let (_, after) = rest.split_once("</style>").expect("a style ends");
            rest = after;
            open.pop();
        }
    }
    assert_eq!(open, [""; 0], "everything ends");
    for character in page.chars() {
        let acts = character.is_control() && character != '\n'
            || ('\u{200b}'..='\u{200f}').contains(&character)
            || ('\u{202a}'..='\u{202e}').contains(&character)
            || ('\u{2060}'..='\u{206f}').contains(&character);
        assert!(!acts, "{character:?} is in the page");
    }
}

fn expect_attributes(name: &str, attributes: &str) {
    let mut rest = attributes.trim_start();
    while !rest.is_empty() {
        let end = rest.find(['=', ' ']).unwrap_or(rest.len());
        let (attribute, after) = rest.split_at(end);
        let known = [
            "aria-",
            "charset",
            "checked",
            "class",
            "colspan",
            "content",
            "d",
            "datetime",
            "height",
            "href",
            "html",
            "http-equiv",
            "id",
            "lang",
            "name",
            "open",
            "pattern",
            "preserveAspectRatio",
            "role",
            "rx",
            "scope",
            "stroke",
            "style",
            "text-anchor",
            "type",
            "viewBox",
            "width",
            "x",
            "y",
        ];
        let is_known = known.iter().any(|known| attribute.starts_with(known));
        assert!(
            is_known && !attribute.starts_with("on"),
            "{name} has {attribute:?}"
        );
        let Some(value) = after.strip_prefix("=\"") else {
            rest = after.trim_start();
            continue;
        };
        let (value, after) = value.split_once('"').expect("a value ends");
        assert!(
            attribute != "href" || value.starts_with('#'),
            "it leads to {value:?}"
        );
        assert!(!value.contains("//"), "it names {value:?}");
        rest = after.trim_start();
    }
}

#[test]
fn names_and_records_of_strangers_stay_text() {
    let stage = fleet();
    report(&stage, &["--state", "state", "--map", "images/vm-04"]).expect_exit(0);
    let page = page(&stage);
    expect_sound(&page);
    expect_words(
        &page,
        &[
            "<img src=x onerror=alert(1)>.qcow2",
            "\"><script>alert(1)<",
            "'&amp;&lt;'.qcow2",
            "line\\x0aend \\x1b[31mred\\x07",
            "bidi \\u{202e}2wocq\\u{2066}.\\u{200b}zero",
            "not \\xff\\xfe text",
        ],
    );
    // A record may be a stranger's as well.
    let evil = "</td><script>alert(1)</script>\\\"' onload=x \\u202e\\u001b[31m&";
    let row = format!(
        r#"{{"image":"/a{evil}","status":"unreadable","reason":"{evil}{}","findings":{{"{evil}":7,"refcount-leak":1}},"first-night":1,"night":9,"tool":"{evil}"}}"#,
        "long ".repeat(1000)
    );
    stage.put("evil.jsonl", format!("{row}\n").as_bytes());
    report(&stage, &["evil.jsonl"]).expect_exit(0);
    let page = self::page(&stage);
    expect_sound(&page);
    expect_words(
        &page,
        &["7× </td><script>", "which this version does not know"],
    );
    assert!(page.len() < 30_000, "{} bytes", page.len());
}

#[test]
fn the_same_records_give_the_same_bytes_and_nothing_else_is_written() {
    let stage = fleet();
    let files = || {
        let mut found = stage
            .run("find", ["state", "images", "-printf", "%p %s %T@\n"])
            .out();
        found.push_str(&stage.run("ls", ["."]).out());
        found
    };
    report(&stage, &["--state", "state", "--map", "images/vm-04"]).expect_exit(0);
    let (first, before) = (page(&stage), files());
    report(&stage, &["--state", "state", "--map", "images/vm-04"]).expect_exit(0);
    assert!(page(&stage) == first, "another page");
    assert_eq!(files(), before);
    let said = stage.qfsck([
        "audit",
        "report",
        "--state",
        "state",
        "--map",
        "images/vm-04",
        "--html",
        "-",
    ]);
    assert!(said.out() == first, "stdout has another page");
}

/// A report of so many images: of each hundred, four are damaged, twenty-six have leaks.
fn large_report(count: u64) -> String {
    let mut report = String::new();
    for number in 0..count {
        let more = match number % 100 {
            0..4 => {
                r#""status":"do-not-boot","corruptions":3,"findings":{"refcount-zero":3},"previous":"clean""#
            }
            4..30 => {
                r#""status":"leaks","leaks":1,"leaked-bytes":65536,"findings":{"refcount-leak":1},"previous":"leaks""#
            }
            _ => r#""status":"clean","previous":"clean""#,
        };
        writeln!(
            report,
            r#"{{"image":"/srv/images/pool-{:02}/vm-{number:06}.qcow2",{more},"first-night":1,"verdict":{{"status":"clean","night":20000,"at":1728000000}},"night":20000,"tool":"0.1.0"}}"#,
            number / 100_000
        )
        .expect("a string takes it");
    }
    report
}

#[test]
fn a_page_of_many_images_is_small_and_counts_them_all() {
    let stage = Stage::new();
    for (count, bytes) in [(10_000, 2_500_000), (50_000, 2_500_000)] {
        stage.put("report.jsonl", large_report(count).as_bytes());
        let started = Instant::now();
        report(&stage, &["report.jsonl"]).expect_exit(0);
        println!("a page of {count} images: {:?}", started.elapsed());
        assert!(started.elapsed() < Duration::from_secs(20));
        let page = page(&stage);
        expect_sound(&page);
        assert!(page.len() < bytes, "{count} images: {} bytes", page.len());
        assert_eq!(page.matches("<tr id=\"i").count(), 1_000);
        assert_eq!(page.matches("<li class=\"path\">").count(), 9_000);
        let of = |percent: u64| {
            let digits = (count * percent / 100).to_string();
            let (thousands, rest) = digits.split_at(digits.len().saturating_sub(3));
            let comma = if thousands.is_empty() { "" } else { "," };
            format!("{thousands}{comma}{rest}")
        };
        let counts = [(4, "do-not-boot"), (26, "leaks"), (70, "clean")];
        for (percent, status) in counts {
            expect_words(&page, &[&format!("{status} {}", of(percent))]);
        }
        let said = format!(
            "{} of {} images are damaged, all of them since",
            of(4),
            of(100)
        );
        expect_words(&page, &[&said, "1,000 images with what is known of them"]);
    }
    // What is shown are 1,000 of 2,000 damaged ones, and the names of 9,000 of 49,000 more.
    expect_words(
        &page(&stage),
        &[
            "35,000 of them are only counted",
            "5,000 of them are only counted",
        ],
    );
}

#[test]
fn what_a_page_cannot_know_it_says() {
    let stage = Stage::new();
    fs::create_dir(stage.path("images")).expect("a directory can be made");
    for number in 0..20 {
        stage.put(format!("images/vm-{number}"), &bytes_of("002-v3-plain"));
    }
    let audit = |more: &str| {
        let arguments = format!("audit {more}");
        stage.qfsck(arguments.split(' '))
    };
    audit("plan images --out work.jsonl --night 7").expect_exit(0);
    audit("run --work work.jsonl --shard 0/2 --out out").expect_exit(0);
    let merge = "merge --work work.jsonl --report report.jsonl --summary sum.json out";
    audit(merge).expect_exit(8);
    report(&stage, &["report.jsonl", "--summary", "sum.json"]).expect_exit(0);
    let page = page(&stage);
    expect_words(
        &page,
        &["of 20 images could not be read", "have no record at all"],
    );
    report(&stage, &["report.jsonl"]).expect_exit(0);
    expect_words(
        &self::page(&stage),
        &["whether an image has no record: --summary does"],
    );
    // What is no report, or not of the night before.
    for wrong in [
        &["work.jsonl"][..],
        &["nothing.jsonl"],
        &["report.jsonl", "--before", "report.jsonl"],
        &["report.jsonl", "--summary", "work.jsonl"],
        &["report.jsonl", "--state", "state"],
        &[],
    ] {
        fs::remove_file(stage.path("page.html")).unwrap_or_default();
        report(&stage, wrong).expect_exit(64);
        assert!(!stage.path("page.html").exists(), "{wrong:?}");
    }
    let mut lines: Vec<String> = large_report(10).lines().map(str::to_owned).collect();
    lines.swap(3, 4);
    stage.put("swapped.jsonl", lines.join("\n").as_bytes());
    let said = report(&stage, &["swapped.jsonl"]);
    said.expect_exit(64);
    assert!(said.err().contains("not in order"), "{}", said.err());
}

#[test]
fn a_state_is_shown_as_far_as_there_is_one() {
    let stage = fleet();
    report(&stage, &["--state", "nowhere"]).expect_exit(8);
    // A summary that cannot be read leaves a gap in the trend, and the page says so.
    stage.put("state/nights/00000001.summary.json", b"{");
    let said = report(&stage, &["--state", "state"]);
    said.expect_exit(8);
    assert!(said.err().contains("summary of night 1 cannot be read"));
    expect_words(
        &page(&stage),
        &["The summary of night 1 cannot be read", "11 of 21 images"],
    );
    // A night that was begun and is not over is not what the page is of.
    let mark = r#"{"schema":1,"night":4,"at":1728000000,"finished":false}"#;
    stage.put("state/night.json", mark.as_bytes());
    report(&stage, &["--state", "state"]).expect_exit(8);
    expect_words(
        &page(&stage),
        &["Night 4 was begun and is not over: this page is of night 3"],
    );
    // Where no night is over yet, there are the records.
    for file in ["00000001", "00000002", "00000003"] {
        for what in ["jsonl", "summary.json"] {
            let path = stage.path(format!("state/nights/{file}.{what}"));
            fs::remove_file(path).expect("it can be removed");
        }
    }
    let mark = r#"{"schema":1,"night":3,"at":1728000000,"finished":false}"#;
    stage.put("state/night.json", mark.as_bytes());
    report(&stage, &["--state", "state"]).expect_exit(0);
    expect_words(
        &page(&stage),
        &["Night 3 is not over", "11 of 21 images are damaged"],
    );
}

#[test]
fn a_map_counts_every_cluster_once_and_says_the_same_in_words() {
    let stage = fleet();
    report(&stage, &["--state", "state", "--map", "images/vm-04"]).expect_exit(0);
    let page = page(&stage);
    expect_words(
        &page,
        &[
            "it is do-not-boot. The file has 13 clusters of 512 B; each cell stands for one.",
            "overlap 1 512 B used by several",
            "leak 0 0 B",
            "metadata 6",
            "data 5",
            "free 1",
            "0x1200 0x1400 overlap 1 overlap",
            "stored 1, expected 2; used by guest data",
        ],
    );
    let (_, map) = page
        .split_once("<svg class=\"map")
        .expect("there is a picture");
    let (map, _) = map.split_once("</svg>").expect("it ends");
    assert_eq!(
        map.matches("h9v9h-9z").count(),
        13,
        "a cell for each cluster"
    );
    assert_eq!(
        map.matches("l5 5m0-5l-5 5").count(),
        1,
        "one is crossed out"
    );
}

#[test]
fn without_a_map_there_is_still_a_page_and_it_says_why() {
    let stage = fleet();
    let with = |image: &str| report(&stage, &["--state", "state", "--map", image]);
    let image = fs::File::options()
        .write(true)
        .open(stage.path("images/vm-00"));
    let image = image.expect("it can be opened");
    set_lock(&image, libc::F_WRLCK, 0, 0).expect("nobody else is in it");
    with("images/vm-00").expect_exit(4);
    expect_words(
        &page(&stage),
        &[
            "There is no map: another program has it open",
            "11 of 21 images",
        ],
    );
    drop(image);
    with("images/vm-00").expect_exit(0);
    for (image, code) in [
        ("images/disk.qcow2", 63),
        ("images/nothing", 1),
        ("images", 1),
    ] {
        with(image).expect_exit(code);
        expect_words(&page(&stage), &["There is no map:", "11 of 21 images"]);
    }
    // A cluster size that cannot be is a finding, and there is nothing to draw.
    with("images/vm-05");
    expect_words(
        &page(&stage),
        &["Without a cluster size", "header-cluster-bits-invalid"],
    );
    // A page that cannot be written leaves the old one.
    let old = page(&stage);
    let said = stage.qfsck([
        "audit",
        "report",
        "--state",
        "state",
        "--html",
        "nowhere/page.html",
    ]);
    said.expect_exit(8);
    assert!(page(&stage) == old);
    let age = fs::metadata(stage.path("page.html")).and_then(|data| data.modified());
    assert!(age.expect("it has a time") <= SystemTime::now());
}
