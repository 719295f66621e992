//! Choosing and opening adapters.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use rwkv_gpu::{
    Error, Gpu, Hidden, Kind, OpenOptions, Requirement, Selector, Shader, list_adapters,
};
use support::{check_usable, open, shader};

#[test]
fn by_index_and_name() {
    let adapters = list_adapters();
    assert!(!adapters.is_empty(), "these tests need a GPU adapter");
    for (place, adapter) in adapters.iter().enumerate() {
        assert_eq!(adapter.index, place);
        if adapter.refused.is_some() {
            continue;
        }
        let gpu = Gpu::open(&Selector::Index(place), &OpenOptions::default()).unwrap();
        assert_eq!((gpu.name(), gpu.kind()), (&*adapter.name, adapter.kind));
        assert_eq!(gpu.capabilities(), &adapter.capabilities);
        check_usable(&gpu);
        let part = adapter
            .name
            .chars()
            .take(6)
            .collect::<String>()
            .to_uppercase();
        let gpu = Gpu::open(&Selector::Name(part.clone()), &OpenOptions::default()).unwrap();
        assert!(gpu.name().to_uppercase().contains(&part));
    }
    // The best kind comes first.
    assert!(adapters.is_sorted_by_key(|a| a.kind));
}

#[test]
fn auto_never_takes_a_software_adapter() {
    let hardware = list_adapters()
        .iter()
        .any(|a| a.kind != Kind::Software && a.refused.is_none());
    match Gpu::open(&Selector::Auto, &OpenOptions::default()) {
        Ok(gpu) => {
            assert!(hardware);
            assert_ne!(gpu.kind(), Kind::Software);
        }
        Err(e) => {
            assert!(!hardware, "{e}");
            check_refusals(e, "auto");
        }
    }
}

#[test]
fn no_such_adapter() {
    for selector in [
        Selector::Index(1000),
        Selector::Index(usize::MAX),
        Selector::Name("no such GPU".to_owned()),
        Selector::Name("ünïcödé\n".to_owned()),
    ] {
        let error = Gpu::open(&selector, &OpenOptions::default()).unwrap_err();
        check_refusals(error, &selector.to_string());
    }
}

/// One line, with a reason for each adapter.
#[track_caller]
fn check_refusals(error: Error, selector: &str) {
    let line = error.to_string();
    assert!(!line.contains('\n'), "{line:?}");
    let Error::NoAdapter { wanted, refused } = error else {
        panic!("{line}");
    };
    assert_eq!(wanted, selector);
    let names: Vec<_> = list_adapters().into_iter().map(|a| a.name).collect();
    let given: Vec<_> = refused.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(given, names);
    for (name, reason) in &refused {
        assert!(!reason.is_empty());
        assert!(line.contains(&format!("{name}: {reason}")), "{line}");
    }
}

static SUBGROUP: Shader = shader("needs-subgroups", "", &[Requirement::Subgroup]);
static F16: Shader = shader("needs-f16", "", &[Requirement::F16]);
static MATRIX: Shader = shader("needs-matrices", "", &[Requirement::CooperativeMatrix]);

#[test]
fn hidden_features_are_absent() {
    let hidden: Hidden = "subgroup,f16,coop".parse().unwrap();
    let gpu = open(&OpenOptions {
        hidden,
        checks: false,
        ..OpenOptions::default()
    });
    let have = gpu.capabilities();
    assert_eq!((have.subgroups, have.f16), (None, false));
    assert!(have.cooperative_matrices.is_empty());
    // The device does not have them either, so no shader can use them by mistake.
    let enabled = gpu.device().features();
    assert!(!enabled.intersects(wgpu::Features::SUBGROUP | wgpu::Features::SHADER_F16));
    for shader in [&SUBGROUP, &F16, &MATRIX] {
        let error = gpu.pipeline(shader, &[]).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        let line = error.to_string();
        assert!(
            line.contains(shader.name) && line.contains(gpu.name()),
            "{line}"
        );
    }
    check_usable(&gpu);
    // The rest is untouched, and what was hidden comes from the adapter.
    let whole = open(&OpenOptions::default());
    assert_eq!(have.limits, whole.capabilities().limits);
    assert_eq!(have.timestamps, whole.capabilities().timestamps);
    let only = open(&OpenOptions {
        hidden: "f16".parse().unwrap(),
        checks: true,
        ..OpenOptions::default()
    });
    assert_eq!(
        only.capabilities().subgroups,
        whole.capabilities().subgroups
    );
    assert!(only.checks());
    let mended = open(&OpenOptions {
        hidden: "subnormal-halves".parse().unwrap(),
        ..OpenOptions::default()
    });
    assert!(!mended.keeps_subnormal_halves());
}

/// Where the tests run they are: a probe that finds nothing would leave every scale to be mended.
#[test]
fn subnormal_halves_are_kept() {
    assert!(open(&OpenOptions::default()).keeps_subnormal_halves());
}

/// The environment is read by a process of its own: this file's `print_options`, run with it set.
#[test]
fn options_from_the_environment() {
    #[track_caller]
    fn check(hide: &str, checks: &str, want: &str) {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "print_options", "--ignored", "--nocapture"])
            .envs([("RWKV_HIDE", hide), ("RWKV_CHECKS", checks)])
            .output()
            .unwrap();
        let out = String::from_utf8(child.stdout).unwrap();
        assert!(out.contains(want), "{out}");
    }
    check("", "1", "subgroup false, f16 false, checks true");
    check("subgroup", "0", "subgroup true, f16 false, checks false");
    check(
        " f16,subgroup ",
        "1",
        "subgroup true, f16 true, checks true",
    );
    check(
        "warp",
        "1",
        "`warp` in RWKV_HIDE: `warp` is none of subgroup, f16, coop, float-atomics, subnormal-halves",
    );
    check("", "yes", "`yes` in RWKV_CHECKS: expected 0 or 1");
}

#[test]
#[ignore = "run by options_from_the_environment"]
fn print_options() {
    match OpenOptions::from_env() {
        Ok(o) => println!(
            "subgroup {}, f16 {}, checks {}",
            o.hidden.subgroup, o.hidden.f16, o.checks
        ),
        Err(e) => println!("{e}"),
    }
}
