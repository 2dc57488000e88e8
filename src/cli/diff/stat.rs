//! `lamina diff --stat`.

use super::{is_different, letter};
use crate::attr::Kind;
use crate::cli::{out, table};
use crate::union::{Change, ChangeKind, Side, Union};

/// Prints sizes before and after.
pub fn print(union: &Union, changes: &[Change]) -> anyhow::Result<()> {
    let mut text = Vec::new();
    let mut counts = [0u64; 3];
    let (mut more, mut less) = (0, 0);
    for change in changes {
        if !is_different(union, change)? {
            continue;
        }
        let (was, now) = (size(change.was.as_ref()), size(change.now.as_ref()));
        let (old, new) = (was.unwrap_or(0), now.unwrap_or(0));
        more += new.saturating_sub(old);
        less += old.saturating_sub(new);
        let kind = change.kind();
        if let Some(count) = counts.get_mut(kind as usize) {
            *count += 1;
        }
        let sizes = match (was, now) {
            (Some(was), Some(now)) => format!("{} -> {}", table::size(was), table::size(now)),
            (None, Some(now)) => format!("+{}", table::size(now)),
            (Some(was), None) => format!("-{}", table::size(was)),
            (None, None) => String::new(),
        };
        text.extend_from_slice(format!("{} {sizes:>20}  ", letter(kind)).as_bytes());
        text.extend_from_slice(&change.path);
        text.push(b'\n');
    }
    let words = [
        (ChangeKind::Added, "added"),
        (ChangeKind::Changed, "changed"),
        (ChangeKind::Deleted, "deleted"),
    ];
    let told: Vec<_> = words
        .iter()
        .filter_map(|(kind, word)| {
            let count = *counts.get(*kind as usize)?;
            (count > 0).then(|| format!("{count} {word}"))
        })
        .collect();
    if !told.is_empty() {
        let (more, less) = (table::size(more), table::size(less));
        let sum = format!("{}, +{more}, -{less}\n", told.join(", "));
        text.extend_from_slice(sum.as_bytes());
    }
    out::print(text)
}

/// The size of what has contents. What is in a deleted directory is not counted: that would take time
/// by the size of the image.
fn size(side: Option<&Side>) -> Option<u64> {
    side.filter(|side| matches!(side.kind(), Kind::File | Kind::Symlink))
        .map(|side| side.attr.size)
}
