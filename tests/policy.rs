//! The policy for images from strangers: what a gate turns away, one row for each rule, and what it lets pass.
//!
//! Comes in: forged images and those of the corpus. Goes out: the policy findings, by code and in order. Never here: what
//! else is wrong with an image, or the exit code (`cli`).

#![expect(
    clippy::unreadable_literal,
    reason = "words of an image are written as a hex dump shows them"
)]

use std::collections::BTreeSet;
use std::path::Path;

use qfsck::{Check, Code, Image, Options, PolicyLimits, Progress, Severity, Verdict, judge_policy};

use crate::corpus::cases;
use crate::support::image_forge::{BitmapCluster, EXTENSION_BACKING_FORMAT, Forge, Forged};

/// 64 KiB clusters: every place a signature of another format has is in the first cluster or the refcount table.
fn plain() -> Forge {
    Forge::new().data(0).data(1)
}

fn judged_by(bytes: &[u8], limits: PolicyLimits) -> Check {
    let image = Image::open(bytes, Path::new("upload.qcow2")).expect("the magic is whole");
    let mut check = qfsck::check(&image, Options::default(), &Progress::default());
    let before = check.clone();
    judge_policy(&image, limits, &mut check);
    // A gate adds to what is found, and changes none of it.
    let others = |check: &Check| {
        let totals = check.findings.totals();
        totals
            .filter(|(code, _)| code.severity() != Severity::Policy)
            .collect::<Vec<_>>()
    };
    assert_eq!(others(&before), others(&check));
    assert_eq!(before.verdict, check.verdict);
    assert_eq!(before.coverage, check.coverage);
    assert_eq!(before.findings.count_of(Severity::Policy), 0);
    check
}

fn codes(check: &Check) -> Vec<Code> {
    let totals = check.findings.totals().map(|(code, _)| code);
    let policy = totals.filter(|code| code.severity() == Severity::Policy);
    policy.collect()
}

fn policy(image: &Forged) -> Vec<Code> {
    codes(&judged_by(&image.bytes, PolicyLimits::default()))
}

fn details(image: &Forged) -> Vec<String> {
    let check = judged_by(&image.bytes, PolicyLimits::default());
    let policy = check
        .findings
        .iter()
        .filter(|finding| finding.code.severity() == Severity::Policy);
    policy
        .map(|finding| {
            let detail = finding.detail.clone().unwrap_or_default();
            format!("{} {detail}", finding.code)
        })
        .collect()
}

fn harmed(forge: Forge, harm: impl FnOnce(&mut Forged)) -> Forged {
    let mut image = forge.build();
    harm(&mut image);
    image
}

#[test]
fn an_image_of_its_own_passes() {
    for forge in [
        plain(),
        plain().version(2),
        plain().lazy_refcounts().dirty(),
        plain().snapshot("1", "before").data(0),
        plain().bitmap("dirty", 16, 0, &[BitmapCluster::Data]),
        plain().compression_type(1).compressed(2, 900),
        plain().cluster_bits(9),
        plain().cluster_bits(21),
        plain().refcount_order(0),
        plain().feature_name(0, 0, "dirty bit"),
        plain().unknown_extension(0x1234_5678, b"whatever it is"),
        Forge::new(),
    ] {
        let said = format!("{forge:?}");
        assert_eq!(policy(&forge.build()), [], "{said}");
    }
}

#[test]
fn a_backing_file_is_turned_away_whatever_its_name() {
    for name in ["base.qcow2", "/etc/passwd", "../x", "./a:b"] {
        let image = plain().backing_file(name).backing_format("raw").build();
        let said = details(&image);
        assert_eq!(said, [format!("policy-backing-file \"{name}\"")]);
    }
    // The offset alone counts: what another program makes of a length of zero is not known.
    let nameless = harmed(plain(), |image| {
        let at = image.field("backing_file_offset");
        image.put_u64(at, 0x200);
    });
    assert_eq!(policy(&nameless), [Code::PolicyBackingFile]);
    let outside = harmed(plain(), |image| {
        image.put_u64(image.field("backing_file_offset"), u64::MAX);
        image.put_u32(image.field("backing_file_size"), u32::MAX);
    });
    assert_eq!(policy(&outside), [Code::PolicyBackingFile]);
}

#[test]
fn a_name_that_is_a_protocol_is_named_as_one() {
    for name in [
        "json:{\"driver\":\"nbd\"}",
        "nbd://127.0.0.1:9/disk",
        "fat:rw:/etc",
        "ssh://host/file",
    ] {
        let image = plain().backing_file(name).backing_format("raw").build();
        let wanted = [Code::PolicyBackingFile, Code::PolicyNameProtocol];
        assert_eq!(policy(&image), wanted, "{name}");
        let image = Forge::new().data_file(Some(name)).data(0).build();
        let wanted = [Code::PolicyDataFile, Code::PolicyNameProtocol];
        assert_eq!(policy(&image), wanted, "{name}");
    }
}

#[test]
fn names_are_shown_without_their_escapes() {
    let image = plain()
        .backing_file("\x1b[31mbase\u{202e}")
        .backing_format("raw");
    let said = details(&image.build()).join("");
    assert!(said.contains("\\x1b[31mbase\\u{202e}"), "{said}");
}

#[test]
fn a_data_file_is_turned_away_by_its_bit_its_name_or_the_raw_bit() {
    let named = Forge::new().data_file(Some("data.raw")).data(0);
    assert_eq!(policy(&named.build()), [Code::PolicyDataFile]);
    let nameless = Forge::new().data_file(None).data(0);
    assert_eq!(policy(&nameless.build()), [Code::PolicyDataFile]);
    let only_named = harmed(Forge::new().data_file(Some("data.raw")), |image| {
        image.put_u64(image.field("incompatible_features"), 0);
    });
    assert_eq!(policy(&only_named), [Code::PolicyDataFile]);
    let only_raw = harmed(plain(), |image| {
        image.put_u64(image.field("autoclear_features"), 2);
    });
    assert_eq!(policy(&only_raw), [Code::PolicyDataFile]);
}

#[test]
fn features_nobody_defined_and_extended_l2_entries_are_turned_away() {
    for bit in [5, 17, 63] {
        let image = harmed(plain(), |image| {
            image.put_u64(image.field("incompatible_features"), 1 << bit);
        });
        assert_eq!(policy(&image), [Code::PolicyFeatureUnknown], "bit {bit}");
    }
    let extended = plain().extended_l2().build();
    assert_eq!(policy(&extended), [Code::PolicyExtendedL2]);
    // Bits that may be ignored are ignored.
    let compatible = harmed(plain(), |image| {
        image.put_u64(image.field("compatible_features"), u64::MAX);
        image.put_u64(image.field("autoclear_features"), !3);
    });
    assert_eq!(policy(&compatible), []);
}

#[test]
fn encryption_is_turned_away_by_its_method_or_its_header() {
    for method in [1, 2, 77] {
        let image = harmed(plain(), |image| {
            image.put_u32(image.field("crypt_method"), method);
        });
        assert_eq!(policy(&image), [Code::PolicyEncryption], "{method}");
    }
    let luks = plain().luks(2);
    assert_eq!(policy(&luks.clone().build()), [Code::PolicyEncryption]);
    let only_header = harmed(luks, |image| {
        image.put_u32(image.field("crypt_method"), 0);
    });
    assert_eq!(policy(&only_header), [Code::PolicyEncryption]);
}

#[test]
fn the_virtual_size_has_a_limit_for_the_disk_and_for_snapshots() {
    let limits = PolicyLimits {
        virtual_bytes: 64 << 20,
        ..PolicyLimits::default()
    };
    let image = plain().snapshot("1", "before").build();
    assert_eq!(codes(&judged_by(&image.bytes, limits)), []);
    let size = |value: u64| harmed(plain(), |image| image.put_u64(image.field("size"), value));
    for bytes in [(64 << 20) + 1, 1 << 40, u64::MAX] {
        let codes = codes(&judged_by(&size(bytes).bytes, limits));
        assert_eq!(codes, [Code::PolicyVirtualSize], "{bytes}");
    }
    assert_eq!(policy(&size(64 << 40)), []);
    assert_eq!(policy(&size((64 << 40) + 512)), [Code::PolicyVirtualSize]);
    let snapshot = harmed(plain().snapshot("1", "before"), |image| {
        image.put_u64(image.snapshot_field(0, "disk_size"), u64::MAX);
    });
    let said = details(&snapshot);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("policy-virtual-size"), "{said:?}");
}

#[test]
fn what_unpacks_to_a_multiple_of_the_file_is_turned_away() {
    let mut forge = Forge::new().cluster_bits(16);
    for cluster in 0..1000 {
        forge = forge.compressed(cluster, 100);
    }
    let image = forge.build();
    let file = image.len();
    let ratio = (1000 << 16) / file;
    assert!(ratio > 100, "{ratio}");
    assert_eq!(policy(&image), [Code::PolicyExpansion]);
    for (expansion, is_allowed) in [(ratio, false), (ratio + 1, true), (u64::MAX, true)] {
        let limits = PolicyLimits {
            expansion,
            ..PolicyLimits::default()
        };
        let codes = codes(&judged_by(&image.bytes, limits));
        assert_eq!(codes.is_empty(), is_allowed, "{expansion}: {codes:?}");
    }
}

#[test]
fn bytes_behind_the_header_that_belong_to_nothing_are_turned_away() {
    for at in [0x1000, 0x2345, 0xffff] {
        let image = harmed(plain(), |image| image.put_u8(at, 1));
        let said = details(&image);
        let wanted =
            format!("policy-header-remainder 1 bytes that are not zero, the first at {at:#x}");
        assert_eq!(said, [wanted]);
    }
    // The next cluster belongs to somebody else.
    let image = harmed(plain(), |image| image.put_u8(0x10000, 0));
    assert_eq!(policy(&image), []);
    // The name of a backing file may stand anywhere behind the extensions, and is not behind itself.
    let with_backing = plain().backing_file("base").backing_format("raw");
    let image = harmed(with_backing, |image| {
        let end = image.backing_file_name() + 4;
        image.put_u8(end, b'x');
    });
    let wanted = [Code::PolicyBackingFile, Code::PolicyHeaderRemainder];
    assert_eq!(policy(&image), wanted);
    // What has no end has no remainder; the damage is a corruption by itself.
    let overrun = harmed(plain().backing_format("raw"), |image| {
        let at = image.extension(EXTENSION_BACKING_FORMAT);
        image.put_u32(at + 4, u32::MAX);
        image.put_u8(0x8000, 1);
    });
    assert_eq!(policy(&overrun), []);
}

#[test]
fn a_file_that_is_another_format_too_is_turned_away() {
    let wanted = [Code::PolicyPolyglot, Code::PolicyHeaderRemainder];
    let hidden: [(u64, &[u8], &str); 5] = [
        (510, b"\x55\xaa", "MBR or boot sector"),
        (512, b"EFI PART", "GPT"),
        (257, b"ustar", "tar"),
        (32769, b"CD001", "ISO 9660"),
        (32769, b"NSR03", "UDF"),
    ];
    for (at, magic, format) in hidden {
        let image = harmed(plain(), |image| image.put(at, magic));
        assert_eq!(policy(&image), wanted, "{format}");
        let said = details(&image).join("; ");
        let place = format!("policy-polyglot {format}, by its signature at {at:#x}");
        assert!(said.contains(&place), "{said}");
    }
    // In guest data it is found all the same: whoever looks there does not ask whose it is.
    let small = || Forge::new().cluster_bits(12);
    let forge = (0..20).fold(small(), Forge::data);
    let image = harmed(forge, |image| image.put(32769, b"CD001"));
    assert_eq!(policy(&image), [Code::PolicyPolyglot]);
    // VDI's signature lies in the snapshot table's offset.
    let image = harmed(plain(), |image| image.put_u32(64, 0x7f10dabe));
    assert_eq!(policy(&image), [Code::PolicyPolyglot]);
    let mut image = plain().build();
    let mut zip = b"PK\x05\x06".to_vec();
    zip.resize(22, 0);
    image.append(&zip);
    assert_eq!(policy(&image), [Code::PolicyPolyglot]);
}

#[test]
fn every_policy_code_has_a_row_here() {
    let text = include_str!("policy.rs");
    let policy = Code::ALL
        .iter()
        .filter(|code| code.severity() == Severity::Policy);
    for code in policy {
        let name = format!("Code::{code:?}");
        assert!(text.contains(&name), "no row for {code}");
        assert!(code.id().starts_with("policy-"), "{code}");
    }
}

#[test]
fn images_of_the_real_tools_are_turned_away_for_what_they_have_and_nothing_else() {
    let mut seen = BTreeSet::new();
    for case in cases() {
        let name = case.file_name().expect("a directory").to_string_lossy();
        let number: u32 = name[..3].parse().expect("cases are numbered");
        // Undamaged images have the numbers below 100.
        if number >= 100 {
            continue;
        }
        let bytes = std::fs::read(case.join("image.qcow2")).expect("the case has an image");
        let image = Image::open(bytes.as_slice(), Path::new("upload")).expect("an image");
        let header = image.header().clone();
        let check = judged_by(&bytes, PolicyLimits::default());
        let mut wanted = BTreeSet::new();
        let mut want = |condition: bool, code| {
            if condition {
                wanted.insert(code);
            }
        };
        want(header.backing_file_offset != 0, Code::PolicyBackingFile);
        want(header.has_data_file(), Code::PolicyDataFile);
        want(header.has_extended_l2(), Code::PolicyExtendedL2);
        want(header.crypt_method != 0, Code::PolicyEncryption);
        let found: BTreeSet<Code> = codes(&check).into_iter().collect();
        assert_eq!(found, wanted, "{name}");
        seen.extend(found);
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn forged_images_of_every_kind_have_no_hidden_bytes() {
    for seed in 0..300 {
        let image = Forged::random(seed);
        let found = policy(&image);
        let hidden = [Code::PolicyPolyglot, Code::PolicyHeaderRemainder];
        let is_hidden = found.iter().any(|code| hidden.contains(code));
        assert!(!is_hidden, "seed {seed}: {found:?}");
    }
}

#[test]
fn an_image_without_a_cluster_size_is_judged_by_its_header() {
    let image = harmed(plain().backing_file("base"), |image| {
        image.put_u32(image.field("cluster_bits"), 40);
    });
    let check = judged_by(&image.bytes, PolicyLimits::default());
    assert_eq!(codes(&check), [Code::PolicyBackingFile]);
    assert_eq!(check.verdict, Verdict::Unreadable);
}
