//! `adapter_config.json` of Hugging Face's PEFT: how strong an adapter was trained to be.

use serde_json::Value;

/// What the file says that matters here.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct AdapterConfig {
    /// `lora_alpha`.
    pub(crate) alpha: Option<f32>,
    /// `use_rslora`: the scale is `alpha / √rank`.
    pub(crate) root: bool,
}

impl AdapterConfig {
    /// Reads the text of the file.
    ///
    /// # Errors
    /// What is wrong with it, or what it says that is not supported.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(text).map_err(|e| format!("no JSON: {e}"))?;
        let Value::Object(value) = value else {
            return Err("no JSON object".to_owned());
        };
        let kind = value.get("peft_type").and_then(Value::as_str);
        if let Some(kind) = kind.filter(|kind| *kind != "LORA") {
            return Err(format!(
                "adapters of kind {kind:?} are not supported, only LORA"
            ));
        }
        for key in ["use_dora", "fan_in_fan_out", "lora_bias"] {
            if value.get(key) == Some(&Value::Bool(true)) {
                return Err(format!("`{key}` is not supported"));
            }
        }
        let pattern = value.get("alpha_pattern").and_then(Value::as_object);
        if pattern.is_some_and(|p| !p.is_empty()) {
            return Err("`alpha_pattern` is not supported".to_owned());
        }
        let alpha = match value.get("lora_alpha") {
            None | Some(Value::Null) => None,
            Some(number) => match number.as_f64() {
                // A few digits in every file.
                #[allow(clippy::cast_possible_truncation, reason = "the scale is f32")]
                Some(alpha) => Some(alpha as f32),
                None => return Err("`lora_alpha` is no number".to_owned()),
            },
        };
        Ok(Self {
            alpha,
            root: value.get("use_rslora") == Some(&Value::Bool(true)),
        })
    }

    /// What `B A` of this rank is multiplied by.
    pub(crate) fn scale(self, rank: usize) -> f32 {
        let rank = rank.max(1) as f32;
        match self.alpha {
            Some(alpha) if self.root => alpha / rank.sqrt(),
            Some(alpha) => alpha / rank,
            None => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        #[track_caller]
        fn check(text: &str, want: Result<f32, &str>) {
            let got = AdapterConfig::parse(text.as_bytes()).map(|config| config.scale(4));
            let fits = match (&got, want) {
                (Ok(got), Ok(want)) => (got - want).abs() < 1e-6,
                (Err(got), Err(want)) => got.contains(want),
                _ => false,
            };
            assert!(fits, "{text}: {got:?}");
        }
        check("{}", Ok(1.0));
        check(
            r#"{"lora_alpha": 32, "r": 4, "peft_type": "LORA"}"#,
            Ok(8.0),
        );
        check(r#"{"lora_alpha": 32.0, "use_rslora": true}"#, Ok(16.0));
        check(
            r#"{"lora_alpha": null, "use_dora": false, "alpha_pattern": {}}"#,
            Ok(1.0),
        );
        check("", Err("no JSON"));
        check("[1]", Err("no JSON object"));
        check(r#"{"lora_alpha": "x"}"#, Err("is no number"));
        check(r#"{"use_dora": true}"#, Err("`use_dora`"));
        check(r#"{"alpha_pattern": {"key": 3}}"#, Err("`alpha_pattern`"));
        check(r#"{"peft_type": "IA3"}"#, Err("\"IA3\""));
    }
}
