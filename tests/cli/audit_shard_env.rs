//! Shards whose index comes from an engine's environment, as the engines set it.
//!
//! Comes in: the variables that Slurm, Kubernetes, Nomad and GNU parallel set, in whole arrays and in parts of them that
//! are run again. Goes out: a complete report, a refusal, or a list of what is missing. Never here: an engine, and an image
//! that nobody misses.

use std::fs;
use std::process::Command;

use super::stage::{QFSCK, Said, Stage, bytes_of};

/// What tells a shard's index; none of them is to come from where the tests run.
const INDEXES: [&str; 4] = [
    "SLURM_ARRAY_TASK_ID",
    "JOB_COMPLETION_INDEX",
    "NOMAD_ALLOC_INDEX",
    "PARALLEL_SEQ",
];

const IMAGES: usize = 40;

/// A list of images for so many shards; without a number, for any.
fn planned(shards: Option<u32>) -> Stage {
    let stage = Stage::new();
    fs::create_dir(stage.path("images")).expect("a directory can be made");
    let clean = bytes_of("002-v3-plain");
    for number in 0..IMAGES {
        stage.put(format!("images/vm-{number:02}.qcow2"), &clean);
    }
    let mut arguments = vec!["audit", "plan", "--out", "work.jsonl", "images"];
    let shards = shards.map(|count| count.to_string());
    if let Some(count) = &shards {
        arguments.extend(["--shards", count]);
    }
    stage.qfsck(arguments).expect_exit(0);
    stage
}

/// Runs one task in the environment that an engine made for it.
fn task(stage: &Stage, count: &str, environment: &[(&str, &str)]) -> Said {
    let mut command = Command::new(QFSCK);
    command.args([
        "audit",
        "run",
        "--work",
        "work.jsonl",
        "--shard-from-env",
        count,
        "--out",
        "out",
    ]);
    for name in INDEXES {
        command.env_remove(name);
    }
    command.envs(environment.iter().copied());
    stage.run_command(command)
}

/// One task of a Slurm array, with all that Slurm says of it.
fn slurm(stage: &Stage, count: &str, array: &[u32], id: u32) -> Said {
    let text = |number: Option<&u32>| number.map_or(String::new(), u32::to_string);
    let values = [
        ("SLURM_ARRAY_JOB_ID", "4711".to_owned()),
        ("SLURM_ARRAY_TASK_ID", id.to_string()),
        ("SLURM_ARRAY_TASK_MIN", text(array.iter().min())),
        ("SLURM_ARRAY_TASK_MAX", text(array.iter().max())),
        ("SLURM_ARRAY_TASK_COUNT", array.len().to_string()),
    ];
    let environment = values
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    task(stage, count, &environment)
}

/// Puts together what there is; gives how many images are missing.
fn missing(stage: &Stage) -> usize {
    drop(fs::remove_file(stage.path("todo.jsonl")));
    let arguments = [
        "audit",
        "merge",
        "--work",
        "work.jsonl",
        "--report",
        "report.jsonl",
        "--missing",
        "todo.jsonl",
        "out",
    ];
    let merged = stage.qfsck(arguments);
    let Ok(list) = fs::read_to_string(stage.path("todo.jsonl")) else {
        merged.expect_exit(0);
        return 0;
    };
    merged.expect_exit(8);
    // The first line is the list's.
    list.lines().count() - 1
}

fn rows(stage: &Stage) -> usize {
    let report = fs::read_to_string(stage.path("report.jsonl")).expect("there is a report");
    report.lines().count()
}

#[test]
fn a_slurm_array_from_zero_is_the_whole_list() {
    let stage = planned(Some(5));
    let array = [0, 1, 2, 3, 4];
    for id in array {
        slurm(&stage, "5", &array, id).expect_exit(0);
    }
    assert_eq!(missing(&stage), 0);
    assert_eq!(rows(&stage), IMAGES);
}

#[test]
fn a_slurm_array_of_some_tasks_runs_the_shards_of_their_numbers() {
    // The array is `3,5-6`: Slurm says of it that there are 3 tasks, that the first is 3 and the last 6.
    let stage = planned(Some(7));
    let again = [3, 5, 6];
    for id in [0, 1, 2, 4] {
        slurm(&stage, "7", &[0, 1, 2, 3, 4, 5, 6], id).expect_exit(0);
    }
    let left = missing(&stage);
    assert!(left >= 3, "only {left} images in three of seven shards");
    for id in again {
        slurm(&stage, "7", &again, id).expect_exit(0);
    }
    assert_eq!(missing(&stage), 0);
    assert_eq!(rows(&stage), IMAGES);
}

#[test]
fn the_number_of_tasks_that_are_run_again_is_refused_as_the_number_of_shards() {
    // The list knows how many there are.
    let stage = planned(Some(7));
    for id in [3, 5, 6] {
        let said = slurm(&stage, "3", &[3, 5, 6], id);
        said.expect_exit(64);
    }
    assert!(
        !stage.path("out").exists(),
        "a shard that is none left something"
    );
    // Even one that does not know: no task of `3,5-6` is a shard of three.
    let stage = planned(None);
    for id in [3, 5, 6] {
        let said = slurm(&stage, "3", &[3, 5, 6], id);
        said.expect_exit(64);
        assert!(said.err().contains("there is no shard"), "{}", said.err());
    }
    assert_eq!(missing(&stage), IMAGES);
}

#[test]
fn a_slurm_array_from_one_does_not_pass_for_the_whole_list() {
    let stage = planned(Some(4));
    let array = [1, 2, 3, 4];
    for id in [1, 2, 3] {
        slurm(&stage, "4", &array, id).expect_exit(0);
    }
    slurm(&stage, "4", &array, 4).expect_exit(64);
    assert!(missing(&stage) > 0, "shard 0 was run by nobody");
}

#[test]
fn a_slurm_array_with_a_step_leaves_out_what_the_merge_misses() {
    let stage = planned(Some(6));
    let array = [0, 2, 4];
    for id in array {
        slurm(&stage, "6", &array, id).expect_exit(0);
    }
    let left = missing(&stage);
    assert!(left > 0);
    for id in [1, 3, 5] {
        slurm(&stage, "6", &[1, 3, 5], id).expect_exit(0);
    }
    assert_eq!(missing(&stage), 0);
}

#[test]
fn all_engines_give_the_same_shards() {
    let stage = planned(Some(3));
    for index in 0..3 {
        let said = slurm(&stage, "3", &[0, 1, 2], index);
        assert!(said.err().contains(" 0 had a record"), "{}", said.err());
    }
    assert_eq!(missing(&stage), 0);
    // GNU parallel counts from 1.
    for (name, first) in [
        ("JOB_COMPLETION_INDEX", 0),
        ("NOMAD_ALLOC_INDEX", 0),
        ("PARALLEL_SEQ", 1),
    ] {
        for index in 0..3 {
            let value = (first + index).to_string();
            let said = task(&stage, "3", &[(name, &value)]);
            said.expect_exit(0);
            let shard = format!("shard {index}/3: ");
            assert!(said.err().contains(&shard), "{name}: {}", said.err());
            assert!(
                said.err().contains(" 0 looked at"),
                "{name}: {}",
                said.err()
            );
        }
        let beyond = (first + 3).to_string();
        task(&stage, "3", &[(name, &beyond)]).expect_exit(64);
    }
}

#[test]
fn an_environment_without_an_index_or_with_two_is_refused() {
    let stage = planned(Some(2));
    for environment in [
        &[][..],
        &[("SLURM_ARRAY_TASK_ID", "")],
        &[("SLURM_ARRAY_TASK_ID", "0-1")],
        &[("SLURM_ARRAY_TASK_ID", "-1")],
        &[("SLURM_ARRAY_TASK_ID", "4294967294")],
        &[("PARALLEL_SEQ", "0")],
        &[("SLURM_ARRAY_TASK_ID", "0"), ("PARALLEL_SEQ", "1")],
        // A Slurm job that is no array has no task.
        &[("SLURM_JOB_ID", "4711"), ("SLURM_PROCID", "0")],
    ] {
        task(&stage, "2", environment).expect_exit(64);
    }
    assert_eq!(missing(&stage), IMAGES);
}
