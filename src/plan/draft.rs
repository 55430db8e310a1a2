//! A plan in the making: the image as the passes so far would leave it.
//!
//! Comes in: an image, then the changes of one pass after another. Goes out: the finished [`Plan`], rehearsed. Never here:
//! deciding on a change, but for the guard before the first and the state bits after the last.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::ops::Range;
use std::path::Path;

use super::changes::{Changes, Withheld};
use super::notes::DraftNotes;
use super::rehearsal::{Culprit, Step, counts, is_better, is_consistent};
use super::{
    Pass, Plan, RepairOptions, Stage, StageKind, evidence, read_error, sectors, state_bits,
};
use crate::check::{Check, Options, check};
use crate::error::Error;
use crate::finding::Code;
use crate::image::Image;
use crate::progress::Progress;
use crate::qcow2::{ClusterRange, HostCluster};
use crate::refcount_map::{ClusterSet, by_word, region_clusters};
use crate::storage::{Overlay, Storage};

/// What comes of an attempt at a plan.
pub(super) enum Outcome {
    /// A plan that makes the image better, or an empty one.
    Plan(Box<Plan>),
    /// The image would be worse, and a plan without one of its passes may not make it so.
    Worse(Culprit),
}

impl Outcome {
    pub(super) fn plan(plan: Plan) -> Self {
        Self::Plan(Box::new(plan))
    }
}

/// The image as it would be so far, and how to get there.
pub(super) struct Draft<'a, S> {
    path: &'a Path,
    overlay: Overlay<&'a S>,
    stages: Vec<Stage>,
    withheld: Vec<(Pass, Withheld)>,
    notes: DraftNotes,
    steps: Vec<Step>,
    freed: ClusterSet,
    length_bytes: u64,
    /// The check of the image as it would be so far, where the last examination was one.
    last: Option<Check>,
}

impl<'a, S: Storage> Draft<'a, S> {
    /// Nothing is changed yet.
    pub(super) fn new(image: &'a Image<S>) -> Self {
        Self {
            path: image.path(),
            overlay: Overlay::new(image.storage()),
            stages: Vec::new(),
            withheld: Vec::new(),
            notes: DraftNotes::new(),
            steps: Vec::new(),
            freed: ClusterSet::new(),
            length_bytes: image.file_bytes(),
            last: None,
        }
    }

    /// The image as it would be so far.
    pub(super) fn overlay(&self) -> &Overlay<&'a S> {
        &self.overlay
    }

    pub(super) fn notes(&self) -> &DraftNotes {
        &self.notes
    }

    /// Turns the patches, new clusters and copies of a pass into stages, with a guard before the first that can be seen by
    /// whoever opens the image.
    pub(super) fn lay_out(
        &self,
        image: &Image<impl Storage>,
        changes: &mut Changes,
        may_guard: bool,
    ) -> io::Result<Vec<Stage>> {
        // Without a cluster size there was no examination, and so no change.
        let Some(geometry) = image.geometry() else {
            return Ok(Vec::new());
        };
        // There may be millions.
        let mut patches = mem::take(&mut changes.patches);
        let needs_guard = patches
            .iter()
            .any(|patch| patch.stage != StageKind::LowerRefcounts);
        if needs_guard && may_guard && !self.is_guarded() {
            patches.extend(state_bits::guard_patch(image.header()));
        }
        sectors::lay_out(
            &self.overlay,
            patches,
            mem::take(&mut changes.fresh),
            &changes.copies,
            geometry.cluster_bytes(),
        )
    }

    /// Keeps the reasons of a pass for what it leaves as it is; they replace those of an earlier run of the same pass.
    pub(super) fn withhold(&mut self, pass: Pass, reasons: Vec<Withheld>) {
        self.withheld.retain(|(known, _)| *known != pass);
        let reasons = reasons.into_iter().map(|reason| (pass, reason));
        self.withheld.extend(reasons);
    }

    fn is_guarded(&self) -> bool {
        self.stages
            .iter()
            .any(|stage| stage.kind == StageKind::Guard)
    }

    /// Goes on from an examination that found so much: with what a pass makes of it, or, where none makes anything of it, with
    /// its check as the rehearsal of what there is so far.
    pub(super) fn go_on(
        &mut self,
        done: Option<(Pass, Vec<Stage>, Changes)>,
        found: BTreeMap<Code, u64>,
        last: Option<Check>,
        wishes: &RepairOptions,
    ) {
        if let Some((pass, stages, changes)) = done {
            self.begin(pass, found, &stages);
            self.push(stages, &changes, wishes);
        } else {
            self.last = last;
        }
    }

    /// Remembers which pass comes now, and what was wrong before it.
    fn begin(&mut self, pass: Pass, before: BTreeMap<Code, u64>, stages: &[Stage]) {
        self.notes.was_recounted |= pass == Pass::Refcounts;
        let answers = stages.iter().flat_map(|stage| stage.changes.keys());
        self.steps.push(Step {
            pass,
            before,
            answers: answers.copied().collect(),
        });
    }

    /// Adds what a pass wants.
    fn push(&mut self, stages: Vec<Stage>, changes: &Changes, wishes: &RepairOptions) {
        self.last = None;
        // The bits that guard the repair give nothing up, whoever accepts whatever.
        let is_about_data =
            |stage: &&Stage| !matches!(stage.kind, StageKind::Guard | StageKind::ClearState);
        let stages_of_data = stages.iter().filter(is_about_data);
        let mut answered = stages_of_data.flat_map(|stage| stage.changes.keys());
        self.notes.gave_up |= changes.gave_up || answered.any(|&code| wishes.accepts(code));
        for edit in stages.iter().flat_map(|stage| &stage.edits) {
            self.overlay.write(edit.offset, &edit.after);
        }
        // What guest data says is nobody's business in a rehearsal, only that the clusters are there.
        for copy in stages.iter().flat_map(|stage| &stage.copies) {
            self.overlay.extend_to(copy.to + copy.bytes);
        }
        for cluster in changes.released.iter().flat_map(|range| range.clusters()) {
            self.notes.released.insert(cluster);
        }
        for range in changes.freed.iter() {
            self.freed.insert_run(range);
        }
        self.stages.extend(stages);
    }

    /// What was leaked before this repair, is free after it, and was not written to by it: its bytes are nobody's, and no
    /// undo needs them. What the repair itself put out of use is not among them: an undo refers to it again.
    fn given_back(&self, cluster_bits: u32) -> Vec<ClusterRange> {
        let clusters_of =
            |start: u64, end: u64| start >> cluster_bits..end.div_ceil(1 << cluster_bits);
        let written = ClusterSet::new();
        let write = |clusters: Range<u64>| {
            written.insert_run(ClusterRange {
                start: HostCluster(clusters.start),
                count: clusters.end.saturating_sub(clusters.start),
            });
        };
        for stage in &self.stages {
            for edit in &stage.edits {
                write(clusters_of(
                    edit.offset,
                    edit.offset + edit.after.len() as u64,
                ));
            }
            for copy in &stage.copies {
                write(clusters_of(copy.to, copy.to + copy.bytes));
            }
        }
        let whole_clusters = self.length_bytes >> cluster_bits;
        let in_file = |region: &u64| region_clusters(*region).start < whole_clusters;
        let mut ranges: Vec<ClusterRange> = Vec::new();
        for region in self.freed.regions().take_while(in_file) {
            let mut clusters = region_clusters(region);
            clusters.end = clusters.end.min(whole_clusters);
            let all = ClusterRange {
                start: HostCluster(clusters.start),
                count: clusters.end - clusters.start,
            };
            for part in by_word(all) {
                let freed = self.freed.bits_of(part) & self.notes.leaked_bits(part);
                for range in part.runs_of(freed & !written.bits_of(part)) {
                    match ranges.last_mut() {
                        Some(last) if last.end() == range.start.0 => last.count += range.count,
                        _ => ranges.push(range),
                    }
                }
            }
        }
        ranges
    }

    /// Whether a count that is too low is raised in place, or a flag cleared that lets writes through to another owner. An
    /// overlap stays one by that, and is found as often as before; but neither owner frees or overwrites what is the
    /// other's.
    fn protects(&self) -> bool {
        let answers = |stage: &Stage| match stage.kind {
            StageKind::RaiseRefcounts => stage.changes.contains_key(&Code::RefcountTooLow),
            StageKind::ClearCopied => stage.changes.contains_key(&Code::CopiedFlagStale),
            _ => false,
        };
        self.stages.iter().any(answers)
    }

    /// The plan: with final dirty and corrupt bits, rehearsed, or empty where the image would not be better; or the pass to
    /// leave out.
    pub(super) fn finish(
        mut self,
        before: Check,
        wishes: &RepairOptions,
        left_out: &[Culprit],
        options: Options,
        progress: &Progress,
    ) -> Result<Outcome, Error> {
        let mut after = match self.last.take() {
            Some(check) => check,
            None => self.rehearse(options, progress)?,
        };
        // Leaks alone are lowered, or not, without a word about the state of the rest.
        if let Some(features) = state_bits::final_features(
            &before.header,
            self.is_guarded(),
            is_consistent(&after),
            wishes.mode,
        ) {
            let patch = state_bits::features_patch(StageKind::ClearState, features);
            let mut changes = Changes {
                patches: vec![patch],
                ..Changes::default()
            };
            let image = Image::open(&self.overlay, self.path)?;
            let last = self
                .lay_out(&image, &mut changes, false)
                .map_err(|source| read_error(self.path, source))?;
            drop(image);
            self.push(last, &changes, wishes);
            // No table has changed since the last rehearsal.
            let image = Image::open(&self.overlay, self.path)?;
            after = match after.with_state_bits(image.header()) {
                Some(check) => check,
                None => self.rehearse(options, progress)?,
            };
        }
        let withheld = mem::take(&mut self.withheld).into_iter();
        let mut withheld: Vec<Withheld> = withheld.map(|(_, reason)| reason).collect();
        if !self.stages.is_empty()
            && let Err(refusal) = is_better(&before, &after, self.protects())
        {
            if let Some(culprit) = refusal.culprit(&self.steps, &counts(&after.findings)) {
                return Ok(Outcome::Worse(culprit));
            }
            withheld.push(refusal.withheld);

            self.stages = Vec::new();
            self.freed = ClusterSet::new();
        }
        withheld.extend(left_out.iter().flat_map(|culprit| culprit.withheld(&after)));
        evidence::say_what_is_left(&after, &mut withheld);
        let end = self.stages.iter().map(Stage::end).max().unwrap_or(0);
        Ok(Outcome::plan(Plan {
            freed: self.given_back(before.header.cluster_bits),
            stages: self.stages,
            withheld,
            before,
            after,
            length_bytes: self.length_bytes,
            length_bytes_after: self.length_bytes.max(end),
        }))
    }

    /// Checks the image as it would be.
    fn rehearse(&self, options: Options, progress: &Progress) -> Result<Check, Error> {
        let image = Image::open(&self.overlay, self.path)?;
        let check = check(&image, options, progress);
        self.refuse_failed_reads()?;
        super::refuse_gaps(&image, &check.coverage)?;
        Ok(check)
    }

    /// A plan made without what could not be read would be another plan.
    pub(super) fn refuse_failed_reads(&self) -> Result<(), Error> {
        match self.overlay.take_read_failure() {
            None => Ok(()),
            Some((offset, source)) => Err(Error::Read {
                path: self.path.to_owned(),
                offset,
                source,
            }),
        }
    }
}
