//! Composes a kernel from WGSL files: a line-by-line textual preprocessor.
//!
//! - `#import PATH` puts the file `PATH.wgsl` here, once a composition.
//! - `#ifdef NAME`, `#ifndef NAME`, `#else`, `#endif` keep or drop lines.
//! - `$NAME` is replaced by the definition's value, in imports too.
//!
//! vello's shader preprocessor is the model.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// A composition that failed: where, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ComposeError {
    file: String,
    line: usize,
    problem: String,
}

impl fmt::Display for ComposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.wgsl:{}: {}", self.file, self.line, self.problem)
    }
}

impl std::error::Error for ComposeError {}

/// The files to import from, by path without `.wgsl`, and the definitions.
pub(crate) struct Composer<'a> {
    files: &'a BTreeMap<String, String>,
    definitions: &'a BTreeMap<String, String>,
}

impl<'a> Composer<'a> {
    /// A composer over `files` with `definitions`.
    pub(crate) fn new(
        files: &'a BTreeMap<String, String>,
        definitions: &'a BTreeMap<String, String>,
    ) -> Self {
        Self { files, definitions }
    }

    /// The file `name` with everything it imports.
    pub(crate) fn compose(&self, name: &str) -> Result<String, ComposeError> {
        let mut out = String::new();
        self.file(name, &mut BTreeSet::new(), &mut out)?;
        Ok(out)
    }

    fn file(
        &self,
        name: &str,
        imported: &mut BTreeSet<String>,
        out: &mut String,
    ) -> Result<(), ComposeError> {
        let error = |line: usize, problem: String| ComposeError {
            file: name.to_owned(),
            line,
            problem,
        };
        let text = self
            .files
            .get(name)
            .ok_or_else(|| error(0, "no such file".to_owned()))?;
        imported.insert(name.to_owned());
        // One entry an open condition: whether its lines are kept, and whether `#else` was seen.
        let mut open: Vec<(bool, bool)> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let (directive, argument) = match line.trim().strip_prefix('#') {
                Some(rest) => rest
                    .split_once(' ')
                    .map_or((rest, ""), |(d, a)| (d, a.trim())),
                None => ("", ""),
            };
            match directive {
                "ifdef" | "ifndef" => {
                    // A comment or a second name would make a name that is never defined.
                    if argument.is_empty() || argument.contains(|c: char| c.is_whitespace()) {
                        let problem = format!("#{directive} needs one name, not `{argument}`");
                        return Err(error(number, problem));
                    }
                    open.push((
                        self.definitions.contains_key(argument) == (directive == "ifdef"),
                        false,
                    ));
                }
                "else" => match open.last_mut() {
                    Some((kept, seen @ false)) => (*kept, *seen) = (!*kept, true),
                    _ => return Err(error(number, "#else without #ifdef".to_owned())),
                },
                "endif" => {
                    open.pop()
                        .ok_or_else(|| error(number, "#endif without #ifdef".to_owned()))?;
                }
                _ if open.iter().any(|(kept, _)| !kept) => {}
                "import" => {
                    let path = self.substitute(argument).map_err(|p| error(number, p))?;
                    if !self.files.contains_key(&path) {
                        return Err(error(number, format!("unknown import `{path}`")));
                    }
                    if !imported.contains(&path) {
                        self.file(&path, imported, out)?;
                    }
                }
                "" => {
                    out.push_str(&self.substitute(line).map_err(|p| error(number, p))?);
                    out.push('\n');
                }
                other => return Err(error(number, format!("unknown directive #{other}"))),
            }
        }
        if open.is_empty() {
            Ok(())
        } else {
            Err(error(
                text.lines().count(),
                "#ifdef without #endif".to_owned(),
            ))
        }
    }

    fn substitute(&self, line: &str) -> Result<String, String> {
        let mut pieces = line.split('$');
        let mut out = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let end = piece
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .unwrap_or(piece.len());
            let (name, rest) = piece.split_at(end);
            let value = self
                .definitions
                .get(name)
                .ok_or_else(|| format!("`${name}` is not defined"))?;
            out.push_str(value);
            out.push_str(rest);
        }
        Ok(out)
    }
}
