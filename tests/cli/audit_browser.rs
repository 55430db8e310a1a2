//! The page of a night in a browser: it opens, by day, by night and on paper, with a keyboard, and asks for nothing.
//!
//! Comes in: pages, and headless Chromium. Goes out: what the browser made of them: elements, pictures, complaints. Never
//! here: a network; a script that is part of the page. What is measured inside of it is measured in a copy that allows that.

use std::fs;
use std::process::Command;

use miniz_oxide::inflate::decompress_to_vec_zlib;

use super::audit_report::{fleet, page, report};
use super::stage::{Said, Stage, has_tools};

/// Runs the browser on a file, where nothing has a name on any network.
fn browse(stage: &Stage, file: &str, more: &[&str]) -> Said {
    let mut command = Command::new("chromium");
    command
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ])
        .args([
            "--hide-scrollbars",
            "--no-first-run",
            "--enable-logging=stderr",
        ])
        .arg("--host-resolver-rules=MAP * ~NOTFOUND")
        .arg(format!(
            "--user-data-dir={}",
            stage.path("profile").display()
        ))
        .env("HOME", stage.path("."))
        .args(more)
        .arg(format!("file://{}", stage.path(file).display()));
    let said = stage.run_command(command);
    said.expect_exit(0);
    said
}

/// What the page complains about.
fn complaints(said: &Said) -> Vec<String> {
    let said = said.err();
    let lines = said.lines().filter(|line| line.contains("CONSOLE"));
    lines.map(str::to_owned).collect()
}

/// A picture of a page.
struct Picture {
    width: usize,
    /// Red, green, blue.
    pixels: Vec<[u8; 3]>,
}

impl Picture {
    fn of(stage: &Stage, size: &str, more: &[&str]) -> Self {
        let to = format!("--screenshot={}", stage.path("page.png").display());
        let size = format!("--window-size={size}");
        let said = browse(
            stage,
            "page.html",
            &[&[to.as_str(), size.as_str()], more].concat(),
        );
        assert_eq!(complaints(&said), [""; 0]);
        Self::read(&fs::read(stage.path("page.png")).expect("there is a picture"))
    }

    /// Reads a PNG of 8 bits a channel, without interlacing: what browsers write.
    fn read(png: &[u8]) -> Self {
        let number = |at: usize| {
            let bytes = png[at..at + 4].try_into().expect("four bytes");
            u32::from_be_bytes(bytes) as usize
        };
        let (width, height) = (number(16), number(20));
        let channels = match png[25] {
            2 => 3,
            other => {
                assert_eq!(other, 6, "a colour type");
                4
            }
        };
        let (mut at, mut packed) = (8, Vec::new());
        while at < png.len() {
            let length = number(at);
            if &png[at + 4..at + 8] == b"IDAT" {
                packed.extend(&png[at + 8..at + 8 + length]);
            }
            at += length + 12;
        }
        let rows = decompress_to_vec_zlib(&packed).expect("a picture can be unpacked");
        let stride = width * channels;
        let mut above = vec![0_u8; stride];
        let mut pixels = Vec::new();
        for row in rows.chunks_exact(stride + 1).take(height) {
            let mut line = row[1..].to_vec();
            for x in 0..stride {
                let left = if x < channels { 0 } else { line[x - channels] };
                let corner = if x < channels { 0 } else { above[x - channels] };
                let guess = match row[0] {
                    0 => 0,
                    1 => left,
                    2 => above[x],
                    3 => u8::midpoint(left, above[x]),
                    _ => nearest(left, above[x], corner),
                };
                line[x] = line[x].wrapping_add(guess);
            }
            pixels.extend(
                line.chunks_exact(channels)
                    .map(|pixel| [pixel[0], pixel[1], pixel[2]]),
            );
            above = line;
        }
        Self { width, pixels }
    }

    /// How bright it is, from 0 to 255.
    fn brightness(&self) -> u64 {
        let sum: u64 = self
            .pixels
            .iter()
            .flatten()
            .map(|channel| u64::from(*channel))
            .sum();
        sum / (self.pixels.len() as u64 * 3)
    }

    /// Lines of it that are not of one colour.
    fn lines_with_something(&self) -> usize {
        let lines = self.pixels.chunks(self.width);
        lines
            .filter(|line| line.iter().any(|pixel| pixel != &line[0]))
            .count()
    }
}

/// The predictor of PNG that takes the nearest of three.
fn nearest(left: u8, above: u8, corner: u8) -> u8 {
    let [a, b, c] = [left, above, corner].map(i32::from);
    let guess = a + b - c;
    let far = |from: i32| (guess - from).abs();
    if far(a) <= far(b) && far(a) <= far(c) {
        left
    } else if far(b) <= far(c) {
        above
    } else {
        corner
    }
}

#[test]
fn the_page_can_be_read_by_day_and_by_night_and_is_printed() {
    if !has_tools(&["chromium"]) {
        return;
    }
    let stage = fleet();
    report(&stage, &["--state", "state", "--map", "images/vm-04"]).expect_exit(0);
    let day = Picture::of(&stage, "1280,1000", &[]);
    let night = Picture::of(
        &stage,
        "1280,1000",
        &["--blink-settings=preferredColorScheme=0"],
    );
    let (light, dark) = (day.brightness(), night.brightness());
    assert!(light > 220, "by day it is {light} bright");
    assert!(dark < 50, "by night it is {dark} bright");
    for picture in [&day, &night] {
        let lines = picture.lines_with_something();
        assert!(lines > 400, "something is on {lines} lines only");
    }
    let to = format!("--print-to-pdf={}", stage.path("page.pdf").display());
    browse(&stage, "page.html", &[&to, "--no-pdf-header-footer"]);
    let pdf = fs::read(stage.path("page.pdf")).expect("it was printed");
    assert!(pdf.starts_with(b"%PDF-"));
    assert!(
        (20_000..2_000_000).contains(&pdf.len()),
        "{} bytes",
        pdf.len()
    );
}

/// Measures a page from the inside.
const MEASURE: &str = r#"<script>
const all = [...document.querySelectorAll("a[href], summary, input")].filter(e => e.checkVisibility());
const say = {};
say.focusable = all.length;
say.reached = all.filter(e => { e.focus(); return document.activeElement === e; }).length;
say.tabindex = document.querySelectorAll("[tabindex]").length;
say.dead = [...document.querySelectorAll("a[href]")].filter(e => !document.getElementById(e.getAttribute("href").slice(1))).length;
say.asked = performance.getEntriesByType("resource").length;
say.wide = document.documentElement.scrollWidth - innerWidth;
const ids = [...document.querySelectorAll("[id]")].map(e => e.id);
say.twice = ids.length - new Set(ids).size;
say.tables = [...document.querySelectorAll("table")].filter(t => !t.caption || !t.querySelector("th[scope=col]")).length;
const leaks = () => [...document.querySelectorAll("tr.s-leaks")].filter(e => e.checkVisibility()).length;
say.leaks = leaks();
document.getElementById("show-leaks").click();
say.hidden = leaks();
say.images = document.images.length + document.scripts.length - 1;
say.details = document.querySelectorAll("tr details.found").length;
const first = document.querySelector("tr details.found summary");
first.focus(); first.click();
say.opened = first.parentElement.open && first.parentElement.querySelector("dl").checkVisibility() ? 1 : 0;
document.documentElement.setAttribute("data-said", JSON.stringify(say));
</script>"#;

fn measured(stage: &Stage, size: &str) -> serde_json::Value {
    let open = page(stage).replace("default-src 'none'; ", "");
    stage.put(
        "open.html",
        open.replace("</body>", &format!("{MEASURE}</body>"))
            .as_bytes(),
    );
    let said = browse(
        stage,
        "open.html",
        &["--dump-dom", &format!("--window-size={size}")],
    );
    assert_eq!(complaints(&said), [""; 0]);
    let dom = said.out();
    let (_, said) = dom.split_once("data-said=\"").expect("the script ran");
    let (said, _) = said.split_once('"').expect("a value ends");
    serde_json::from_str(&said.replace("&quot;", "\"")).expect("JSON")
}

#[test]
fn the_page_is_used_with_a_keyboard_and_asks_for_nothing() {
    if !has_tools(&["chromium"]) {
        return;
    }
    let stage = fleet();
    report(&stage, &["--state", "state", "--map", "images/vm-04"]).expect_exit(0);
    // What has the focus is seen: a window that is not on a screen has none to look at.
    let sheet = page(&stage);
    assert!(sheet.contains(":focus-visible{outline:3px solid"));
    assert!(!sheet.contains("outline:none") && !sheet.contains("outline:0"));
    for size in ["1280,1000", "500,900"] {
        let said = measured(&stage, size);
        let number = |what: &str| said[what].as_i64().expect("a number");
        assert!(number("focusable") > 30, "{said}");
        assert_eq!(number("reached"), number("focusable"), "{said}");
        for nothing in [
            "tabindex", "dead", "asked", "twice", "tables", "hidden", "images",
        ] {
            assert_eq!(number(nothing), 0, "{nothing} in {said}");
        }
        assert!(number("wide") <= 0, "{size}: {said}");
        assert_eq!(number("leaks"), 1, "{said}");
        assert_eq!(number("opened"), 1, "{said}");
        // One for each image that is not clean.
        assert_eq!(number("details"), 12, "{said}");
    }
}

#[test]
fn a_script_that_got_into_the_page_would_not_run() {
    if !has_tools(&["chromium"]) {
        return;
    }
    let stage = fleet();
    report(&stage, &["--state", "state"]).expect_exit(0);
    let said = browse(&stage, "page.html", &["--dump-dom"]);
    assert_eq!(complaints(&said), [""; 0]);
    assert!(said.out().contains("&lt;img src=x onerror=alert(1)&gt;"));
    // Without this, no complaint would mean nothing.
    let script = "<script>document.title='ran'</script><img src='http://127.0.0.1:9/x'></body>";
    stage.put(
        "evil.html",
        page(&stage).replace("</body>", script).as_bytes(),
    );
    let said = browse(&stage, "evil.html", &["--dump-dom"]);
    assert!(!said.out().contains("<title>ran"), "the script ran");
    let complaints = complaints(&said);
    assert!(complaints.len() >= 2, "{complaints:?}");
}
