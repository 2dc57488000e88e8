//! A Containerfile as instructions that own their text. `parse-dockerfile` parses; here is what it
//! does not carry: here-documents of RUN anywhere but in the first place, the names of those of COPY,
//! commands with their lines joined, and the text of what ONBUILD keeps for later.

use parse_dockerfile as crates;
use parse_dockerfile::{HealthcheckArguments, JsonOrStringArray, Source};

use super::error::{BuildError, Problem};
use super::heredoc;

/// A Containerfile.
#[derive(Debug)]
pub struct Containerfile {
    /// The character that joins lines and takes the meaning from the next.
    pub escape: char,
    /// Its instructions, in order.
    pub steps: Vec<Step>,
}

/// An instruction, and where it is.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its first line, from 1.
    pub line: usize,
    /// Its text, lines joined, without here-documents.
    pub text: String,
    /// What it says.
    pub instruction: Instruction,
}

/// An option of an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// Its name, without the dashes.
    pub name: String,
    /// Its value.
    pub value: Option<String>,
}

/// A program to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The program and its arguments.
    Exec(Vec<String>),
    /// A line for the shell.
    Shell(String),
    /// A here-document that begins with `#!`.
    Script {
        /// What it is called.
        name: String,
        /// What it holds.
        text: String,
    },
}

/// What COPY and ADD copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopySource {
    /// A path, a pattern or a URL.
    Path(String),
    /// A file of the Containerfile itself.
    Document {
        /// The name it gets in a directory.
        name: String,
        /// What it holds.
        text: String,
        /// Whether variables in it are replaced.
        expand: bool,
    },
}

/// COPY or ADD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Options.
    pub flags: Vec<Flag>,
    /// What is copied.
    pub sources: Vec<CopySource>,
    /// Where to.
    pub dest: String,
}

/// What an instruction says. Variables are not replaced yet.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Instruction {
    From {
        flags: Vec<Flag>,
        image: String,
        name: Option<String>,
    },
    Copy(Copy),
    Add(Copy),
    Run {
        flags: Vec<Flag>,
        command: Command,
    },
    Env(String),
    Arg(String),
    Label(String),
    Cmd(Command),
    Entrypoint(Command),
    Expose(Vec<String>),
    Volume(Vec<String>),
    User(String),
    Workdir(String),
    Stopsignal(String),
    /// `None` for HEALTHCHECK NONE.
    Healthcheck {
        flags: Vec<Flag>,
        command: Option<Command>,
    },
    /// The text of the instruction that the child build runs.
    Onbuild(String),
    Shell(Vec<String>),
    Maintainer(String),
}

/// Parses a Containerfile.
///
/// # Errors
/// When it is malformed; the error has the line.
pub fn parse(text: &str) -> Result<Containerfile, BuildError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let escape = escape_of(text)?;
    let mut steps = Vec::new();
    let mut at = 0;
    while let Some(next) = parse_part(text, at, escape, &mut steps)? {
        at = next;
    }
    check_names(&steps)?;
    Ok(Containerfile { escape, steps })
}

/// Parses one instruction that ONBUILD kept.
///
/// # Errors
/// When it is malformed, or is one that ONBUILD cannot keep.
pub fn parse_trigger(text: &str) -> Result<Step, BuildError> {
    let mut file = parse(&format!("FROM scratch\n{text}\n"))?;
    match (file.steps.pop(), file.steps.len()) {
        (Some(step), 1) if !matches!(step.instruction, Instruction::From { .. }) => Ok(step),
        _ => Err(BuildError::new(Problem::Trigger(text.to_owned()))),
    }
}

/// The escape character that the directives say.
fn escape_of(text: &str) -> Result<char, BuildError> {
    let directives: String = text
        .split_inclusive('\n')
        .take_while(|line| line.starts_with('#'))
        .collect();
    let only = format!("{directives}\nFROM scratch\n");
    let parsed = crates::parse(&only).map_err(|error| syntax(&error, error.line()))?;
    let escape = parsed.parser_directives.escape;
    Ok(escape.map_or('\\', |directive| directive.value.value))
}

fn syntax(error: &crates::Error, line: usize) -> BuildError {
    BuildError::new(Problem::Syntax(format!("{error:#}"))).at(line, "")
}

/// What has to be before a part of a file for the parser to take it for a file.
fn preamble(at: usize, escape: char) -> String {
    match at {
        0 => String::new(),
        _ => format!("# escape={escape}\nFROM scratch\n"),
    }
}

/// Parses from an offset on, which is the beginning of a line. Returns where to go on when the parser
/// cannot: behind the here-documents of a RUN.
fn parse_part(
    text: &str,
    at: usize,
    escape: char,
    steps: &mut Vec<Step>,
) -> Result<Option<usize>, BuildError> {
    let preamble = preamble(at, escape);
    let before = text.get(..at).unwrap_or_default();
    let rest = text.get(at..).unwrap_or_default();
    if at > 0 && rest.trim().is_empty() {
        return Ok(None);
    }
    let part = format!("{preamble}{rest}");
    let lines_before = before.matches('\n').count();
    let lines_added = preamble.matches('\n').count();
    let real_line = |line: usize| (line + lines_before).saturating_sub(lines_added);
    let parsed = crates::parse_iter(&part).map_err(|error| syntax(&error, error.line()))?;
    for instruction in parsed.skip(usize::from(at > 0)) {
        let instruction = instruction.map_err(|error| syntax(&error, real_line(error.line())))?;
        let start = keyword(&instruction).start;
        let (line_text, end) = logical_line(&part, start, escape);
        let line = part.get(..start).unwrap_or_default().matches('\n').count() + 1;
        let line = real_line(line);
        let fail = |problem| BuildError::new(problem).at(line, &line_text);
        let reader = Reader {
            part: &part,
            escape,
            end,
        };
        let (converted, next) = reader.convert(&instruction).map_err(fail)?;
        steps.push(Step {
            line,
            text: line_text.trim().to_owned(),
            instruction: converted,
        });
        if let Some(next) = next {
            return Ok(Some(next - preamble.len() + at));
        }
    }
    Ok(None)
}

/// A line with those that continue it, joined, from an offset on; and where the next begins. Comments
/// and empty lines in between go.
fn logical_line(text: &str, start: usize, escape: char) -> (String, usize) {
    let mut joined = String::new();
    let mut end = start;
    let rest = text.get(start..).unwrap_or_default();
    for (number, line) in rest.split_inclusive('\n').enumerate() {
        end += line.len();
        let line = line.trim_end_matches(['\n', '\r']);
        let trimmed = line.trim();
        if number > 0 && (trimmed.is_empty() || trimmed.starts_with('#')) {
            continue;
        }
        let continued = line.trim_end_matches([' ', '\t']).strip_suffix(escape);
        joined.push_str(continued.unwrap_or(line));
        if continued.is_none() {
            break;
        }
    }
    (joined, end)
}

/// Each stage has a name of its own.
fn check_names(steps: &[Step]) -> Result<(), BuildError> {
    let mut names = std::collections::HashSet::new();
    for step in steps {
        if let Instruction::From {
            name: Some(name), ..
        } = &step.instruction
            && !names.insert(name.to_lowercase())
        {
            let problem = Problem::Syntax(format!("there are two stages named '{name}'"));
            return Err(BuildError::new(problem).at(step.line, &step.text));
        }
    }
    Ok(())
}

/// Where an instruction's own name is.
fn keyword(instruction: &crates::Instruction<'_>) -> crates::Span {
    use crates::Instruction as I;
    let keyword = match instruction {
        I::Add(it) => &it.add,
        I::Arg(it) => &it.arg,
        I::Cmd(it) => &it.cmd,
        I::Copy(it) => &it.copy,
        I::Entrypoint(it) => &it.entrypoint,
        I::Env(it) => &it.env,
        I::Expose(it) => &it.expose,
        I::From(it) => &it.from,
        I::Healthcheck(it) => &it.healthcheck,
        I::Label(it) => &it.label,
        I::Maintainer(it) => &it.maintainer,
        I::Onbuild(it) => &it.onbuild,
        I::Run(it) => &it.run,
        I::Shell(it) => &it.shell,
        I::Stopsignal(it) => &it.stopsignal,
        I::User(it) => &it.user,
        I::Volume(it) => &it.volume,
        I::Workdir(it) => &it.workdir,
        // One that a later version of the parser knows; it is refused when it is read.
        _ => return 0..0,
    };
    keyword.span.clone()
}

/// Reads what the parser made of one instruction.
struct Reader<'a> {
    part: &'a str,
    escape: char,
    /// Where the instruction's logical line ends.
    end: usize,
}

type Converted = Result<(Instruction, Option<usize>), Problem>;

impl Reader<'_> {
    /// The instruction, and where to go on if that is not where the parser does.
    fn convert(&self, instruction: &crates::Instruction<'_>) -> Converted {
        use crates::Instruction as I;
        let converted = match instruction {
            I::From(it) => Instruction::From {
                flags: flags(&it.options),
                image: it.image.value.to_string(),
                name: it.as_.as_ref().map(|(_, name)| name.value.to_string()),
            },
            I::Copy(it) => Instruction::Copy(self.copy(&it.options, &it.src, &it.dest.value)?),
            I::Add(it) => Instruction::Add(self.copy(&it.options, &it.src, &it.dest.value)?),
            I::Run(it) => return self.run(it),
            I::Env(it) => Instruction::Env(it.arguments.value.to_string()),
            I::Arg(it) => Instruction::Arg(it.arguments.value.to_string()),
            I::Label(it) => Instruction::Label(it.arguments.value.to_string()),
            I::Cmd(it) => Instruction::Cmd(self.command(&it.arguments)),
            I::Entrypoint(it) => Instruction::Entrypoint(self.command(&it.arguments)),
            I::Expose(it) => Instruction::Expose(texts(&it.arguments)),
            I::Volume(it) => Instruction::Volume(match &it.arguments {
                JsonOrStringArray::Json(list) => texts(&list.value),
                JsonOrStringArray::String(list) => texts(list),
            }),
            I::User(it) => Instruction::User(it.arguments.value.to_string()),
            I::Workdir(it) => Instruction::Workdir(it.arguments.value.to_string()),
            I::Stopsignal(it) => Instruction::Stopsignal(it.arguments.value.to_string()),
            I::Healthcheck(it) => Instruction::Healthcheck {
                flags: flags(&it.options),
                command: match &it.arguments {
                    HealthcheckArguments::Cmd { arguments, .. } => Some(self.command(arguments)),
                    _ => None,
                },
            },
            I::Onbuild(it) => return self.onbuild(&it.instruction),
            I::Shell(it) => Instruction::Shell(texts(&it.arguments)),
            I::Maintainer(it) => Instruction::Maintainer(it.name.value.to_string()),
            _ => return Err(Problem::Syntax("this instruction is not known".into())),
        };
        Ok((converted, None))
    }

    fn copy(
        &self,
        options: &[crates::Flag<'_>],
        sources: &[Source<'_>],
        dest: &str,
    ) -> Result<Copy, Problem> {
        let source = |source: &Source<'_>| match source {
            Source::Path(path) => Ok(CopySource::Path(path.value.to_string())),
            Source::HereDoc(document) => Ok(CopySource::Document {
                // The line that ends it has its name.
                name: self
                    .line_at(document.span.end)
                    .trim_matches('\t')
                    .to_owned(),
                text: document.value.to_string(),
                expand: document.expand,
            }),
            _ => Err(Problem::Syntax("a source is not understood".into())),
        };
        Ok(Copy {
            flags: flags(options),
            sources: sources.iter().map(source).collect::<Result<_, _>>()?,
            dest: dest.to_owned(),
        })
    }

    fn line_at(&self, at: usize) -> &str {
        let rest = self.part.get(at..).unwrap_or_default();
        rest.lines().next().unwrap_or_default()
    }

    fn command(&self, command: &crates::Command<'_>) -> Command {
        match command {
            crates::Command::Exec(list) => Command::Exec(texts(&list.value)),
            crates::Command::Shell(text) => {
                let (joined, _) = logical_line(self.part, text.span.start, self.escape);
                Command::Shell(joined.trim().to_owned())
            }
            _ => Command::Exec(Vec::new()),
        }
    }

    fn run(&self, run: &crates::RunInstruction<'_>) -> Converted {
        let flags = flags(&run.options);
        let line = match &run.arguments {
            // The parser has taken the marker of a document in the first place for itself.
            crates::Command::Shell(text) if !run.here_docs.is_empty() => {
                let start = run
                    .options
                    .last()
                    .map_or(run.run.span.end, |last| last.span().end);
                let (joined, _) = logical_line(self.part, start.min(text.span.start), self.escape);
                joined.trim().to_owned()
            }
            arguments => match self.command(arguments) {
                Command::Shell(line) => line,
                command => return Ok((Instruction::Run { flags, command }, None)),
            },
        };
        let markers = heredoc::markers(&line);
        if markers.is_empty() {
            if line.is_empty() {
                return Err(Problem::Syntax("RUN needs a command".into()));
            }
            let command = Command::Shell(line);
            return Ok((Instruction::Run { flags, command }, None));
        }
        let (command, next) = heredoc::command(&line, &markers, self.part, self.end)?;
        Ok((Instruction::Run { flags, command }, Some(next)))
    }

    fn onbuild(&self, inner: &crates::Instruction<'_>) -> Converted {
        let kept = match inner {
            crates::Instruction::From(_)
            | crates::Instruction::Maintainer(_)
            | crates::Instruction::Onbuild(_) => None,
            _ => Some(keyword(inner).start),
        };
        let start = kept.ok_or_else(|| {
            Problem::Syntax("ONBUILD keeps no FROM, no MAINTAINER and no ONBUILD".into())
        })?;
        let (text, _) = logical_line(self.part, start, self.escape);
        let has_documents = !heredoc::markers(&text).is_empty();
        if has_documents {
            return Err(Problem::Syntax("ONBUILD keeps no here-documents".into()));
        }
        Ok((Instruction::Onbuild(text.trim().to_owned()), None))
    }
}

fn flags(options: &[crates::Flag<'_>]) -> Vec<Flag> {
    let flag = |flag: &crates::Flag<'_>| Flag {
        name: flag.name.value.to_string(),
        value: flag.value.as_ref().map(|value| value.value.to_string()),
    };
    options.iter().map(flag).collect()
}

fn texts(list: &[crates::UnescapedString<'_>]) -> Vec<String> {
    list.iter().map(|text| text.value.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(text: &str) -> Vec<Step> {
        parse(text).unwrap().steps
    }

    #[test]
    fn lines_are_joined_and_comments_go() {
        let text = "# syntax=docker/dockerfile:1\nFROM scratch AS one\nRUN a && \\\n  # no\n\n  b\n\
                    COPY x \\\n y\n";
        let steps = steps(text);
        let lines: Vec<_> = steps.iter().map(|step| step.line).collect();
        assert_eq!(lines, [2, 3, 7]);
        let Instruction::Run { command, .. } = &steps[1].instruction else {
            panic!("{steps:?}");
        };
        assert_eq!(command, &Command::Shell("a &&   b".into()));
        assert_eq!(steps[1].text, "RUN a &&   b");
    }

    #[test]
    fn here_documents_of_run() {
        let text = "FROM scratch\nRUN cat <<EOF >/x && cat <<-'B' >/y\nin $a\nEOF\n\t\tb\n\tB\n\
                    RUN <<EOF\necho 1\necho 2\nEOF\nRUN <<PY python3\nprint()\nPY\n\
                    RUN <<S\n#!/bin/x\ny\nS\nUSER u\n";
        let steps = steps(text);
        let commands: Vec<_> = steps
            .iter()
            .filter_map(|step| match &step.instruction {
                Instruction::Run { command, .. } => Some(command.clone()),
                _ => None,
            })
            .collect();
        let shell = |text: &str| Command::Shell(text.into());
        assert_eq!(
            commands,
            [
                shell("cat <<EOF >/x && cat <<-'B' >/y\nin $a\nEOF\n\t\tb\n\tB\n"),
                shell("echo 1\necho 2\n"),
                shell("<<PY python3\nprint()\nPY\n"),
                Command::Script {
                    name: "S".into(),
                    text: "#!/bin/x\ny\n".into()
                },
            ]
        );
        let lines: Vec<_> = steps.iter().map(|step| step.line).collect();
        assert_eq!(lines, [1, 2, 7, 11, 14, 18]);
    }

    #[test]
    fn here_documents_of_copy_have_names() {
        let steps = steps("FROM scratch\nCOPY <<a <<-\"b\" /to/\n$x\na\n\t$1\n\tb\nUSER u\n");
        let Instruction::Copy(copy) = &steps[1].instruction else {
            panic!("{steps:?}");
        };
        let document = |name: &str, text: &str, expand| CopySource::Document {
            name: name.into(),
            text: text.into(),
            expand,
        };
        let wanted = [document("a", "$x\n", true), document("b", "$1\n", false)];
        assert_eq!(copy.sources, wanted);
        assert!(
            matches!(&steps.last().unwrap().instruction, Instruction::User(user) if user == "u")
        );
    }

    #[test]
    fn errors_have_the_line() {
        for (text, line) in [
            ("FROM scratch\n\nNONSENSE x\n", 3),
            ("RUN x\nFROM scratch\n", 1),
            ("FROM scratch\nRUN <<EOF\nx\n", 3),
            ("FROM scratch\nRUN cat <<EOF\nx\nEOF\n\nBAD\n", 6),
            ("FROM scratch\nCOPY x\n", 2),
            ("FROM scratch AS a\nFROM scratch AS A\n", 2),
            ("FROM scratch\nONBUILD FROM x\n", 2),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.line(), Some(line), "{text:?}: {error}");
        }
        assert!(parse("").is_err());
        assert!(parse("ARG a\n").is_err());
    }

    #[test]
    fn another_escape_character() {
        let steps = steps("# escape=`\nFROM scratch\nRUN a `\n b\\\nUSER u\n");
        assert_eq!(steps[1].text, "RUN a  b\\");
        assert_eq!(steps.len(), 3);
    }

    #[test]
    fn onbuild_keeps_text() {
        let steps = steps("FROM scratch\nONBUILD RUN a \\\n b\nONBUILD COPY . /x\n");
        let kept: Vec<_> = steps
            .iter()
            .filter_map(|step| match &step.instruction {
                Instruction::Onbuild(text) => Some(text.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(kept, ["RUN a  b", "COPY . /x"]);
        assert!(parse_trigger("RUN x").is_ok());
        assert!(parse_trigger("FROM x").is_err());
        assert!(parse_trigger("RUN x\nRUN y").is_err());
    }
}
