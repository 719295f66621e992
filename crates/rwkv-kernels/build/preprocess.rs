//! Composes a kernel from WGSL files: a line-by-line textual preprocessor.
//!
//! - `#import PATH` puts the file `PATH.wgsl` here, once a composition.
//! - `#import PATH as NAME` puts a copy of it here, with all that it imports: what the copy declares has `NAME_` in front,
//!   and its bindings of group 1 are in group 2. So a kernel reads matrices of two formats.
//! - `#ifdef NAME`, `#ifndef NAME`, `#else`, `#endif` keep or drop lines.
//! - `$NAME` is replaced by the definition's value, in imports too.
//! - `#define NAME VALUE` sets a definition for the lines that follow, also in the files that import this one.
//! - `#repeat NAME COUNT`, `#endrepeat` put the lines between here COUNT times, with NAME defined as 0, 1, ….
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
    definitions: &'a Definitions,
}

/// What `$NAME` stands for.
type Definitions = BTreeMap<String, String>;

impl<'a> Composer<'a> {
    /// A composer over `files` with `definitions`.
    pub(crate) fn new(files: &'a BTreeMap<String, String>, definitions: &'a Definitions) -> Self {
        Self { files, definitions }
    }

    /// The file `name` with everything it imports.
    pub(crate) fn compose(&self, name: &str) -> Result<String, ComposeError> {
        let mut out = String::new();
        let mut definitions = self.definitions.clone();
        self.file(name, &mut definitions, &mut BTreeSet::new(), &mut out)?;
        Ok(out)
    }

    fn file(
        &self,
        name: &str,
        definitions: &mut Definitions,
        imported: &mut BTreeSet<String>,
        out: &mut String,
    ) -> Result<(), ComposeError> {
        let text = self.files.get(name).ok_or_else(|| ComposeError {
            file: name.to_owned(),
            line: 0,
            problem: "no such file".to_owned(),
        })?;
        imported.insert(name.to_owned());
        let lines: Vec<_> = (1..).zip(text.lines()).collect();
        self.lines(name, &lines, definitions, imported, out)
    }

    /// Numbered lines of the file `name`: all of them, or those that are repeated.
    fn lines(
        &self,
        name: &str,
        lines: &[(usize, &str)],
        definitions: &mut Definitions,
        imported: &mut BTreeSet<String>,
        out: &mut String,
    ) -> Result<(), ComposeError> {
        let error = |line: usize, problem: String| ComposeError {
            file: name.to_owned(),
            line,
            problem,
        };
        // One entry an open condition: whether its lines are kept, and whether `#else` was seen.
        let mut open: Vec<(bool, bool)> = Vec::new();
        let mut at = 0;
        while let Some(&(number, line)) = lines.get(at) {
            at += 1;
            let (directive, argument) = directive(line);
            match directive {
                "ifdef" | "ifndef" => {
                    // A comment or a second name would make a name that is never defined.
                    if argument.is_empty() || argument.contains(|c: char| c.is_whitespace()) {
                        let problem = format!("#{directive} needs one name, not `{argument}`");
                        return Err(error(number, problem));
                    }
                    open.push((
                        definitions.contains_key(argument) == (directive == "ifdef"),
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
                    let text = substitute(argument, definitions).map_err(|p| error(number, p))?;
                    let (path, copy) = match text.split_once(" as ") {
                        Some((path, copy)) => (path.trim(), Some(copy.trim())),
                        None => (&*text, None),
                    };
                    if !self.files.contains_key(path) {
                        return Err(error(number, format!("unknown import `{path}`")));
                    }
                    if let Some(copy) = copy {
                        let mut text = String::new();
                        let (mut defined, mut imports) = (definitions.clone(), BTreeSet::new());
                        self.file(path, &mut defined, &mut imports, &mut text)?;
                        out.push_str(&renamed(&text, copy));
                    } else if !imported.contains(path) {
                        self.file(path, definitions, imported, out)?;
                    }
                }
                "define" => {
                    let text = substitute(argument, definitions).map_err(|p| error(number, p))?;
                    let (variable, value) = text.split_once(' ').ok_or_else(|| {
                        let problem = format!("#define needs a name and a value, not `{text}`");
                        error(number, problem)
                    })?;
                    definitions.insert(variable.to_owned(), value.trim().to_owned());
                }
                "repeat" => {
                    let rest = lines.get(at..).unwrap_or_default();
                    let repeated = repeated(rest)
                        .ok_or_else(|| error(number, "#repeat without #endrepeat".to_owned()))?;
                    let (variable, count) =
                        counter(argument, definitions).map_err(|p| error(number, p))?;
                    for turn in 0..count {
                        definitions.insert(variable.clone(), turn.to_string());
                        self.lines(name, repeated, definitions, imported, out)?;
                    }
                    definitions.remove(&variable);
                    at += repeated.len() + 1;
                }
                "endrepeat" => {
                    return Err(error(number, "#endrepeat without #repeat".to_owned()));
                }
                "" => {
                    out.push_str(&substitute(line, definitions).map_err(|p| error(number, p))?);
                    out.push('\n');
                }
                other => return Err(error(number, format!("unknown directive #{other}"))),
            }
        }
        if open.is_empty() {
            Ok(())
        } else {
            Err(error(
                lines.last().map_or(0, |(number, _)| *number),
                "#ifdef without #endif".to_owned(),
            ))
        }
    }
}

/// `text` with `prefix` in front of the names that it declares, also where they are members', and its bindings of group 1
/// in group 2.
fn renamed(text: &str, prefix: &str) -> String {
    let names: BTreeSet<&str> = text.lines().filter_map(declared).collect();
    let in_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut out = String::new();
    for line in text.lines() {
        let (code, comment) = line.split_at(line.find("//").unwrap_or(line.len()));
        let code = code.replace("@group(1)", "@group(2)");
        let mut rest = code.as_str();
        while let Some(c) = rest.chars().next() {
            let end = if in_word(c) {
                rest.find(|c| !in_word(c)).unwrap_or(rest.len())
            } else {
                c.len_utf8()
            };
            let (word, after) = rest.split_at(end);
            if names.contains(word) {
                out.push_str(prefix);
                out.push('_');
            }
            out.push_str(word);
            rest = after;
        }
        out.push_str(comment);
        out.push('\n');
    }
    out
}

/// The name that a line declares for the whole module: such lines are not indented.
fn declared(line: &str) -> Option<&str> {
    let mut line = line;
    while line.starts_with('@') {
        line = line.split_once(") ").map_or("", |(_, rest)| rest);
    }
    let rest = match line.strip_prefix("var") {
        Some(variable) => variable
            .split_once("> ")
            .map_or(variable.trim_start(), |(_, rest)| rest),
        None => ["fn ", "struct ", "const ", "override ", "alias "]
            .iter()
            .find_map(|keyword| line.strip_prefix(keyword))?,
    };
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    Some(rest.split_at(end.unwrap_or(rest.len())).0)
}

/// The directive of a line, or nothing, and its argument.
fn directive(line: &str) -> (&str, &str) {
    match line.trim().strip_prefix('#') {
        Some(rest) => rest
            .split_once(' ')
            .map_or((rest, ""), |(d, a)| (d, a.trim())),
        None => ("", ""),
    }
}

/// Of the lines after a `#repeat` those that it repeats.
fn repeated<'l, 't>(lines: &'l [(usize, &'t str)]) -> Option<&'l [(usize, &'t str)]> {
    let mut depth = 1;
    let end = lines.iter().position(|(_, line)| {
        match directive(line).0 {
            "repeat" => depth += 1,
            "endrepeat" => depth -= 1,
            _ => {}
        }
        depth == 0
    })?;
    lines.get(..end)
}

/// What a `#repeat` counts in, and how far.
fn counter(argument: &str, definitions: &Definitions) -> Result<(String, usize), String> {
    let argument = substitute(argument, definitions)?;
    argument
        .split_once(' ')
        .and_then(|(variable, count)| Some((variable.to_owned(), count.trim().parse().ok()?)))
        .ok_or_else(|| format!("#repeat needs a name and a count, not `{argument}`"))
}

fn substitute(line: &str, definitions: &Definitions) -> Result<String, String> {
    let mut pieces = line.split('$');
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let end = piece
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(piece.len());
        let (name, rest) = piece.split_at(end);
        let value = definitions
            .get(name)
            .ok_or_else(|| format!("`${name}` is not defined"))?;
        out.push_str(value);
        out.push_str(rest);
    }
    Ok(out)
}
