//! Lists for people: columns as wide as they need, no lines.

/// Prints rows under a header.
///
/// # Errors
/// When standard output cannot be written.
pub fn print(header: &[&str], rows: &[Vec<String>]) -> anyhow::Result<()> {
    super::out::print(text(header, rows))
}

/// Rows under a header.
pub fn text(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells
            .chain(header.get(column).map(|name| name.len()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(header.to_vec());
    for row in rows {
        text += &line(row.iter().map(String::as_str).collect());
    }
    text
}

/// A size for people: three digits or so, and a unit of powers of 1000.
#[allow(clippy::cast_precision_loss)]
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            let digits = usize::from(value < 10.0 && unit != "B");
            return format!("{value:.digits$} {unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// How long ago something was, in its largest unit.
pub fn ago(since: u64) -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let seconds = now.saturating_sub(since);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_for_people() {
        let shown = [0, 999, 1000, 12_345, 123_456_789, 5_000_000_000_000].map(super::size);
        assert_eq!(
            shown,
            ["0 B", "999 B", "1.0 kB", "12 kB", "123 MB", "5.0 TB"]
        );
    }
}
