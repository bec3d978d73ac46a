//! The text format of Prometheus: families with help and type, samples with labels.

use std::fmt::Write;

/// A page that is being written.
#[derive(Default)]
pub struct Page {
    text: String,
}

/// One metric of a page. Its head is written with its first sample: a metric without samples does not appear.
pub struct Family<'p> {
    page: &'p mut Page,
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    is_begun: bool,
}

impl Page {
    /// A value that goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> Family<'_> {
        Family { page: self, name, kind: "gauge", help, is_begun: false }
    }

    /// A value that only grows until the process starts anew; its name ends in `_total`.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> Family<'_> {
        Family { page: self, name, kind: "counter", help, is_begun: false }
    }

    pub fn into_text(self) -> String {
        self.text
    }
}

impl Family<'_> {
    /// A sample without labels; `None` and what is no number are left out.
    pub fn is(self, value: impl Into<Option<f64>>) -> Self {
        self.with(&[], value)
    }

    pub fn with(mut self, labels: &[(&str, &str)], value: impl Into<Option<f64>>) -> Self {
        let Some(value) = value.into().filter(|value| value.is_finite()) else { return self };
        let text = &mut self.page.text;
        // Writing to a string cannot fail.
        if !self.is_begun {
            let _ = writeln!(text, "# HELP {} {}\n# TYPE {} {}", self.name, self.help, self.name, self.kind);
            self.is_begun = true;
        }
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(text, "{}{labels} {value}", self.name);
        self
    }
}

/// A label's value: backslash, quote and line feed are written with a backslash.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_empty_families_do_not_appear() {
        let mut page = Page::default();
        page.gauge("a", "First.").with(&[("part", "q\"uo\\te\nd"), ("n", "1")], 0.25).is(2.0);
        page.gauge("b", "Never seen.").is(None).is(f64::NAN);
        page.counter("c_total", "Large.").is(12_345_678_901.0);
        insta::assert_snapshot!(page.into_text(), @r#"
        # HELP a First.
        # TYPE a gauge
        a{part="q\"uo\\te\nd",n="1"} 0.25
        a 2
        # HELP c_total Large.
        # TYPE c_total counter
        c_total 12345678901
        "#);
    }
}
