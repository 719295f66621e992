//! Composes every kernel variant, validates it with naga, reflects it, and writes the table that `src/shaders.rs`
//! includes. An unknown import or an invalid shader fails the build.

mod manifest;
mod preprocess;
mod reflect;

use manifest::Manifest;
use preprocess::Composer;
use std::{collections::BTreeMap, env, error::Error, fmt::Write, fs, path::Path};

fn main() {
    if let Err(error) = generate() {
        // Printed as text: naga's messages point at the line.
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn generate() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=wgsl");
    println!("cargo::rerun-if-changed=build");
    let mut files = BTreeMap::new();
    read_folder(Path::new("wgsl"), "", &mut files)?;
    let manifest: Manifest = toml::from_str(&fs::read_to_string("wgsl/manifest.toml")?)?;
    let out = env::var("OUT_DIR")?;
    let mut rows = BTreeMap::new();
    let mut hash = crc32fast::Hasher::new();
    for kernel in &manifest.kernel {
        for variant in kernel.variants() {
            let source = Composer::new(&files, &variant.definitions)
                .compose(&kernel.name)
                .map_err(|e| format!("kernel {}: {e}", variant.name))?;
            let reflection = reflect::reflect(&source)
                .map_err(|e| format!("kernel {} is not valid: {e}", variant.name))?;
            let file = format!("{}.wgsl", variant.name.replace('/', "-"));
            hash.update(variant.name.as_bytes());
            hash.update(source.as_bytes());
            fs::write(Path::new(&out).join(&file), source)?;
            rows.insert(
                variant.name.clone(),
                row(&variant.name, &file, &kernel.backends, &reflection)?,
            );
        }
    }
    let rows: String = rows.into_values().collect();
    fs::write(Path::new(&out).join("shaders.rs"), format!("&[\n{rows}]\n"))?;
    let hash = format!("{:08x}", hash.finalize());
    fs::write(Path::new(&out).join("kernels.hash"), hash)?;
    Ok(())
}

/// One `Variant` of the generated table.
fn row(
    name: &str,
    file: &str,
    backends: &[String],
    reflection: &reflect::Reflection,
) -> Result<String, std::fmt::Error> {
    let mut row = String::new();
    writeln!(
        row,
        "Variant {{ backends: &{backends:?}, shader: Shader {{ name: {name:?},"
    )?;
    writeln!(
        row,
        "source: include_str!(concat!(env!(\"OUT_DIR\"), \"/{file}\")),"
    )?;
    writeln!(row, "bindings: &[")?;
    for b in &reflection.bindings {
        writeln!(
            row,
            "ShaderBinding {{ group: {}, binding: {}, access: Access::{}, name: {:?} }},",
            b.group, b.slot, b.access, b.name
        )?;
    }
    writeln!(
        row,
        "], workgroup_size: {:?}, workgroup_bytes: {},",
        reflection.workgroup_size, reflection.workgroup_bytes
    )?;
    let requires: Vec<_> = reflection
        .requires
        .iter()
        .map(|r| format!("Requirement::{r}"))
        .collect();
    writeln!(
        row,
        "overrides: &{:?}, requires: &[{}] }} }},",
        reflection.overrides,
        requires.join(", ")
    )?;
    Ok(row)
}

/// Every `.wgsl` file below `folder`, by its path without the ending.
fn read_folder(
    folder: &Path,
    prefix: &str,
    files: &mut BTreeMap<String, String>,
) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            read_folder(&entry.path(), &format!("{prefix}{name}/"), files)?;
        } else if let Some(stem) = name.strip_suffix(".wgsl") {
            files.insert(format!("{prefix}{stem}"), fs::read_to_string(entry.path())?);
        }
    }
    Ok(())
}
