//! `qfsck explain`: the catalog, aloud.

use std::io::{self, Write};

use qfsck::{Boot, Code, Severity};

use crate::args::ExplainArgs;
use crate::exit::Outcome;
use crate::{finish, print, render, say};

/// Explains one code, or lists them all.
pub(crate) fn run(args: &ExplainArgs) -> Outcome {
    let code = args.code.as_deref().map(|id| (id, Code::from_id(id)));
    let written = match code {
        None => print(list),
        Some((_, Some(code))) => print(|to| explain(to, code)),
        Some((id, None)) => {
            say(&format!(
                "qfsck: there is no finding {id:?}; `qfsck explain` lists them all"
            ));
            return Outcome::Usage;
        }
    };
    finish(written)
}

fn list(to: &mut dyn Write) -> io::Result<()> {
    for code in Code::ALL {
        writeln!(
            to,
            "{:<38} {:<11} {}",
            code.id(),
            code.severity().name(),
            code.title()
        )?;
    }
    Ok(())
}

fn explain(to: &mut dyn Write, code: Code) -> io::Result<()> {
    let boot = match code.boot() {
        _ if code.severity() == Severity::Policy => {
            "only looked for with `qfsck check --untrusted`"
        }
        Boot::Safe => "starting a guest does not make it worse",
        Boot::Unsafe => "do not start a guest on the image",
    };
    writeln!(to, "{}: {}", code.id(), code.title())?;
    writeln!(to, "{}; {boot}", code.severity().name())?;
    writeln!(to)?;
    render::wrapped(to, "", code.help())?;
    writeln!(to)?;
    render::wrapped(to, "Remedy: ", code.remedy())
}
