//! The real tools, driven: a `Recipe` comes in, an image made by `qemu-img` and `qemu-io` goes out, and two checkers
//! say what they think of it.
//!
//! Every command runs inside the recipe's own directory with relative names, so nothing here knows where it is, and
//! under a time limit, so a hanging tool fails one recipe and not the run. Every error is a sentence that quotes the
//! command and what the tool said.
//!
//! Never here: an opinion on whether an answer is right (`oracle.rs` compares), a shell, an absolute path, a panic
//! other than the one `QFSCK_REQUIRE_ORACLE=1` asks for.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::support::needs::not_tested;

/// The name every recipe gives its image, inside its own directory.
pub(crate) const IMAGE: &str = "image.qcow2";

/// Longer than any honest run by an order of magnitude.
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// The key of every encrypted image here. `qfsck` is never told.
const SECRET: [&str; 2] = ["--object", "secret,id=key,data=open-sesame"];

const QEMU_IMG: &str = "qemu-img";
const QEMU_IO: &str = "qemu-io";

/// Proof that `qemu-img` and `qemu-io` are there, with the version they give.
pub(crate) struct Tools {
    pub(crate) version: String,
}

/// The tools, or a line that says why there is no oracle. With `QFSCK_REQUIRE_ORACLE=1` their absence is a failure.
pub(crate) fn tools() -> Option<Tools> {
    let required = std::env::var_os("QFSCK_REQUIRE_ORACLE").is_some_and(|value| value == "1");
    for program in [QEMU_IMG, QEMU_IO] {
        if version_of(program).is_none() {
            assert!(
                !required,
                "QFSCK_REQUIRE_ORACLE=1, but {program} is not installed"
            );
            not_tested(&format!("{program} is not installed"));
            return None;
        }
    }
    version_of(QEMU_IMG).map(|version| Tools { version })
}

/// `qemu-img version 10.0.2 (…)` says `10.0.2`.
fn version_of(program: &str) -> Option<String> {
    let said = run(Path::new("."), program, &words(["--version"])).ok()?;
    let (_, version) = said.stdout.split_once("version ")?;
    version.split_whitespace().next().map(str::to_owned)
}

/// How the image comes into being, before its steps.
pub(crate) enum Origin {
    /// `qemu-img create`.
    Create,
    /// `qemu-img create` on top of a backing file made first: raw, with these bytes.
    Overlay {
        backing: &'static str,
        bytes: Vec<u8>,
    },
    /// `qemu-img convert` from a raw file with these bytes.
    Convert {
        flags: &'static [&'static str],
        bytes: Vec<u8>,
    },
}

/// One change to the image, by one run of one tool.
pub(crate) enum Step {
    /// `qemu-io` commands in one session, closed cleanly.
    Io(Vec<String>),
    /// The same with guest discards passed on to the image.
    Unmap(Vec<String>),
    /// The same, but the process is killed after the last command: nothing is closed, a dirty bit stays set.
    Crash(Vec<String>),
    /// `qemu-img snapshot` with `-c`, `-d` or `-a`.
    Snapshot {
        action: &'static str,
        name: &'static str,
    },
    /// `qemu-img bitmap` with these flags.
    Bitmap {
        flags: Vec<String>,
        name: &'static str,
    },
    /// `qemu-img resize`.
    Resize {
        flags: &'static [&'static str],
        to_bytes: u64,
    },
    /// Any other verb of `qemu-img` whose last argument is the image, such as `commit`.
    Img(Vec<String>),
}

/// Whether the tools need the key to open the image.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Open,
    NeedsKey,
}

/// What the maker of a recipe knows about the result.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// Every tool closed the image properly: any leak or corruption is a mistake of somebody's.
    Healthy,
    /// A process was killed: `qemu-img` decides what is wrong, and `qfsck` must say the same.
    AsQemuSays,
}

/// How to make one real image.
pub(crate) struct Recipe {
    pub(crate) name: String,
    pub(crate) virtual_bytes: u64,
    /// For `-o`, such as `cluster_size=4096`.
    pub(crate) options: Vec<String>,
    pub(crate) origin: Origin,
    pub(crate) steps: Vec<Step>,
    pub(crate) access: Access,
    pub(crate) health: Health,
    /// Files that `qemu-img check` cannot do without and `qfsck` must: gone before it runs.
    pub(crate) gone_before_qfsck: Vec<&'static str>,
}

impl Recipe {
    /// A healthy image, created and empty.
    pub(crate) fn new(name: String, virtual_bytes: u64, options: Vec<String>) -> Self {
        Self {
            name,
            virtual_bytes,
            options,
            origin: Origin::Create,
            steps: Vec::new(),
            access: Access::Open,
            health: Health::Healthy,
            gone_before_qfsck: Vec::new(),
        }
    }

    pub(crate) fn option(mut self, option: impl Into<String>) -> Self {
        self.options.push(option.into());
        self
    }

    pub(crate) fn origin(mut self, origin: Origin) -> Self {
        self.origin = origin;
        self
    }

    pub(crate) fn io<S: Into<String>>(self, commands: impl IntoIterator<Item = S>) -> Self {
        self.step(Step::Io(words(commands)))
    }

    pub(crate) fn snapshot(self, action: &'static str, name: &'static str) -> Self {
        self.step(Step::Snapshot { action, name })
    }

    pub(crate) fn bitmap<S: Into<String>>(
        self,
        flags: impl IntoIterator<Item = S>,
        name: &'static str,
    ) -> Self {
        let flags = words(flags);
        self.step(Step::Bitmap { flags, name })
    }

    pub(crate) fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    pub(crate) fn key(mut self) -> Self {
        self.access = Access::NeedsKey;
        self
    }

    pub(crate) fn health(mut self, health: Health) -> Self {
        self.health = health;
        self
    }

    pub(crate) fn without(mut self, file: &'static str) -> Self {
        self.gone_before_qfsck.push(file);
        self
    }

    /// The arguments that open the image, for either tool.
    fn target(&self) -> Vec<String> {
        match self.access {
            Access::Open => words(["-f", "qcow2", IMAGE]),
            Access::NeedsKey => {
                let image = format!("driver=qcow2,encrypt.key-secret=key,file.filename={IMAGE}");
                words([SECRET[0], SECRET[1], "--image-opts", &image])
            }
        }
    }

    /// The same for `qemu-img snapshot`, which has no `-f` before QEMU 10.
    fn probed_target(&self) -> Vec<String> {
        match self.access {
            Access::Open => words([IMAGE]),
            Access::NeedsKey => self.target(),
        }
    }
}

/// Makes the image in `dir` and returns the commands that did, one line each, the long ones cut.
pub(crate) fn make(_: &Tools, recipe: &Recipe, dir: &Path) -> Result<String, String> {
    let mut transcript = String::new();
    make_origin(recipe, dir, &mut transcript)?;
    for step in &recipe.steps {
        make_step(recipe, step, dir, &mut transcript)?;
    }
    Ok(transcript)
}

fn make_origin(recipe: &Recipe, dir: &Path, transcript: &mut String) -> Result<(), String> {
    let options = recipe.options.join(",");
    let size = recipe.virtual_bytes.to_string();
    let arguments = match &recipe.origin {
        Origin::Create => {
            let key = if recipe.access == Access::NeedsKey {
                words(SECRET)
            } else {
                Vec::new()
            };
            [
                words(["create", "-q", "-f", "qcow2", "-o", &options]),
                key,
                words([IMAGE, &size]),
            ]
            .concat()
        }
        Origin::Overlay { backing, bytes } => {
            write_file(dir, backing, bytes)?;
            words([
                "create", "-q", "-f", "qcow2", "-F", "raw", "-b", backing, "-o", &options, IMAGE,
                &size,
            ])
        }
        Origin::Convert { flags, bytes } => {
            write_file(dir, "source.raw", bytes)?;
            let flags = words(flags.iter().copied());
            let files = words(["-o", &options, "source.raw", IMAGE]);
            [
                words(["convert", "-q", "-f", "raw", "-O", "qcow2"]),
                flags,
                files,
            ]
            .concat()
        }
    };
    succeed(dir, QEMU_IMG, &arguments, transcript)
}

fn make_step(
    recipe: &Recipe,
    step: &Step,
    dir: &Path,
    transcript: &mut String,
) -> Result<(), String> {
    let target = recipe.target();
    let img = match step {
        Step::Io(commands) => return make_io(recipe, &[], commands, dir, transcript),
        Step::Unmap(commands) => {
            return make_io(recipe, &["-d", "unmap"], commands, dir, transcript);
        }
        Step::Crash(commands) => return make_crash(recipe, commands, dir, transcript),
        Step::Snapshot { action, name } => {
            [words(["snapshot", action, name]), recipe.probed_target()].concat()
        }
        Step::Bitmap { flags, name } => {
            [words(["bitmap"]), flags.clone(), target, words([*name])].concat()
        }
        Step::Resize { flags, to_bytes } => {
            let flags = words(flags.iter().copied());
            [
                words(["resize", "-q"]),
                flags,
                target,
                vec![to_bytes.to_string()],
            ]
            .concat()
        }
        Step::Img(command) => [command.clone(), target].concat(),
    };
    succeed(dir, QEMU_IMG, &img, transcript)
}

/// Nothing is forced to the disk: it makes the images several times faster, and what a killed session leaves behind
/// is then more than its last request.
fn io_arguments(recipe: &Recipe, flags: &[&str], commands: &[String]) -> Vec<String> {
    let mut arguments = words(["-t", "unsafe"]);
    arguments.extend(words(flags.iter().copied()));
    for command in commands {
        arguments.extend(words(["-c", command]));
    }
    arguments.extend(recipe.target());
    arguments
}

fn make_io(
    recipe: &Recipe,
    flags: &[&str],
    commands: &[String],
    dir: &Path,
    transcript: &mut String,
) -> Result<(), String> {
    succeed(
        dir,
        QEMU_IO,
        &io_arguments(recipe, flags, commands),
        transcript,
    )
}

/// Killed is what is wanted: an orderly end or a failed command is the error.
fn make_crash(
    recipe: &Recipe,
    commands: &[String],
    dir: &Path,
    transcript: &mut String,
) -> Result<(), String> {
    let mut commands = commands.to_vec();
    commands.push("sigraise 9".to_owned());
    let arguments = io_arguments(recipe, &["-d", "unmap"], &commands);
    note(transcript, QEMU_IO, &arguments);
    let said = run(dir, QEMU_IO, &arguments)?;
    if said.exit.is_none() && !said.misunderstood() {
        Ok(())
    } else {
        Err(said.failure())
    }
}

/// Runs a command that has to work. `qemu-io` ends well after a command it does not know, so its words count too.
fn succeed(
    dir: &Path,
    program: &str,
    arguments: &[String],
    transcript: &mut String,
) -> Result<(), String> {
    note(transcript, program, arguments);
    let said = run(dir, program, arguments)?;
    if said.exit == Some(0) && !said.misunderstood() {
        Ok(())
    } else {
        Err(said.failure())
    }
}

fn note(transcript: &mut String, program: &str, arguments: &[String]) {
    transcript.push_str(beginning(&spoken(program, arguments)));
    transcript.push('\n');
}

fn write_file(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), String> {
    fs::write(dir.join(name), bytes).map_err(|error| format!("cannot write {name}: {error}"))
}

/// What a checker said about one image.
pub(crate) struct Checked {
    /// `None` when a signal ended it.
    pub(crate) exit: Option<i32>,
    /// The document on stdout, `None` when there was none or it was not JSON.
    pub(crate) report: Option<serde_json::Value>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Checked {
    /// A key at the top level of the report, absent as `None`.
    pub(crate) fn value(&self, key: &str) -> Option<&serde_json::Value> {
        self.report.as_ref()?.get(key)
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.exit {
            Some(code) => write!(to, "exit {code}")?,
            None => write!(to, "ended by a signal")?,
        }
        match &self.report {
            Some(report) => write!(to, " {report}")?,
            None => write!(to, " without a document: {:?}", beginning(&self.stdout))?,
        }
        if !self.stderr.is_empty() {
            write!(to, " stderr: {:?}", beginning(&self.stderr))?;
        }
        Ok(())
    }
}

/// `qemu-img check --output=json` on a recipe's image, with the key when it needs one.
pub(crate) fn qemu_check(_: &Tools, recipe: &Recipe, dir: &Path) -> Result<Checked, String> {
    let mut arguments = words(["check", "--output=json"]);
    arguments.extend(recipe.target());
    checked(dir, QEMU_IMG, &arguments)
}

/// `qemu-img check --output=json` as a person types it: the format is probed.
pub(crate) fn qemu_check_plain(_: &Tools, dir: &Path) -> Result<Checked, String> {
    checked(dir, QEMU_IMG, &words(["check", "--output=json", IMAGE]))
}

/// `qfsck check --output json`, given nothing but the image.
pub(crate) fn qfsck_check(dir: &Path) -> Result<Checked, String> {
    checked(
        dir,
        env!("CARGO_BIN_EXE_qfsck"),
        &words(["check", "--output", "json", IMAGE]),
    )
}

fn checked(dir: &Path, program: &str, arguments: &[String]) -> Result<Checked, String> {
    let said = run(dir, program, arguments)?;
    let report = serde_json::from_str(&said.stdout).ok();
    Ok(Checked {
        exit: said.exit,
        report,
        stdout: said.stdout,
        stderr: said.stderr,
    })
}

/// What must not change when somebody only looks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    bytes: u64,
    modified: SystemTime,
    hash: u64,
}

/// A fingerprint of every file in `dir`: a file that comes or goes shows as well as one that changes.
pub(crate) fn fingerprints(dir: &Path) -> Result<BTreeMap<String, Fingerprint>, String> {
    let fail = |error: std::io::Error| format!("cannot fingerprint the directory: {error}");
    let mut prints = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let metadata = entry.metadata().map_err(fail)?;
        let modified = metadata.modified().map_err(fail)?;
        let hash = hash_file(&entry.path()).map_err(fail)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        prints.insert(
            name,
            Fingerprint {
                bytes: metadata.len(),
                modified,
                hash,
            },
        );
    }
    Ok(prints)
}

/// Not against malice, only against change. Holes are most of these files and are passed over by a comparison.
fn hash_file(path: &Path) -> std::io::Result<u64> {
    const CHUNK_BYTES: u64 = 64 * 1024;
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    let mut file = File::open(path)?;
    let mut chunk = Vec::with_capacity(ZEROS.len());
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mix =
        |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    loop {
        chunk.clear();
        if file.by_ref().take(CHUNK_BYTES).read_to_end(&mut chunk)? == 0 {
            return Ok(hash);
        }
        if ZEROS.starts_with(&chunk) {
            hash = mix(hash, 1);
            continue;
        }
        let (whole, rest) = chunk.as_chunks::<8>();
        hash = whole
            .iter()
            .fold(hash, |hash, word| mix(hash, u64::from_be_bytes(*word)));
        hash = rest
            .iter()
            .fold(hash, |hash, byte| mix(hash, u64::from(*byte)));
    }
}

/// A command that ended by itself within the limit.
struct Finished {
    command: String,
    exit: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Finished {
    /// `command "wriet" not found`
    fn misunderstood(&self) -> bool {
        [&self.stdout, &self.stderr]
            .into_iter()
            .any(|said| said.contains("\" not found"))
    }

    fn failure(&self) -> String {
        let end = self.exit.map_or("ended by a signal".to_owned(), |code| {
            format!("exit {code}")
        });
        let said = format!("{}{}", beginning(&self.stdout), beginning(&self.stderr));
        format!("{}: {end}: {said:?}", beginning(&self.command))
    }
}

fn run(dir: &Path, program: &str, arguments: &[String]) -> Result<Finished, String> {
    let command = spoken(program, arguments);
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{command}: cannot start: {error}"))?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let deadline = Instant::now() + TIME_LIMIT;
    let outcome = collect(&mut child, &stdout, &stderr, deadline);
    if outcome.is_err() {
        // Already failing: whether it can still be ended changes nothing.
        drop(child.kill());
        drop(child.wait());
    }
    let (exit, stdout, stderr) = outcome.map_err(|why| format!("{command}: {why}"))?;
    Ok(Finished {
        command,
        exit,
        stdout,
        stderr,
    })
}

/// Reads a pipe to its end on a thread of its own, so that neither pipe can fill up while the other is waited for.
fn drain(pipe: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is still what was said.
            drop(pipe.read_to_end(&mut bytes));
        }
        // Nobody listens any more once the time limit has passed.
        drop(send.send(bytes));
    });
    receive
}

fn collect(
    child: &mut Child,
    stdout: &Receiver<Vec<u8>>,
    stderr: &Receiver<Vec<u8>>,
    deadline: Instant,
) -> Result<(Option<i32>, String, String), String> {
    let late = |_| format!("still running after {} s", TIME_LIMIT.as_secs());
    let left = || deadline.saturating_duration_since(Instant::now());
    let stdout = stdout.recv_timeout(left()).map_err(late)?;
    let stderr = stderr.recv_timeout(left()).map_err(late)?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    loop {
        let ended = child
            .try_wait()
            .map_err(|error| format!("cannot be waited for: {error}"))?;
        if let Some(status) = ended {
            return Ok((status.code(), text(stdout), text(stderr)));
        }
        if left().is_zero() {
            return Err(late(mpsc::RecvTimeoutError::Timeout));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// The command as a person would type it.
fn spoken(program: &str, arguments: &[String]) -> String {
    let name = Path::new(program)
        .file_name()
        .map_or_else(|| program.into(), |name| name.to_string_lossy());
    let mut said = name.into_owned();
    for argument in arguments {
        let plain = !argument.is_empty() && !argument.contains([' ', '"', '\'', '*', '$']);
        // Writing to a String cannot fail.
        let _ = if plain {
            write!(said, " {argument}")
        } else {
            write!(said, " '{argument}'")
        };
    }
    said
}

fn beginning(text: &str) -> &str {
    const LONGEST: usize = 300;
    text.char_indices()
        .nth(LONGEST)
        .and_then(|(end, _)| text.get(..end))
        .unwrap_or(text)
}

fn words<S: Into<String>>(list: impl IntoIterator<Item = S>) -> Vec<String> {
    list.into_iter().map(Into::into).collect()
}
