//! Used: an image that somebody wrote to after its repair was cut short is not put back over what they wrote.
//!
//! Comes in: damaged images, and repairs that end at each write. Goes out: how many uses were told from a mere cut. Never
//! here: repairs that came to their end (`crash.rs`, `cli/repair_undo.rs`).

use std::io;
use std::process::Command;

use qfsck::{Options, Progress, RepairError, Storage, StorageMut};

use super::binary::{Bench, IMAGE, Injection, UNDO_FILE, can_trace};
use super::killed::damaged;
use super::{Disk, MemorySink, all, has_qemu_img, planned};
use crate::crash::identity;
use crate::support::image_forge::{Forge, Forged, Tree};

/// A disk that is gone after some writes.
struct Dying {
    disk: Disk,
    writes_left: usize,
}

impl Storage for Dying {
    fn length_bytes(&self) -> io::Result<u64> {
        self.disk.length_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(offset, buffer)
    }
}

impl StorageMut for Dying {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.writes_left == 0 {
            return Err(io::Error::other("the disk is gone"));
        }
        self.writes_left -= 1;
        self.disk.write_at(offset, bytes)
    }

    fn truncate(&mut self, length_bytes: u64) -> io::Result<()> {
        self.disk.truncate(length_bytes)
    }

    fn reserve(&mut self, length_bytes: u64) -> io::Result<()> {
        self.disk.reserve(length_bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.sync()
    }
}

/// The image and the undo file of a repair that ended after so many writes; `None` where it needs no more than those.
fn cut_after(start: &[u8], writes: usize) -> Option<(Vec<u8>, Vec<u8>)> {
    let (image, undo_file, is_cut) = repaired_on(start, writes);
    is_cut.then_some((image, undo_file))
}

/// The image and the undo file of a repair on a disk that takes so many writes, and whether those were too few.
fn repaired_on(start: &[u8], writes: usize) -> (Vec<u8>, Vec<u8>, bool) {
    let plan = planned(start, &all()).expect("a plan");
    let mut disk = Dying {
        disk: Disk(start.to_vec()),
        writes_left: writes,
    };
    let sink = MemorySink::default();
    let to = || Ok(sink.clone());
    let (options, progress) = (Options::default(), Progress::default());
    let applied = qfsck::apply(&mut disk, &identity(), &plan, options, &progress, to);
    let undo_file = sink.0.borrow().clone();
    (disk.disk.0, undo_file, applied.is_err())
}

fn undo(image: &[u8], undo_file: &[u8]) -> Result<Vec<u8>, RepairError> {
    let file = qfsck::undo::UndoFile::decode(undo_file).expect("as it was written");
    let sink = MemorySink::default();
    *sink.0.borrow_mut() = undo_file.to_vec();
    let mut disk = Disk(image.to_vec());
    qfsck::undo_repair(
        &mut disk,
        &file,
        qfsck::UndoOptions::default(),
        &Progress::default(),
        || Ok(sink),
    )?;
    Ok(disk.0)
}

/// A disk on which some sectors cannot be read any more, until they are written.
struct Failing {
    disk: Disk,
    unreadable: Vec<u64>,
}

impl Storage for Failing {
    fn length_bytes(&self) -> io::Result<u64> {
        self.disk.length_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset + buffer.len() as u64;
        let mut unreadable = self.unreadable.iter();
        if unreadable.any(|&sector| sector < end && offset < sector + 512) {
            return Err(io::Error::other("a bad sector"));
        }
        self.disk.read_at(offset, buffer)
    }
}

impl StorageMut for Failing {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        self.unreadable
            .retain(|&sector| !(offset..end).contains(&sector));
        self.disk.write_at(offset, bytes)
    }

    fn truncate(&mut self, length_bytes: u64) -> io::Result<()> {
        self.disk.truncate(length_bytes)
    }

    fn reserve(&mut self, length_bytes: u64) -> io::Result<()> {
        self.disk.reserve(length_bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.sync()
    }
}

/// Undoes on a disk with bad sectors.
fn undo_on_bad_disk(
    image: &[u8],
    unreadable: &[u64],
    undo_file: &[u8],
    accept_unverified: bool,
) -> Result<Vec<u8>, RepairError> {
    let file = qfsck::undo::UndoFile::decode(undo_file).expect("as it was written");
    let sink = MemorySink::default();
    *sink.0.borrow_mut() = undo_file.to_vec();
    let mut disk = Failing {
        disk: Disk(image.to_vec()),
        unreadable: unreadable.to_vec(),
    };
    let options = qfsck::UndoOptions { accept_unverified };
    let progress = Progress::default();
    qfsck::undo_repair(&mut disk, &file, options, &progress, || Ok(sink))?;
    Ok(disk.disk.0)
}

#[test]
fn what_cannot_be_read_any_more_stops_an_undo_until_that_is_accepted() {
    let mut tried = 0;
    for image in starts() {
        let start = &image.bytes;
        for writes in [1, 2, 3, 5, 1000] {
            let (now, undo_file, _) = repaired_on(start, writes);
            let l1 = image.l1_table(Tree::Active) / 512 * 512;
            let l2 = image.l2_entry(Tree::Active, 9) / 512 * 512;
            let table = image.refcount_table_entry(0) / 512 * 512;
            for unreadable in [&[0][..], &[l1], &[l2], &[table], &[0, table, l1]] {
                let refused = undo_on_bad_disk(&now, unreadable, &undo_file, false);
                let says = refused.as_ref().err().map(ToString::to_string);
                assert!(
                    matches!(refused, Err(RepairError::Unverified { .. })),
                    "{unreadable:?} after {writes} writes: {says:?}"
                );
                let says = says.unwrap_or_default();
                for word in ["--accept-unverified", "ddrescue", "--image", "not changed"] {
                    assert!(says.contains(word), "{says}");
                }
                let accepted = undo_on_bad_disk(&now, unreadable, &undo_file, true);
                let back = accepted.expect("it was accepted");
                assert!(back == *start, "{unreadable:?} after {writes} writes");
                tried += 1;
            }
            // What can be read and is neither old nor ours stops it all the same.
            let file = qfsck::undo::UndoFile::decode(&undo_file).expect("as it was written");
            let in_file = 1..now.len() as u64 - 511;
            let mut offsets = file.records.iter().map(|record| record.offset);
            let Some(offset) = offsets.find(|offset| in_file.contains(offset)) else {
                continue;
            };
            let l1 = image.l1_table(Tree::Active) / 512 * 512;
            let mut used = now.clone();
            used.get_mut(usize::try_from(offset).expect("small") + 100..)
                .and_then(|rest| rest.first_chunk_mut::<8>())
                .expect("in the file")
                .fill(0x77);
            let refused = undo_on_bad_disk(&used, &[l1], &undo_file, true);
            assert!(
                matches!(refused, Err(RepairError::UsedSince { .. })),
                "after {writes} writes"
            );
        }
    }
    assert!(tried > 50, "{tried}");
}

#[test]
fn an_image_whose_name_leads_elsewhere_at_the_first_write_is_not_repaired() {
    if !can_trace() {
        return;
    }
    // Stopped at a read, after it was opened and locked.
    let script = |change: &str| {
        format!(
            r#"
strace -f -o trace -e trace=pread64 -e inject=pread64:signal=STOP:when=4 "$QFSCK" repair --yes image.qcow2 >said 2>&1 &
tracer=$!
while kill -0 $tracer 2>/dev/null && ! grep -q 'stopped by SIGSTOP' trace 2>/dev/null; do sleep 0.01; done
victim=$(sed -n 's/^\([0-9]*\) *--- stopped by SIGSTOP.*/\1/p' trace | head -n 1)
[ -n "$victim" ] || exit 98
ln image.qcow2 kept
{change}
kill -CONT $victim
wait $tracer
echo $? >exit
exit 0
"#
        )
    };
    let (_, start) = damaged().swap_remove(0);
    for change in [
        "mv image.qcow2 moved",
        "rm image.qcow2",
        "cp image.qcow2 other && mv other image.qcow2",
        "true",
    ] {
        let bench = Bench::new();
        bench.lay(&start, None);
        std::fs::write(bench.path("script.sh"), script(change)).expect("written");
        let mut command = Command::new("sh");
        command.arg("script.sh");
        command.env("QFSCK", env!("CARGO_BIN_EXE_qfsck"));
        let ended = bench.run(command);
        assert_eq!(ended.exit, Some(0), "{change}: {ended:?}");
        let read = |name: &str| std::fs::read_to_string(bench.path(name)).unwrap_or_default();
        let said = read("said");
        let kept = std::fs::read(bench.path("kept")).expect("there");
        if change == "true" {
            assert!(kept != start, "nothing stands in the way: {said}");
            continue;
        }
        assert_eq!(read("exit").trim(), "5", "{change}: {said}");
        assert!(said.contains("has the image's name now, or none"), "{said}");
        assert!(kept == start, "{change}: it was written to");
        assert!(bench.undo_file().is_none(), "{change}: an undo file");
    }
}

/// Images whose repair writes in place, and grows the file.
fn starts() -> Vec<Forged> {
    let mut starts = Vec::new();
    for version in [2, 3] {
        for grows in [false, true] {
            let forge = Forge::new().version(version).cluster_bits(12).size(8 << 20);
            let forge = (0..6).fold(forge, Forge::data).snapshot("1", "one");
            let mut image = forge.data(2).data(9).build();
            let uncounted = image.host_cluster(Tree::Active, 9);
            image.set_refcount(uncounted, 0);
            if grows {
                // The refcount block itself is lost: a new one is written behind everything.
                image.put_u64(image.refcount_table_entry(0), 0);
            }
            starts.push(image);
        }
    }
    starts
}

#[test]
fn a_write_to_either_side_of_what_was_parted_is_not_given_to_both_by_an_undo() {
    let forge = Forge::new().cluster_bits(12).size(8 << 20);
    let mut image = (0..6).fold(forge, Forge::data).build();
    let shared = image.u64_at(image.l2_entry(Tree::Active, 3));
    let leaked = image.host_cluster(Tree::Active, 5);
    image.put_u64(image.l2_entry(Tree::Active, 5), shared);
    image.set_refcount(leaked, 0);
    let start = &image.bytes;
    let kept_at = usize::try_from(image.host_cluster(Tree::Active, 3) * image.cluster_size());
    let kept_at = kept_at.expect("small");
    let (mut ends, mut refused) = (0, 0);
    for writes in 0.. {
        let (end, undo_file, is_cut) = repaired_on(start, writes);
        ends += 1;
        assert!(
            undo(&end, &undo_file).expect("nobody wrote") == *start,
            "{writes}"
        );
        for sector in 0..8 {
            let mut written = end.clone();
            *written
                .get_mut(kept_at + sector * 512 + 9)
                .expect("in the file") ^= 1;
            let answer = undo(&written, &undo_file);
            let is_refused = matches!(answer, Err(RepairError::UsedSince { .. }));
            assert!(is_refused, "after {writes} writes, sector {sector}");
            refused += 1;
        }
        if !is_cut {
            break;
        }
    }
    println!("{ends} ends of a repair, {refused} writes in place told");
    assert!(ends > 4, "{ends}");
}

#[test]
fn an_image_whose_tables_changed_after_a_cut_is_not_put_back() {
    let (mut cuts, mut uses, mut appended) = (0, 0, 0);
    for image in starts() {
        let start = &image.bytes;
        // Nothing of these is damaged, so no repair touches them: only somebody else does.
        let tables = [
            image.l1_table(Tree::Active),
            image.l2_entry(Tree::Active, 100),
            image.l2_entry(Tree::Snapshot(0), 3),
            image.snapshot_table() + 8,
        ];
        for writes in 0.. {
            let Some((cut, undo_file)) = cut_after(start, writes) else {
                break;
            };
            cuts += 1;
            assert!(
                undo(&cut, &undo_file).expect("a cut alone is undone") == *start,
                "other bytes after {writes} writes"
            );
            let in_tables = tables.map(|offset| usize::try_from(offset).expect("small") + 5);
            let behind = (start.len()..cut.len()).step_by(512);
            appended += behind.clone().count();
            for place in in_tables.into_iter().chain(behind) {
                let mut written = cut.clone();
                *written.get_mut(place).expect("in the file") ^= 0x10;
                let refused = undo(&written, &undo_file);
                assert!(
                    matches!(refused, Err(RepairError::UsedSince { .. })),
                    "after {writes} writes, byte {place}: {:?}",
                    refused.map(|_| "undone")
                );
                uses += 1;
            }
            // What a guest reads is nobody's business here: the undo leaves it alone.
            let guest = image.host_cluster(Tree::Active, 4) * image.cluster_size();
            let guest = usize::try_from(guest).expect("small") + 7;
            let mut written = cut.clone();
            *written.get_mut(guest).expect("in the file") ^= 0xff;
            let back = undo(&written, &undo_file).expect("guest data changed in place");
            let differs: Vec<usize> = (0..start.len())
                .filter(|&at| back.get(at) != start.get(at))
                .collect();
            assert_eq!((back.len(), differs), (start.len(), vec![guest]));
        }
    }
    println!("{cuts} cut repairs, {uses} uses refused, {appended} of them behind the old end");
    assert!(
        cuts > 10 && uses > 50 && appended > 10,
        "{cuts} {uses} {appended}"
    );
}

#[test]
fn an_image_a_guest_wrote_to_after_a_kill_is_not_put_back() {
    if !can_trace() || !has_qemu_img() {
        return;
    }
    let bench = Bench::new();
    let (mut cuts, mut used, mut refused) = (0, 0, 0);
    for (name, start) in damaged() {
        for when in 1..40 {
            bench.lay(&start, None);
            let kill = Injection {
                calls: "fsync",
                what: "signal=KILL",
                when: when.to_string(),
                only_file: None,
            };
            if bench
                .tampered(&kill, &["repair", "--yes", IMAGE])
                .signal
                .is_none()
            {
                break;
            }
            if bench.undo_state().is_none() {
                continue;
            }
            cuts += 1;
            let cut = bench.image();
            let mut guest = Command::new("qemu-io");
            guest.args(["-f", "qcow2", "-c", "write -P 0x5a 0 64k", IMAGE]);
            let wrote = bench.run(guest);
            let now = bench.image();
            if now == cut || !wrote.says("wrote 65536/65536") {
                // The corrupt bit kept it out, or it saw for itself that its tables are damaged.
                continue;
            }
            used += 1;
            let ended = bench.qfsck(&["undo", UNDO_FILE]);
            // Where only guest data changed, in place, going back harms nobody.
            if ended.exit == Some(0) {
                let mut guest = Command::new("qemu-io");
                guest.args(["-r", "-f", "qcow2", "-c", "read -P 0x5a 0 4k", IMAGE]);
                let read = bench.run(guest);
                assert!(
                    !read.says("Pattern verification failed"),
                    "{name}, killed at sync {when}: what the guest wrote is gone"
                );
            } else {
                refused += 1;
                assert!(ended.says("was used since the repair"), "{name}: {ended:?}");
                assert!(bench.image() == now, "{name}: a refused undo wrote");
            }
        }
    }
    println!(
        "{cuts} killed repairs, {used} images written to by a guest since, {refused} not put back"
    );
    assert!(cuts > 20 && refused > 2, "{cuts} {used} {refused}");
}
