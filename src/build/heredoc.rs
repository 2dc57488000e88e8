//! Here-documents of RUN, which may stand anywhere in its line.

use super::containerfile::Command;
use super::error::Problem;
use super::words;

/// The beginning of a here-document in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The line that ends it.
    name: String,
    /// Whether tabs before its lines go (`<<-`).
    strip_tabs: bool,
}

/// The markers in a command line: words that begin with `<<`, perhaps after a number.
pub fn markers(line: &str) -> Vec<Marker> {
    words::split(line, '\\')
        .iter()
        .filter_map(|word| marker(word))
        .collect()
}

fn marker(word: &str) -> Option<Marker> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit());
    let rest = rest.strip_prefix("<<")?;
    let (rest, strip_tabs) = match rest.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let name: String = rest
        .chars()
        .filter(|c| !matches!(c, '"' | '\'' | '\\'))
        .collect();
    (!name.is_empty() && !name.contains('<')).then_some(Marker { name, strip_tabs })
}

/// The command of a line with here-documents that begin at an offset, and where they end.
///
/// A document alone is a script: of the shell, or of what its first line names after `#!`. Otherwise
/// the shell gets the line and the documents as they are.
///
/// # Errors
/// When a document has no end.
pub fn command(
    line: &str,
    markers: &[Marker],
    text: &str,
    start: usize,
) -> Result<(Command, usize), Problem> {
    let mut end = start;
    let mut script = String::new();
    for marker in markers {
        loop {
            let rest = text.get(end..).unwrap_or_default();
            let Some(raw) = rest.split_inclusive('\n').next() else {
                let name = &marker.name;
                return Err(Problem::Syntax(format!(
                    "the here-document '{name}' has no end"
                )));
            };
            end += raw.len();
            let stripped = if marker.strip_tabs {
                raw.trim_start_matches('\t')
            } else {
                raw
            };
            if stripped.trim_end_matches(['\n', '\r']) == marker.name {
                break;
            }
            script.push_str(stripped);
        }
    }
    if let [only] = markers
        && words::split(line, '\\').len() == 1
    {
        let command = if script.starts_with("#!") {
            Command::Script {
                name: only.name.clone(),
                text: script,
            }
        } else {
            Command::Shell(script)
        };
        return Ok((command, end));
    }
    let documents = text.get(start..end).unwrap_or_default();
    Ok((Command::Shell(format!("{line}\n{documents}")), end))
}
