//! How quantities and tables read: durations, percentages, large counts, columns.

use std::path::Path;

use chrono::{DateTime, Utc};

/// `0.4 s`, `42 s`, `3m 07s`, `2h 05m`, `3d 04h`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        _ if seconds < 10.0 => format!("{:.1} s", seconds.max(0.0)),
        0..=59 => format!("{whole} s"),
        60..=3599 => format!("{}m {:02}s", whole / 60, whole % 60),
        3600..=86_399 => format!("{}h {:02}m", whole / 3600, whole % 3600 / 60),
        _ => format!("{}d {:02}h", whole / 86_400, whole % 86_400 / 3600),
    }
}

pub fn seconds_since(at: DateTime<Utc>) -> f64 {
    (Utc::now() - at).num_milliseconds() as f64 / 1e3
}

/// `1.23 M`, `7.05 B`: parameters.
pub fn count(n: u64) -> String {
    let value = n as f64;
    match n {
        0..=9_999 => n.to_string(),
        10_000..=999_999 => format!("{:.1} k", value / 1e3),
        1_000_000..=999_999_999 => format!("{:.2} M", value / 1e6),
        _ => format!("{:.2} B", value / 1e9),
    }
}

/// A number with about five significant digits: perplexities.
pub fn figure(value: f64) -> String {
    let digits = 4usize.saturating_sub(value.abs().max(1.0).log10().floor() as usize);
    format!("{value:.digits$}")
}

pub fn percent(fraction: f64) -> String {
    format!("{:.0} %", (fraction * 100.0).clamp(0.0, 100.0))
}

/// The first line of a text, at most `most` characters.
pub fn brief(text: &str, most: usize) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= most {
        return line.to_owned();
    }
    let cut: String = line.chars().take(most.saturating_sub(1)).collect();
    cut.trim_end().to_owned() + "…"
}

/// A word for a shell: quoted when it needs to be.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@+~".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

pub fn shell_path(path: &Path) -> String {
    shell_word(&path.display().to_string())
}

/// Aligned columns, two spaces between, a header when it is not empty. Each line starts with `indent`.
pub fn columns(indent: &str, header: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    use comfy_table::{ContentArrangement, Table, presets};
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if !header.is_empty() {
        table.set_header(header);
    }
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| format!("{indent}{}", line.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_naturally() {
        let shown: Vec<String> = [0.04, 9.9, 59.4, 187.0, 7_500.0, 273_600.0].into_iter().map(duration).collect();
        assert_eq!(shown, ["0.0 s", "9.9 s", "59 s", "3m 07s", "2h 05m", "3d 04h"]);
        let shown: Vec<String> = [17, 20_480, 134_515_008, 30_532_122_624].into_iter().map(count).collect();
        assert_eq!(shown, ["17", "20.5 k", "134.52 M", "30.53 B"]);
        assert_eq!(
            (figure(4.56789), figure(15.1), figure(12_345.6)),
            ("4.5679".into(), "15.100".into(), "12346".into())
        );
        assert_eq!((percent(0.424), percent(1.7)), ("42 %".into(), "100 %".into()));
    }

    #[test]
    fn texts_are_cut_and_quoted_whole() {
        assert_eq!(brief("one line\nand more", 80), "one line");
        assert_eq!(brief("größere Dinge", 8), "größere…");
        assert_eq!((shell_word("a/b.json"), shell_word("it's")), ("a/b.json".into(), r"'it'\''s'".into()));
        let table =
            columns("  ", &["PART", "N"], &[vec!["long-name".into(), "1".into()], vec!["x".into(), "22".into()]]);
        assert_eq!(table, ["  PART       N", "  long-name  1", "  x          22"]);
    }
}
