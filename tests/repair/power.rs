//! Power cuts on real file systems: what was not synced is gone, of the image and of its undo file.
//!
//! Comes in: damaged images on an ext4 and an XFS of their own, and a repair or an undo that is stopped at a call, or at no
//! call in particular. The file system is then shut down without its log, as a power cut would, and mounted again. Goes out:
//! how many cuts, and that no image was worse after one, and each could be finished or put back. Never here: a file system
//! that holds anything else; the mounts are in a namespace of their own and gone with it.

use std::fs;
use std::process::Command;

use super::binary::{Bench, IMAGE, UNDO_FILE, can_trace, in_parallel};
use super::faults::{Case, repaired_on_disk};
use crate::crash::Hazards;
use crate::support::needs::{can_mount, has_tools, not_tested};

/// What the script ends with when it may not mount.
const REFUSED: i32 = 99;

/// Cuts the power in each of the ways, and keeps what is left as `left-N.image` and `left-N.undo`.
const SCRIPT: &str = r#"
cut=0
mounted() { mount -o loop disk room || exit 99; }
truncate -s 320M disk && "mkfs.$FS" -q disk && mkdir room || exit 97
ways="none"
for when in $(seq 1 40); do ways="$ways fsync:$when"; done
for when in $(seq 1 4 80); do ways="$ways pwrite64:$when"; done
for when in $(seq 1 8); do ways="$ways moment:$when"; done
for way in $ways; do
    call=${way%:*} when=${way#*:}
    case " $over " in *" $call "*) continue;; esac
    mounted
    rm -f room/image*
    cp start.image room/image.qcow2
    if [ -e start.undo ]; then cp -p start.undo room/image.qcow2.qfsck-undo; fi
    sync -f room
    rm -f trace said
    case $call in
    fsync|pwrite64)
        (cd room && exec strace -f -o ../trace -e "trace=$call" -e "inject=$call:signal=STOP:when=$when" "$QFSCK" $VERB \
            >../said 2>&1) &
        tracer=$!
        while kill -0 $tracer 2>/dev/null && ! grep -q 'stopped by SIGSTOP' trace 2>/dev/null; do sleep 0.005; done
        if ! grep -q 'stopped by SIGSTOP' trace; then over="$over $call"; wait $tracer; umount room; continue; fi
        victim=$(sed -n 's/^\([0-9]*\) *--- stopped by SIGSTOP.*/\1/p' trace | head -n 1)
        ;;
    *)
        (cd room && exec "$QFSCK" $VERB >../said 2>&1) &
        victim=$!
        [ $call = none ] && wait $victim
        # Up to a few hundredths of a second: somewhere between the start and the end.
        [ $call = none ] || sleep "0.0$(printf %03d $(( (when * 7919) % 300 )))"
        ;;
    esac
    xfs_io -x -c shutdown room || exit 96
    kill -9 $victim 2>/dev/null
    wait
    umount room || exit 95
    mounted
    cp room/image.qcow2 left-$cut.image || exit 94
    cp -p room/image.qcow2.qfsck-undo left-$cut.undo 2>none
    echo "$way" >left-$cut.way
    umount room
    cut=$((cut + 1))
done
exit 0
"#;

/// What is left after each cut.
struct Left {
    way: String,
    image: Vec<u8>,
    undo_file: Option<Vec<u8>>,
}

/// Cuts one run of `qfsck` everywhere; `None` where this machine does not let us.
fn cut_everywhere(
    file_system: &str,
    start: &[u8],
    undo_file: Option<&[u8]>,
    verb: &str,
) -> Option<Vec<Left>> {
    let bench = Bench::new();
    fs::write(bench.path("start.image"), start).expect("written");
    if undo_file.is_some() {
        // With the mode an undo file has.
        bench.lay(start, undo_file);
        fs::rename(bench.path(UNDO_FILE), bench.path("start.undo")).expect("renamed");
    }
    fs::write(bench.path("cut.sh"), SCRIPT).expect("written");
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "cut.sh"]);
    command.env("QFSCK", env!("CARGO_BIN_EXE_qfsck"));
    command.env("FS", file_system).env("VERB", verb);
    let ended = bench.run(command);
    if ended.exit == Some(REFUSED) {
        not_tested(&format!(
            "power cuts on {file_system}: {}",
            ended.stderr.trim()
        ));
        return None;
    }
    assert_eq!(ended.exit, Some(0), "{ended:?}");
    let read = |name: String| fs::read(bench.path(&name)).ok();
    let left = (0..).map_while(|number| {
        Some(Left {
            way: String::from_utf8_lossy(&read(format!("left-{number}.way"))?)
                .trim()
                .to_owned(),
            image: read(format!("left-{number}.image"))?,
            undo_file: read(format!("left-{number}.undo")),
        })
    });
    Some(left.collect())
}

#[derive(Debug, Default)]
struct Score {
    cuts: usize,
    /// The image was neither as before nor as after.
    between: usize,
    undone: usize,
    resumed: usize,
}

fn judge(case: &Case, at: &str, left: &Left, score: &mut Score) {
    score.cuts += 1;
    score.between += usize::from(left.image != case.start && left.image != case.end);
    let (before, now) = (Hazards::of(&case.start), Hazards::of(&left.image));
    assert!(now.is_no_worse_than(&before), "{at}: worse than before");
    let bench = Bench::new();
    bench.lay(&left.image, left.undo_file.as_deref());
    if left.image == case.start {
        // Whatever is left of the undo file, a repair can be made.
        let ended = bench.qfsck(&["repair", "--yes", "--resume", IMAGE]);
        assert!(
            ended.is_done() && bench.image() == case.end,
            "{at}: {ended:?}"
        );
        score.resumed += 1;
        return;
    }
    let ended = bench.qfsck(&["undo", UNDO_FILE]);
    assert_eq!(ended.exit, Some(0), "{at}: {ended:?}");
    assert!(bench.image() == case.start, "{at}: undo gives other bytes");
    score.undone += 1;
    if left.image != case.end {
        bench.lay(&left.image, left.undo_file.as_deref());
        let ended = bench.qfsck(&["repair", "--yes", "--resume", IMAGE]);
        assert!(
            ended.is_done() && bench.image() == case.end,
            "{at}: {ended:?}"
        );
        score.resumed += 1;
    }
}

#[test]
fn the_power_is_cut_on_real_file_systems_and_nothing_is_worse() {
    let tools = [
        "unshare",
        "losetup",
        "mount",
        "xfs_io",
        "mkfs.ext4",
        "mkfs.xfs",
    ];
    if !has_tools(&tools) || !can_trace() || !can_mount("power cuts") {
        return;
    }
    let cases = repaired_on_disk(2);
    let mut work = Vec::new();
    for case in &cases {
        for file_system in ["ext4", "xfs"] {
            work.push((case, file_system, "repair --yes image.qcow2"));
            work.push((case, file_system, "undo image.qcow2.qfsck-undo"));
        }
    }
    let scores = in_parallel(work, |(case, file_system, verb)| {
        let mut score = Score::default();
        let (start, undo_file) = if verb.starts_with("undo") {
            (&case.end, Some(&case.undo_file[..]))
        } else {
            (&case.start, None)
        };
        for left in cut_everywhere(file_system, start, undo_file, verb)? {
            let at = format!("{}, {file_system}, {verb}, {}", case.name, left.way);
            judge(case, &at, &left, &mut score);
        }
        Some(score)
    });
    let mut score = Score::default();
    for part in scores {
        let Some(part) = part else { return };
        score.cuts += part.cuts;
        score.between += part.between;
        score.undone += part.undone;
        score.resumed += part.resumed;
    }
    println!(
        "{} power cuts on real file systems, {} images half done, {} put back by undo, {} finished by --resume, 0 worse",
        score.cuts, score.between, score.undone, score.resumed
    );
    assert!(score.cuts > 80 && score.between > 20, "{score:?}");
}
