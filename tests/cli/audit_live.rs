//! An audit beside running machines: it keeps nobody from starting, and calls nothing damaged that is only in use.
//!
//! Comes in: QEMU's own tools that write while an audit reads. Goes out: what the audit says, and whether the tools could
//! work. Never here: an image that is really damaged.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use super::audit::statuses;
use super::stage::{LargeImage, QFSCK, Running, Stage, bytes_of, has_tools};

/// Audits beside a writer: as many as `QFSCK_AUDIT_ROUNDS` says.
fn rounds() -> usize {
    let wanted = std::env::var("QFSCK_AUDIT_ROUNDS").ok();
    wanted.and_then(|text| text.parse().ok()).unwrap_or(100)
}

/// A daemon that has the image `name` open for writing, and exports it over a socket of that name.
fn daemon(stage: &Stage, name: &str) -> Running {
    let mut command = Command::new("qemu-storage-daemon");
    command.args([
        "--nbd-server",
        &format!("addr.type=unix,addr.path={name}.socket"),
        "--blockdev",
        &format!("driver=file,node-name=file,filename=images/{name}"),
        "--blockdev",
        "driver=qcow2,node-name=disk,file=file",
        "--export",
        "type=nbd,id=export,node-name=disk,writable=on",
    ]);
    let mut daemon = stage.start_command(command);
    assert!(daemon.has_locked(), "{}", daemon.wait().err());
    daemon
}

fn stage() -> Stage {
    let stage = Stage::new();
    fs::create_dir(stage.path("images")).expect("a directory can be made");
    stage
}

#[test]
fn an_image_in_use_is_busy_and_how_long_is_said() {
    if !has_tools(&["qemu-storage-daemon"]) {
        return;
    }
    let stage = stage();
    // It would be called leaky if it were read.
    for name in ["one", "two", "free"] {
        stage.put(format!("images/{name}"), &bytes_of("100-refcount-leak"));
    }
    let night = || stage.qfsck(["audit", "--state", "state", "images"]);
    let text = night().expect_exit(0).out();
    assert!(text.contains("3 leaks"), "{text}");
    let holders = [daemon(&stage, "one"), daemon(&stage, "two")];
    let text = night().expect_exit(0).out();
    assert!(text.contains("1 leaks, 2 busy"), "{text}");
    assert!(text.contains("one  (leaks 1 night ago)"), "{text}");
    let text = night().expect_exit(0).out();
    assert!(
        text.contains("one  (for 2 nights, leaks 2 nights ago)"),
        "{text}"
    );
    let nights = ["state/nights/00000002.jsonl", "state/nights/00000003.jsonl"];
    let said = stage.qfsck(["audit", "diff", nights[0], nights[1]]);
    assert_eq!(
        said.out().matches("(for 2 nights)").count(),
        2,
        "{}",
        said.out()
    );
    drop(holders);
    let text = night().expect_exit(0).out();
    assert!(text.contains("3 leaks") && !text.contains("busy"), "{text}");
}

#[test]
fn a_machine_starts_while_its_image_is_read() {
    if !has_tools(&["qemu-io", "qemu-storage-daemon"]) {
        return;
    }
    let stage = stage();
    let large = LargeImage {
        l2_tables: 1000,
        leaks: 0,
    };
    large.write(&stage.path("images/disk"));
    let slow = ["audit", "--output", "jsonl", "--max-mbps", "40", "images"];
    let mut audit = stage.start(slow);
    assert!(audit.has_read(large.head_bytes()));
    let locks = fs::read_dir(format!("/proc/{}/fdinfo", audit.id())).expect("it runs");
    let has_lock = |info: &str| info.contains("lock:");
    assert!(
        !locks
            .flatten()
            .any(|file| fs::read_to_string(file.path()).is_ok_and(|info| has_lock(&info)))
    );
    let holder = daemon(&stage, "disk");
    assert!(audit.is_running(), "the image was still being read");
    let said = audit.wait();
    assert_eq!(statuses(&said)["disk"], "busy");
    drop(holder);
    // One that comes, writes and goes.
    let mut audit = stage.start(slow);
    assert!(audit.has_read(large.head_bytes()));
    let write = ["-f", "qcow2", "-c", "write 0 64k", "images/disk"];
    stage.run("qemu-io", write).expect_exit(0);
    assert!(audit.is_running(), "the image was still being read");
    let said = audit.wait();
    said.expect_exit(0);
    let record = said.document();
    assert_eq!(record["status"], "clean", "it is read once more: {record}");
    let bytes = record["run"]["bytes-read"].as_u64().expect("a number");
    assert!(bytes > 100_000_000, "{bytes}");
}

#[test]
fn nothing_is_called_damaged_beside_a_writer() {
    if !has_tools(&["qemu-img", "qemu-io", "qemu-storage-daemon"]) {
        return;
    }
    let stage = stage();
    let create = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=4096",
        "images/disk",
        "256M",
    ];
    stage.run("qemu-img", create).expect_exit(0);
    stage.put("images/still", &bytes_of("002-v3-plain"));
    let script = "i=0; while :; do i=$((i+1)); \
        qemu-io -f qcow2 -c \"write $((i % 4000 * 65536 % 268000000)) 64k\" -c \"discard $((i * 7919 % 4000 * 65536)) 64k\" \
        images/disk >/dev/null 2>>failures || echo failed >>failures; done";
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    let writer = stage.start_command(command);
    std::thread::sleep(Duration::from_millis(300));
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    let rounds = rounds();
    for _ in 0..rounds {
        let said = stage.qfsck(["audit", "--output", "jsonl", "images"]);
        said.expect_exit(0);
        let statuses = statuses(&said);
        assert_eq!(statuses["still"], "clean");
        let status = &statuses["disk"];
        *seen.entry(status.clone()).or_default() += 1;
        assert!(
            ["busy", "changed", "clean"].contains(&status.as_str()),
            "{}",
            said.out()
        );
    }
    let failures = fs::read_to_string(stage.path("failures")).expect("it was opened");
    drop(writer);
    println!("{rounds} rounds beside a writer that comes and goes: {seen:?}");
    assert!(seen.keys().any(|status| status != "clean"), "{seen:?}");
    // Every time the writer opened it, it could.
    assert_eq!(failures, "");
}

/// Waits until the images have grown to some size together.
fn wait_for_writes(stage: &Stage, names: &[&str]) {
    let length = |name: &&str| {
        let metadata = fs::metadata(stage.path(format!("images/{name}")));
        metadata.map_or(0, |metadata| metadata.len())
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while names.iter().map(length).sum::<u64>() < 20 << 20 {
        assert!(Instant::now() < deadline, "nobody writes");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn nothing_is_called_damaged_beside_exports_that_are_written_to() {
    if !has_tools(&["qemu-img", "qemu-io", "qemu-storage-daemon"]) {
        return;
    }
    let stage = stage();
    let names = ["disk-0", "disk-1", "disk-2", "disk-3", "disk-4"];
    for name in names {
        let image = format!("images/{name}");
        let create = [
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "cluster_size=4096",
            &image,
            "256M",
        ];
        stage.run("qemu-img", create).expect_exit(0);
    }
    let daemons = names.map(|name| daemon(&stage, name));
    // One client for each, which allocates and gives back clusters through the export until its shell is gone.
    let script = "i=0; while kill -0 $$ 2>/dev/null; do i=$((i+1)); a=$((i % 64 * 4)); b=$((i * 7919 % 256)); \
        echo \"write ${a}M 2M\"; echo \"discard ${b}M 1M\"; echo \"write -z ${b}M 64k\"; echo flush; done \
        | qemu-io -f raw \"nbd+unix:///disk?socket=$0.socket\" >/dev/null 2>&1";
    let writers = names.map(|name| {
        let mut command = Command::new("sh");
        command.args(["-c", script, name]);
        stage.start_command(command)
    });
    wait_for_writes(&stage, &names);
    let rounds = rounds();
    let started = Instant::now();
    for _ in 0..rounds {
        let said = stage.qfsck(["audit", "--output", "jsonl", "images"]);
        said.expect_exit(0);
        let statuses = statuses(&said);
        assert_eq!(statuses.len(), names.len());
        assert!(
            statuses.values().all(|status| status == "busy"),
            "{}",
            said.out()
        );
    }
    println!(
        "{rounds} rounds beside five exports that are written to: {:?}",
        started.elapsed()
    );
    // What an audit that looked all the same would have said.
    let check = ["check", "-U", "-q", "images/disk-0"];
    let alarms = (0..10)
        .filter(|_| stage.run("qemu-img", check).exit != Some(0))
        .count();
    println!("of 10 rounds of qemu-img check -U, false alarms: {alarms}");
    drop((writers, daemons));
}

#[test]
fn an_image_can_be_opened_at_any_moment_of_an_audit() {
    if !has_tools(&["qemu-io"]) {
        return;
    }
    let stage = stage();
    let large = LargeImage {
        l2_tables: 200,
        leaks: 0,
    };
    large.write(&stage.path("images/disk"));
    let script = "while :; do \"$0\" audit --max-mbps 40 images >/dev/null 2>&1; done";
    let mut command = Command::new("sh");
    command.args(["-c", script, QFSCK]);
    let audits = stage.start_command(command);
    for _ in 0..rounds() {
        // As a machine that starts: for reading and writing, and nobody else may write.
        let open = ["-f", "qcow2", "-c", "read 0 512", "images/disk"];
        stage.run("qemu-io", open).expect_exit(0);
    }
    drop(audits);
}
