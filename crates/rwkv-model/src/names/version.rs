//! Version and dimensions of a checkpoint that is not GGUF: from the names and shapes of its tensors, and from Hugging
//! Face's `config.json` what no tensor tells.

use super::{GROUP_NORM_EPSILON, NORM_EPSILON, dialect::Dialect, dimensions, epsilon, layers};
use crate::{Error, Result, files::Checkpoint};
use rwkv_sched::{ModelConfig, Version};

/// Version and dimensions of a checkpoint in `dialect`.
///
/// # Errors
/// [`Error::Unsupported`] for versions that are known and not read, [`Error::NotAModel`] for tensors that contradict
/// each other.
pub(super) fn config(checkpoint: &Checkpoint, dialect: Dialect) -> Result<ModelConfig> {
    let source = Source {
        checkpoint,
        dialect,
    };
    if matches!(
        dialect,
        Dialect::FlashLinearAttention | Dialect::Blocks { .. }
    ) {
        source.check_config()?;
    }
    let version = source.version()?;
    let [vocab, width] = source.dimensions("emb.weight")?;
    let [ffn, _] = source.dimensions("blocks.0.ffn.key.weight")?;
    let head_size = match version {
        Version::V4 => 1,
        Version::V5_0 | Version::V5_1 | Version::V5_2 => source.head_size_5(width)?,
        Version::V6 => source.head_size("blocks.0.att.time_faaaa")?,
        _ => source.head_size("blocks.0.att.r_k")?,
    };
    let (norm, group_norm) = source.epsilons(head_size);
    Ok(ModelConfig {
        version,
        layers: layers(checkpoint, dialect.layers())?,
        width,
        head_size,
        ffn,
        vocab,
        norm_epsilon: epsilon(checkpoint, "norm_eps", norm),
        group_norm_epsilon: epsilon(checkpoint, "group_norm_eps", group_norm),
    })
}

/// A checkpoint and whose names it uses.
#[derive(Clone, Copy)]
struct Source<'a> {
    checkpoint: &'a Checkpoint,
    dialect: Dialect,
}

impl Source<'_> {
    fn shape(&self, original: &str) -> Option<&[usize]> {
        Some(self.dialect.find(self.checkpoint, original)?.shape)
    }

    fn att(&self, rest: &str) -> Option<&[usize]> {
        self.shape(&format!("blocks.0.att.{rest}"))
    }

    fn unsupported(&self, what: &str) -> Error {
        Error::Unsupported {
            file: self.checkpoint.source().to_owned(),
            what: what.to_owned(),
        }
    }

    fn not_a_model(&self, what: String) -> Error {
        let file = self.checkpoint.source().to_owned();
        Error::NotAModel { file, what }
    }

    fn name(&self, original: &str) -> String {
        let found = self.dialect.find(self.checkpoint, original);
        found.map_or_else(
            || self.dialect.names(original).swap_remove(0),
            |tensor| tensor.name.to_owned(),
        )
    }

    fn dimensions(&self, original: &str) -> Result<[usize; 2]> {
        dimensions(self.checkpoint, &self.name(original))
    }

    /// The version, by what only it and later ones have; the order of the tests matters.
    fn version(&self) -> Result<Version> {
        if self.shape("blocks.0.ffn.s_emb.weight").is_some() {
            return Ok(Version::V7a);
        }
        if self.att("r_k").is_some() {
            return Ok(Version::V7);
        }
        let gate = self.att("gate.weight").is_some();
        if self.att("time_maa_x").is_some() {
            let research = ["gate_w1", "time_maa_rkvw_w1"]
                .into_iter()
                .any(|rest| self.att(rest).is_some());
            return if research || !gate {
                Err(self.unsupported("a research variant of RWKV-6"))
            } else {
                Ok(Version::V6)
            };
        }
        let decay = self.att("time_decay");
        if self.att("ln_x.weight").is_some() {
            let one_a_head = decay.is_none_or(|shape| shape.iter().skip(1).all(|&n| n == 1));
            return Ok(match (gate, one_a_head) {
                (false, _) => Version::V5_0,
                (true, true) => Version::V5_1,
                (true, false) => Version::V5_2,
            });
        }
        if decay.is_some() {
            return Ok(Version::V4);
        }
        Err(self
            .not_a_model("no RWKV model: its layers have neither time_decay nor r_k".to_owned()))
    }

    /// Of version 5: there are as many heads as `time_decay` has in its first dimension.
    fn head_size_5(&self, width: usize) -> Result<usize> {
        let name = self.name("blocks.0.att.time_decay");
        let heads = self.checkpoint.tensor(&name)?.shape.first().copied();
        match heads {
            Some(heads) if heads > 0 && width.is_multiple_of(heads) => Ok(width / heads),
            _ => Err(self.not_a_model(format!(
                "tensor {name} has {} heads, which do not divide {width} channels",
                heads.unwrap_or(0)
            ))),
        }
    }

    /// From a tensor `[H, N]`, or where it has other dimensions, from `config.json`.
    fn head_size(&self, original: &str) -> Result<usize> {
        let said = ["config.head_dim", "config.head_size"]
            .into_iter()
            .find_map(|key| self.checkpoint.metadata().u64(key))
            .and_then(|n| usize::try_from(n).ok());
        match (self.shape(original), said) {
            (Some([_, size]), _) => Ok(*size),
            (Some(_), Some(size)) => Ok(size),
            _ => Ok(self.dimensions(original)?[1]),
        }
    }

    /// Of layer norms and of the group norm, where a file does not say itself.
    fn epsilons(&self, head_size: usize) -> (f32, f32) {
        let config = |key: &str, default| epsilon(self.checkpoint, key, default);
        let size = u16::try_from(head_size).map_or(f32::NAN, f32::from);
        match self.dialect {
            Dialect::Original | Dialect::Converted => (NORM_EPSILON, GROUP_NORM_EPSILON),
            Dialect::FlashLinearAttention => {
                let norm = config("config.norm_eps", NORM_EPSILON);
                (norm, size * norm)
            }
            Dialect::Blocks { .. } => {
                let norm = config("config.layer_norm_epsilon", NORM_EPSILON);
                (config("config.norm_eps", norm), GROUP_NORM_EPSILON)
            }
            Dialect::HuggingFace6 => {
                // Its code has 1e-5 times the square of a divisor, which is 8.
                let divisor = config("config.head_size_divisor", 8.0);
                let norm = config("config.layer_norm_epsilon", NORM_EPSILON);
                (norm, 1e-5 * divisor * divisor)
            }
        }
    }

    /// Refuses what Hugging Face's code can be asked for and our graphs do not have.
    fn check_config(&self) -> Result<()> {
        let metadata = self.checkpoint.metadata();
        if let Some(act) = metadata
            .string("config.hidden_act")
            .filter(|act| *act != "sqrelu")
        {
            let what = format!("RWKV-7 with the activation `{}`", act.escape_debug());
            return Err(self.unsupported(&what));
        }
        if let (Some(value), Some(hidden)) = (
            metadata.u64("config.value_dim"),
            metadata.u64("config.hidden_size"),
        ) && value != hidden
        {
            let what = format!("RWKV-7 with values of {value} channels beside {hidden}");
            return Err(self.unsupported(&what));
        }
        if metadata.bool("config.norm_first") == Some(false)
            && self.shape("blocks.0.ln0.weight").is_none()
        {
            return Err(self.unsupported(
                "RWKV-7 without a norm of the embedding (norm_first is false in its configuration)",
            ));
        }
        Ok(())
    }
}
