//! The preprocessor that composes kernels.

#[path = "../build/preprocess.rs"]
mod preprocess;

use preprocess::Composer;
use std::collections::BTreeMap;

#[test]
fn compositions() {
    // Composes `main` of these files with A defined as `one` and B as `two`.
    #[track_caller]
    fn check(files: &[(&str, &str)], want: Result<&str, &str>) {
        let table = |rows: &[(&str, &str)]| -> BTreeMap<String, String> {
            rows.iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                .collect()
        };
        let (files, definitions) = (table(files), table(&[("A", "one"), ("B", "two")]));
        let got = Composer::new(&files, &definitions).compose("main");
        let got = got.map_err(|e| e.to_string());
        assert_eq!(got, want.map(str::to_owned).map_err(str::to_owned));
    }
    // A row a composition: the files, and the text or the error.
    check(&[("main", "")], Ok(""));
    check(&[("main", "a\r\nb")], Ok("a\nb\n"));
    check(&[("other", "a")], Err("main.wgsl:0: no such file"));

    check(&[("main", "#import x\nb"), ("x", "a")], Ok("a\nb\n"));
    check(&[("main", "  #import   x  "), ("x", "a")], Ok("a\n"));
    check(&[("main", "#import x/$A\n"), ("x/one", "a")], Ok("a\n"));
    check(
        &[("main", "#import x\n#import x\nb"), ("x", "a")],
        Ok("a\nb\n"),
    );
    check(
        &[
            ("main", "#import x\n#import y\nc"),
            ("x", "#import y\nb"),
            ("y", "a"),
        ],
        Ok("a\nb\nc\n"),
    );
    // Cycles end: a file that is being imported is not imported again.
    check(&[("main", "#import main\na")], Ok("a\n"));
    check(
        &[
            ("main", "#import x\nc"),
            ("x", "#import y\nb"),
            ("y", "#import x\n#import main\na"),
        ],
        Ok("a\nb\nc\n"),
    );
    // A copy has names of its own, members too, and another group.
    check(
        &[
            ("main", "#import x\n#import x as of\nof_f(s);"),
            (
                "x",
                "#import y\n@group(1) @binding(0) var<storage, read> s: array<u32>;\nfn f(s: u32) {",
            ),
            ("y", "struct S {\n    s: u32, // s\n}\nconst K: u32 = 1u;"),
        ],
        Ok("struct S {\n    s: u32, // s\n}\nconst K: u32 = 1u;\n\
            @group(1) @binding(0) var<storage, read> s: array<u32>;\nfn f(s: u32) {\n\
            struct of_S {\n    of_s: u32, // s\n}\nconst of_K: u32 = 1u;\n\
            @group(2) @binding(0) var<storage, read> of_s: array<u32>;\nfn of_f(of_s: u32) {\n\
            of_f(s);\n"),
    );
    check(
        &[("main", "a\n#import nowhere")],
        Err("main.wgsl:2: unknown import `nowhere`"),
    );
    check(
        &[("main", "#import")],
        Err("main.wgsl:1: unknown import ``"),
    );
    check(
        &[("main", "#import x"), ("x", "\n#import z")],
        Err("x.wgsl:2: unknown import `z`"),
    );

    check(&[("main", "#ifdef A\na\n#endif")], Ok("a\n"));
    check(&[("main", "#ifdef C\na\n#endif\nb")], Ok("b\n"));
    check(&[("main", "#ifndef C\na\n#endif")], Ok("a\n"));
    check(&[("main", "#ifdef C\na\n#else\nb\n#endif")], Ok("b\n"));
    check(
        &[(
            "main",
            "#ifdef A\n#ifdef C\na\n#else\nb\n#endif\n#else\nc\n#endif",
        )],
        Ok("b\n"),
    );
    check(
        &[(
            "main",
            "#ifdef C\n#ifdef A\na\n#else\nb\n#endif\n#else\nc\n#endif",
        )],
        Ok("c\n"),
    );
    // Nothing is looked at in lines that are dropped, but conditions are counted.
    check(
        &[("main", "#ifdef C\n#import nowhere\n$NOPE\n#nope\n#endif\na")],
        Ok("a\n"),
    );
    check(
        &[("main", "#ifdef A\na")],
        Err("main.wgsl:2: #ifdef without #endif"),
    );
    check(
        &[("main", "#ifdef C\n#ifdef A\n#endif")],
        Err("main.wgsl:3: #ifdef without #endif"),
    );
    check(
        &[("main", "a\n#endif")],
        Err("main.wgsl:2: #endif without #ifdef"),
    );
    check(
        &[("main", "#else\n")],
        Err("main.wgsl:1: #else without #ifdef"),
    );
    check(
        &[("main", "#ifdef A\n#else\n#else\n#endif")],
        Err("main.wgsl:3: #else without #ifdef"),
    );
    // A condition does not reach into the file that imports.
    check(
        &[("main", "#import x\n#endif"), ("x", "#ifdef A")],
        Err("x.wgsl:1: #ifdef without #endif"),
    );
    check(
        &[("main", "#ifdef\n#endif")],
        Err("main.wgsl:1: #ifdef needs one name, not ``"),
    );
    check(
        &[("main", "#ifndef A // why\n#endif")],
        Err("main.wgsl:1: #ifndef needs one name, not `A // why`"),
    );

    check(&[("main", "#define C 3 + $A \n$C;")], Ok("3 + one;\n"));
    check(
        &[
            ("main", "#import x\n$C$D"),
            ("x", "#define C $A\n#define D 4"),
        ],
        Ok("one4\n"),
    );
    check(
        &[("main", "#define C")],
        Err("main.wgsl:1: #define needs a name and a value, not `C`"),
    );
    check(
        &[("main", "#ifdef X\n#define C 1\n#endif\n$C")],
        Err("main.wgsl:4: `$C` is not defined"),
    );
    check(
        &[("main", "#repeat i 3\na$i;\n#endrepeat\nb")],
        Ok("a0;\na1;\na2;\nb\n"),
    );
    check(&[("main", "#repeat i 0\n$NOPE\n#endrepeat\nb")], Ok("b\n"));
    check(
        &[(
            "main",
            "#define N 2\n#repeat i $N\n#repeat j 2\n$i$j\n#endrepeat\n#endrepeat",
        )],
        Ok("00\n01\n10\n11\n"),
    );
    // A repeated block has conditions of its own; what is dropped is not repeated.
    check(
        &[(
            "main",
            "#repeat i 2\n#ifdef C\na\n#else\nb\n#endif\n#endrepeat",
        )],
        Ok("b\nb\n"),
    );
    check(
        &[("main", "#ifdef C\n#repeat i 2\na\n#endrepeat\n#endif\nb")],
        Ok("b\n"),
    );
    check(
        &[("main", "#repeat i 2\n#endrepeat\n$i")],
        Err("main.wgsl:3: `$i` is not defined"),
    );
    check(
        &[("main", "a\n#repeat i 2\n#repeat j 2\n#endrepeat")],
        Err("main.wgsl:2: #repeat without #endrepeat"),
    );
    check(
        &[("main", "a\n#endrepeat")],
        Err("main.wgsl:2: #endrepeat without #repeat"),
    );
    check(
        &[("main", "#repeat i x\n#endrepeat")],
        Err("main.wgsl:1: #repeat needs a name and a count, not `i x`"),
    );

    check(&[("main", "x$A+$B;")], Ok("xone+two;\n"));
    check(&[("main", "$A$B")], Ok("onetwo\n"));
    check(
        &[("main", "a\n$AB")],
        Err("main.wgsl:2: `$AB` is not defined"),
    );
    check(&[("main", "a $")], Err("main.wgsl:1: `$` is not defined"));
    check(
        &[("main", "#import $C")],
        Err("main.wgsl:1: `$C` is not defined"),
    );
    check(
        &[("main", "#include x"), ("x", "a")],
        Err("main.wgsl:1: unknown directive #include"),
    );
}
