//! What the program tells about itself, models and devices.

use crate::program::stdout;

#[test]
fn help() {
    for command in [
        "",
        "generate",
        "logits",
        "perplexity",
        "inspect",
        "quantize",
        "convert",
        "synthesize",
        "bench",
        "devices",
    ] {
        let args: Vec<_> = [command, "--help"]
            .into_iter()
            .filter(|a| !a.is_empty())
            .collect();
        insta::assert_snapshot!(format!("help-{command}"), stdout(&args));
    }
}

#[test]
fn inspect() {
    insta::assert_snapshot!("inspect", stdout(&["inspect"]));
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&["inspect", "--json", "--tensors"])).unwrap();
    assert_eq!(json["layers"], 8);
    assert_eq!(json["tensors"].as_array().unwrap().len(), 230);
    insta::assert_snapshot!("inspect-quant", stdout(&["inspect", "--quant", "q4_0:2-5"]));
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&["inspect", "--json", "--quant", "q6_k"])).unwrap();
    assert_eq!(json["quant"]["matrices"].as_array().unwrap().len(), 50);
    assert_eq!(json["quant"]["formats"]["q6_k"], 50);
}

#[test]
fn devices_end_with_the_cpu() {
    assert!(
        stdout(&["devices"])
            .lines()
            .last()
            .unwrap()
            .starts_with("cpu ")
    );
    let json: serde_json::Value = serde_json::from_str(&stdout(&["devices", "--json"])).unwrap();
    assert_eq!(json.as_array().unwrap().last().unwrap()["device"], "cpu");
}
