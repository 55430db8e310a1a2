//! Things that are no images, and images that are no files.
//!
//! Comes in: directories, FIFOs, sockets, devices, stumps, links, block devices. Goes out: a refusal at once, or the
//! findings the file itself would get. Never here: locks (`locks`), hostile names (`names`).

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

use super::stage::{Said, Stage, bytes_of, has_tools, is_installed, is_root, skip};

/// A refusal takes no longer: nothing was waited for.
const AT_ONCE: Duration = Duration::from_secs(5);

#[track_caller]
fn expect_refusal(said: &Said, code: i32, word: &str) {
    said.expect_exit(code);
    assert!(said.err().contains(word), "{word:?} in {}", said.err());
    assert_eq!(said.out(), "");
    assert!(said.took < AT_ONCE, "it took {:?}", said.took);
}

#[test]
fn what_is_no_file_is_refused_by_its_name_and_never_waited_for() {
    let stage = Stage::new();
    fs::create_dir(stage.path("directory")).expect("a directory can be made");
    mkfifo(&stage.path("fifo"), Mode::S_IRWXU).expect("a FIFO can be made");
    symlink("fifo", stage.path("link-to-fifo")).expect("a link can be made");
    let listener = UnixListener::bind(stage.path("socket")).expect("a socket can be made");
    let refusals = [
        ("directory", "is a directory"),
        (".", "is a directory"),
        ("fifo", "is a FIFO"),
        ("link-to-fifo", "is a FIFO"),
        ("socket", "is a socket"),
        ("/dev/null", "is a character device"),
        ("/dev/zero", "is a character device"),
        ("/dev/tty", "is a character device"),
    ];
    for (path, word) in refusals {
        expect_refusal(&stage.qfsck(["check", path]), 1, word);
        expect_refusal(&stage.qfsck(["owner", path, "0"]), 1, word);
        expect_refusal(&stage.qfsck(["repair", "--yes", path]), 1, word);
        expect_refusal(&stage.qfsck(["repair", "--dry-run", path]), 1, word);
        let undo = stage.qfsck(["undo", path]);
        assert!(undo.exit == Some(1) && undo.took < AT_ONCE, "undo {path}");
        stage.copy("043-data-file-missing", "image");
        let said = stage.qfsck(["check", "--data-file", path, "image"]);
        expect_refusal(&said, 1, word);
    }
    drop(listener);
}

#[test]
fn what_stands_where_an_undo_file_would_stops_a_repair_and_no_check() {
    let stage = Stage::new();
    let image = stage.copy("100-refcount-leak", "image");
    let beside = stage.path("image.qfsck-undo");
    let make: [fn(&Path); 4] = [
        |path| mkfifo(path, Mode::S_IRWXU).expect("a FIFO can be made"),
        |path| symlink("image.qfsck-undo", path).expect("a link can be made"),
        |path| symlink("image", path).expect("a link can be made"),
        |path| fs::write(path, b"precious").expect("a file can be written"),
    ];
    for make in make {
        make(&beside);
        let check = stage.qfsck(["check", "image"]);
        check.expect_exit(3);
        assert!(check.took < AT_ONCE, "it took {:?}", check.took);
        let repair = stage.qfsck(["repair", "--yes", "image"]);
        repair.expect_exit(1);
        assert!(repair.err().contains("undo"), "{}", repair.err());
        assert!(repair.took < AT_ONCE, "it took {:?}", repair.took);
        let bytes = fs::read(&image).expect("the image can be read");
        assert!(bytes == bytes_of("100-refcount-leak"), "the image changed");
        fs::remove_file(&beside).expect("what stood there still stands");
    }
}

#[test]
fn paths_that_lead_nowhere_are_refused_with_the_reason() {
    let stage = Stage::new();
    stage.copy("002-v3-plain", "image");
    symlink("gone", stage.path("dangling")).expect("a link can be made");
    symlink("round", stage.path("round")).expect("a link can be made");
    let long = "x".repeat(5000);
    for (path, word) in [
        ("missing", "No such file"),
        ("dangling", "No such file"),
        ("image/inside", "Not a directory"),
        ("round", "symbolic links"),
        (&long, "name too long"),
    ] {
        expect_refusal(&stage.qfsck(["check", path]), 1, word);
    }
}

#[test]
fn an_image_that_may_not_be_read_is_not_a_bad_image() {
    if is_root() {
        skip("root may read everything");
        return;
    }
    let stage = Stage::new();
    let image = stage.copy("002-v3-plain", "image");
    let nobody = fs::Permissions::from_mode(0o000);
    fs::set_permissions(image, nobody).expect("permissions can be changed");
    expect_refusal(&stage.qfsck(["check", "image"]), 1, "Permission denied");
}

#[test]
fn other_formats_are_named() {
    let stage = Stage::new();
    stage.put("empty", b"");
    stage.put("zeros", &[0; 10_000]);
    stage.put("short", b"QFI");
    stage.put("vmdk", b"KDMV\x01\0\0\0and so on");
    stage.copy("362-qcow-v1", "old");
    stage.copy("320-version-4", "new");
    for (name, word) in [
        ("empty", "is empty"),
        ("zeros", "not a qcow2 image"),
        ("short", "not a qcow2 image"),
        ("vmdk", "not a qcow2 image"),
        ("old", "version 1"),
        ("new", "version 4"),
    ] {
        expect_refusal(&stage.qfsck(["check", name]), 63, word);
    }
}

#[test]
fn a_stump_of_an_image_is_never_clean_and_never_a_crash() {
    let stage = Stage::new();
    let image = bytes_of("002-v3-plain");
    let lengths = [71, 72, 73, 103, 104, 105, 111, 112, 160, 511, 512, 2047];
    for length in (1..=16).chain(lengths) {
        stage.put("stump", &image[..length]);
        let said = stage.qfsck(["check", "--output", "json", "stump"]);
        let expected = if length < 8 { 63 } else { 2 };
        assert_eq!(said.exit, Some(expected), "{length} bytes: {}", said.err());
        let verdict = said.document()["verdict"].clone();
        let is_grave = verdict == "do-not-boot" || verdict == "unreadable";
        assert!(is_grave, "{length} bytes are {verdict}");
        stage.qfsck(["owner", "--guest", "stump", "0"]);
        let said = stage.qfsck(["owner", "stump", "0"]);
        assert!(
            matches!(said.exit, Some(0 | 1 | 63)),
            "{length} bytes: {}",
            said.err()
        );
    }
}

#[test]
fn a_link_to_an_image_is_the_image() {
    let stage = Stage::new();
    stage.copy("100-refcount-leak", "image");
    symlink("image", stage.path("link")).expect("a link can be made");
    symlink("link", stage.path("link-to-link")).expect("a link can be made");
    fs::hard_link(stage.path("image"), stage.path("hard")).expect("a link can be made");
    let expected = findings(&stage.qfsck(["check", "--output", "json", "image"]));
    for link in ["link", "link-to-link", "hard"] {
        let said = stage.qfsck(["check", "--output", "json", link]);
        said.expect_exit(3);
        assert_eq!(said.document()["filename"], link);
        assert_eq!(findings(&said), expected);
    }
}

/// A document without what names the file.
fn findings(said: &Said) -> Value {
    let mut document = said.document();
    document["filename"] = Value::Null;
    document
}

/// A loop device, detached when the test is over.
struct LoopDevice {
    path: String,
}

impl LoopDevice {
    /// `None` where the system does not let us, which is said.
    fn attach(stage: &Stage, file: &Path, options: &[&str]) -> Option<Self> {
        if !is_root() || !is_installed("losetup") {
            skip("loop devices need root and losetup");
            return None;
        }
        let mut arguments = vec!["--find", "--show"];
        arguments.extend(options);
        let file = file.to_string_lossy();
        let said = stage.run("losetup", arguments.into_iter().chain([&*file]));
        let path = said.out().trim_end().to_owned();
        if said.exit != Some(0) || path.is_empty() {
            skip(&format!("no loop device here: {}", said.err().trim_end()));
            return None;
        }
        Some(Self { path })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = std::process::Command::new("losetup")
            .args(["--detach", &self.path])
            .status();
        drop(detached);
    }
}

#[test]
fn an_image_on_a_larger_block_device_gets_the_findings_of_the_file() {
    let stage = Stage::new();
    for case in [
        "002-v3-plain",
        "100-refcount-leak",
        "104-refcount-zero-data",
    ] {
        let file = stage.copy(case, "image");
        let on_file = stage.qfsck(["check", "--output", "json", "image"]);
        let mut bytes = fs::read(file).expect("the image can be read");
        // Whatever a volume held before is still behind the image.
        bytes.resize(bytes.len() + 1000, 0xa5);
        bytes.resize(1 << 20, 0x5a);
        let disk = stage.put("disk", &bytes);
        let Some(device) = LoopDevice::attach(&stage, &disk, &["--read-only"]) else {
            return;
        };
        let said = stage.qfsck(["check", "--output", "json", &device.path]);
        assert_eq!(said.exit, on_file.exit, "{case}");
        let document = said.document();
        let mut expected = on_file.document();
        expected["filename"] = device.path.as_str().into();
        assert_eq!(document, expected, "{case}");
        stage
            .qfsck(["owner", &device.path, "0x100000"])
            .expect_exit(64);
        stage
            .qfsck(["owner", &device.path, "0xfffff"])
            .expect_exit(0);
    }
}

#[test]
fn a_read_only_block_device_is_refused_before_there_is_an_undo_file() {
    let stage = Stage::new();
    let mut bytes = bytes_of("100-refcount-leak");
    bytes.resize(1 << 20, 0);
    let disk = stage.put("disk", &bytes);
    let Some(device) = LoopDevice::attach(&stage, &disk, &["--read-only"]) else {
        return;
    };
    let path = device.path.as_str();
    let commands: [&[&str]; 2] = [
        &["repair", "--yes", "--undo-file", "undo", path],
        &["check", "-r", "leaks", "--undo-file", "undo", path],
    ];
    for arguments in commands {
        let said = stage.qfsck(arguments);
        expect_refusal(&said, 1, "the block device is read-only");
        assert!(!stage.path("undo").exists());
    }
    stage.qfsck(["repair", "--dry-run", path]).expect_exit(3);
    assert!(fs::read(disk).expect("it can be read") == bytes);
}

#[test]
fn bytes_behind_the_image_matter_in_a_file_only() {
    let stage = Stage::new();
    stage.copy("345-trailing-garbage", "image");
    let said = stage.qfsck(["check", "--output", "json", "image"]);
    assert!(said.out().contains("trailing-bytes"), "{}", said.out());
    // A device of whole sectors whose last cluster of 64 KiB is cut short.
    let disk = stage.put("disk", &bytes_with_half_a_cluster());
    let Some(device) = LoopDevice::attach(&stage, &disk, &[]) else {
        return;
    };
    let said = stage.qfsck(["check", "--output", "json", &device.path]);
    said.expect_exit(0);
    assert!(!said.out().contains("trailing-bytes"), "{}", said.out());
    let said = stage.qfsck(["check", "--output", "json", "disk"]);
    assert!(said.out().contains("trailing-bytes"), "{}", said.out());
}

/// A clean image with clusters of 64 KiB and half a cluster of garbage behind it.
fn bytes_with_half_a_cluster() -> Vec<u8> {
    let mut bytes = bytes_of("006-cluster-64k");
    bytes.resize(bytes.len().next_multiple_of(1 << 16) + (1 << 15), 0x77);
    bytes
}

#[test]
fn a_block_device_may_be_the_external_data_file() {
    let stage = Stage::new();
    stage.copy("043-data-file-missing", "image");
    let disk = stage.put("disk", &vec![0; 1 << 20]);
    let Some(device) = LoopDevice::attach(&stage, &disk, &["--read-only"]) else {
        return;
    };
    let short = stage.put("short", &[0; 100]);
    let short = short.to_string_lossy();
    let said = stage.qfsck(["check", "--data-file", &short, "image"]);
    assert!(said.out().contains("data-file-past-end"), "{}", said.out());
    let said = stage.qfsck(["check", "--data-file", &device.path, "image"]);
    said.expect_exit(0);
    assert!(!said.out().contains("data-file-past-end"), "{}", said.out());
}

#[test]
fn a_virtual_machine_on_a_block_device_is_noticed() {
    if !has_tools(&["qemu-io"]) {
        return;
    }
    let stage = Stage::new();
    let mut bytes = bytes_of("002-v3-plain");
    bytes.resize(1 << 20, 0);
    let disk = stage.put("disk", &bytes);
    let Some(device) = LoopDevice::attach(&stage, &disk, &[]) else {
        return;
    };
    let mut command = std::process::Command::new("qemu-io");
    command.args(["-f", "qcow2", &device.path]);
    let mut writer = stage.start_command(command);
    assert!(writer.has_locked(), "qemu-io opens the device");
    let said = stage.qfsck(["check", &device.path]);
    expect_refusal(&said, 4, &format!("qemu-io (process {})", writer.id()));
    writer.wait().expect_exit(0);
    stage.qfsck(["check", &device.path]).expect_exit(0);
}

#[test]
fn a_block_device_is_repaired_with_an_undo_file_elsewhere_and_not_without() {
    let stage = Stage::new();
    let mut bytes = bytes_of("100-refcount-leak");
    bytes.resize(1 << 20, 0);
    let disk = stage.put("disk", &bytes);
    let Some(device) = LoopDevice::attach(&stage, &disk, &[]) else {
        return;
    };
    let verbs: [&[&str]; 2] = [&["check", "-r", "leaks"], &["repair", "--yes"]];
    for verb in verbs {
        let said = stage.qfsck(verb.iter().chain(&[device.path.as_str()]));
        said.expect_exit(64);
        assert!(said.err().contains("--undo-file"), "{}", said.err());
        let with_file = ["--undo-file", "undo", &device.path];
        stage.qfsck(verb.iter().chain(&with_file)).expect_exit(0);
        stage.qfsck(["check", "-q", &device.path]).expect_exit(0);
        let undo = ["undo", "undo", "--image", &device.path];
        stage.qfsck(undo).expect_exit(0);
        stage.qfsck(["check", "-q", &device.path]).expect_exit(3);
    }
}
