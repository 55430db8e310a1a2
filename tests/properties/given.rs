//! The image an input stands for.
//!
//! Comes in: the bytes of an input. Goes out: an image, and what is left of the input for other choices. Never here: a
//! choice that the input does not make.
//!
//! Bytes that begin as an image does are one. All others are choices: which forged image, and then what is changed in it
//! where. The changes are those of the tests: fields of every structure (`law/mutate.rs`), and what disks and programs do
//! to whole sectors and clusters (`repair/fuzz/damage.rs`).

use std::sync::OnceLock;

use crate::law::mutate::Mutator;
use crate::repair::fuzz::damage::Targets;
use crate::repair::fuzz::healthy;
use crate::repair::fuzz::view::View;
use crate::support::image_forge::{Forged, Random, has_large_clusters};

/// How many images are forged to be changed.
const IMAGES: u64 = 512;
/// Larger ones cost time and give little insight: one in sixteen may be so large, all others a quarter of it.
const MAX_BYTES: usize = 160 << 10;
/// Changes of one image.
const MAX_CHANGES: usize = 6;

/// An image, and the rest of the input.
pub(super) struct Given {
    pub(super) bytes: Vec<u8>,
    /// Takes further choices from the rest of the input.
    pub(super) choices: Random,
    /// What was done to the image, in words.
    pub(super) story: String,
}

impl Given {
    pub(super) fn of(input: &[u8]) -> Self {
        if input.starts_with(b"QFI\xfb") {
            return Self {
                bytes: input.to_vec(),
                choices: Random::new(input.len() as u64),
                story: "bytes as given".to_owned(),
            };
        }
        // The last bytes are for the choices that follow: they shall not move where a change is added.
        let (changes, rest) = input.split_at(input.len().saturating_sub(8));
        let mut random = Random::from_tape(changes);
        let number = random.below(IMAGES);
        let known = Known::numbered(number);
        let mut bytes = known.image.bytes.clone();
        let mut story = vec![format!("image {number}")];
        while random.has_tape() && story.len() <= MAX_CHANGES {
            let done = if random.chance(50) {
                Some(known.mutator.change(&mut bytes, &mut random))
            } else {
                known.targets.damage(&mut bytes, &mut random)
            };
            story.extend(done);
        }
        Self {
            bytes,
            choices: Random::from_tape(rest),
            story: story.join(", "),
        }
    }
}

/// A forged image, and where it can be changed.
struct Known {
    image: &'static Forged,
    mutator: Mutator<'static>,
    targets: Targets<'static>,
}

impl Known {
    /// Forged when it is asked for, and kept.
    fn numbered(number: u64) -> &'static Self {
        static ALL: [OnceLock<Known>; IMAGES as usize] =
            [const { OnceLock::new() }; IMAGES as usize];
        ALL[number as usize].get_or_init(|| {
            let image: &'static Forged = Box::leak(Box::new(forged(number)));
            let truth = View::new(&image.bytes, image.u32_at(20));
            Self {
                image,
                mutator: Mutator::new(image),
                targets: Targets::of(image, &truth),
            }
        })
    }
}

/// Every other one is of the kind that suffers realistic damage, the rest has every feature of the format.
fn forged(number: u64) -> Forged {
    let candidates = (0..).map(|attempt| number + attempt * IMAGES);
    let forged = candidates.filter_map(|seed| {
        if number.is_multiple_of(2) {
            healthy::image(&mut Random::new(seed), seed)
        } else {
            (!has_large_clusters(seed)).then(|| Forged::random(seed))
        }
    });
    let limit = if number % 16 < 15 {
        MAX_BYTES / 4
    } else {
        MAX_BYTES
    };
    let mut small = forged.filter(|image| image.bytes.len() <= limit);
    small.next().expect("most images are small")
}
