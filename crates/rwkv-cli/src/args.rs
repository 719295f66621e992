//! The command line as it is written.

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use rwkv_model::export::SyntheticSpec;
use rwkv_sched::{PruneRatio, Quantization};
use std::path::PathBuf;

/// Run RWKV language models on any GPU, or on the CPU.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Continue a text.
    Generate(GenerateArgs),
    /// Write the logits after given tokens.
    Logits(LogitsArgs),
    /// Show what a model file holds.
    Inspect(InspectArgs),
    /// Measure how well a model predicts a text.
    Perplexity(PerplexityArgs),
    /// Write a model with its matrices in another, smaller type.
    Quantize(QuantizeArgs),
    /// Write a model in another container: GGUF, or safetensors with the original names.
    Convert(ConvertArgs),
    /// Write a model of made-up weights, for measuring.
    Synthesize(SynthesizeArgs),
    /// Measure how fast a model runs, and where the time goes.
    Bench(BenchArgs),
    /// List the devices that can run a model.
    Devices(DevicesArgs),
}

#[derive(ClapArgs)]
pub(crate) struct ModelArgs {
    /// Model file or folder: .pth, .safetensors, .st, .gguf, or a Hugging Face folder. Without it the bundled demo model
    /// runs.
    #[arg(long, short, value_name = "FILE", env = "RWKV_MODEL")]
    pub(crate) model: Option<PathBuf>,
    /// Vocabulary: `world`, `bytes`, a vocabulary file or a tokenizer.json. Without it: the one inside the model file, a
    /// tokenizer.json or `*vocab*.txt` beside it, or what the vocabulary's size tells.
    #[arg(long, value_name = "FILE|world|bytes")]
    pub(crate) tokenizer: Option<String>,
    #[command(flatten)]
    pub(crate) known: KnownArgs,
}

/// What a person knows of a model that its file does not say.
#[derive(ClapArgs)]
pub(crate) struct KnownArgs {
    /// What the group norm after the recurrence adds to the variance, where the file does not say or says it wrongly.
    #[arg(long, value_name = "X")]
    pub(crate) group_norm_eps: Option<f32>,
    /// How low-rank pairs lie whose rank is the model's width, which no shape tells.
    #[arg(long, value_name = "ORDER", hide_possible_values = false)]
    pub(crate) square_pairs: Option<PairsArg>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum PairsArg {
    /// As in the original checkpoints.
    InOut,
    /// Transposed, as some converters leave them.
    OutIn,
}

#[derive(ClapArgs)]
pub(crate) struct DeviceArgs {
    /// Where to run: `auto` (the best GPU, else the CPU), `cpu`, or a device's number or part of its name; several, such as
    /// 0,1, share the work.
    #[arg(
        long,
        short,
        value_name = "DEVICE,…",
        env = "RWKV_DEVICE",
        default_value = "auto",
        value_delimiter = ','
    )]
    pub(crate) device: Vec<String>,
    /// What several devices share: the layers, of which each has some, or the sequences, with the whole model on each.
    /// Without it, sequences where there are enough and the model fits on each, else layers.
    #[arg(long, value_name = "WHAT")]
    pub(crate) share: Option<ShareArg>,
    /// Where devices share the layers: into how many parts a batch is cut that they work on at once. Without it, as many as
    /// there are devices, and prompts by their length.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) micro_batches: Option<u32>,
    /// What F32 and BF16 weights become on a GPU; `auto` keeps F32 where F16 cannot hold a matrix.
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub(crate) weights_dtype: WeightsDTypeArg,
    /// Re-encode the matrices while loading: a type, such as q8_0 or q4_k_m, perhaps only in some layers, such as
    /// int8:0-11. A wrong one lists all.
    #[arg(long, value_name = "TYPE[:FIRST-LAST]")]
    pub(crate) quant: Option<Quantization>,
    /// Logits of a sequence with the same bits each time, whatever runs beside it and however its prompt is cut, at some
    /// cost of speed on a GPU.
    #[arg(long)]
    pub(crate) deterministic: bool,
    /// How much GPU memory may be in use: bytes, or a number with K, M, G or T (KiB, MiB, GiB, TiB), such as 8G or 7.5GiB.
    /// Where a model does not fit, its tables of tokens stay on the host (RWKV-7a's, then the embedding), and what does not
    /// fit then is refused before it is loaded; prompts are cut into shorter chunks where that helps.
    #[arg(long, value_name = "LIMIT", value_parser = memory_size)]
    pub(crate) gpu_memory: Option<u64>,
    /// Run only the first N layers on the GPU, and the others on the CPU: for models that do not fit. With one GPU. A model that does not
    /// fit says how many would.
    #[arg(long, value_name = "N")]
    pub(crate) gpu_layers: Option<usize>,
    /// Do not time kernels when a GPU first runs a model of these shapes; what was found earlier is used all the same.
    #[arg(long)]
    pub(crate) no_tune: bool,
}

/// What training added to the model, or a sequence before this one.
#[derive(ClapArgs)]
pub(crate) struct TuningArgs {
    /// Change the weights by an adapter (.pth, .safetensors or a PEFT folder), times STRENGTH (1); may be given several
    /// times. A tuned state in it is what sequences begin with, at any strength but 0.
    #[arg(long, value_name = "FILE[=STRENGTH]", value_parser = adapter)]
    pub(crate) lora: Vec<(PathBuf, f32)>,
    /// Begin with this state: one that --save-state wrote, or a tuned one (`time_state`).
    #[arg(long, value_name = "FILE")]
    pub(crate) state: Option<PathBuf>,
    /// How the matrices of a tuned state lie, that of --state or of an adapter, where the kind of file tells it wrongly.
    #[arg(long, value_name = "ORDER")]
    pub(crate) state_order: Option<StateOrderArg>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum StateOrderArg {
    /// As .pth files have them, of every version.
    ValueKey,
    /// As converters to .st write them.
    KeyValue,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum ShareArg {
    Layers,
    Sequences,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
pub(crate) enum WeightsDTypeArg {
    F16,
    F32,
    Auto,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum SamplerOrderArg {
    /// Penalties, softmax, top-p, top-k, min-p, temperature: the reference implementation's.
    Reference,
    /// Penalties, temperature, softmax, top-k, top-p, min-p: most other engines'.
    TemperatureFirst,
}

#[derive(ClapArgs)]
pub(crate) struct GenerateArgs {
    /// The text to continue. `-`, or none where stdin is no terminal, reads it from stdin.
    #[arg(conflicts_with = "file")]
    pub(crate) prompt: Option<String>,
    /// Read the text to continue from a file, or from stdin with `-`.
    #[arg(long, short, value_name = "FILE|-")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) tuning: TuningArgs,
    /// Tokens to generate at most.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// Sharpness of the choice: 0 always takes the most probable token.
    #[arg(
        long,
        short,
        value_name = "T",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    pub(crate) temperature: f32,
    /// Choose among the most probable tokens that together have this probability; 1 is off.
    #[arg(
        long,
        value_name = "P",
        default_value_t = 0.3,
        allow_negative_numbers = true
    )]
    pub(crate) top_p: f32,
    /// Choose among this many most probable tokens; 0 is off.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(crate) top_k: u32,
    /// Choose among tokens at least this probable relative to the most probable; 0 is off.
    #[arg(
        long,
        value_name = "P",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub(crate) min_p: f32,
    /// Taken off the logit of every token that was generated before.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.2,
        allow_negative_numbers = true
    )]
    pub(crate) presence_penalty: f32,
    /// Taken off the logit once more for each time.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.2,
        allow_negative_numbers = true
    )]
    pub(crate) frequency_penalty: f32,
    /// What the counts of the frequency penalty are multiplied by after each token.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.996,
        allow_negative_numbers = true
    )]
    pub(crate) penalty_decay: f32,
    /// The order of the sampler's steps.
    #[arg(long, value_name = "ORDER", default_value = "reference")]
    pub(crate) sampler_order: SamplerOrderArg,
    /// Add to a token's logit; may be given several times.
    #[arg(long, value_name = "TOKEN=BIAS", value_parser = token_bias, allow_hyphen_values = true)]
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// The same seed chooses the same tokens; without one it is random, and told at the end.
    #[arg(long, short, value_name = "S")]
    pub(crate) seed: Option<u64>,
    /// Stop before this text; may be given several times. The end-of-text token always stops.
    #[arg(long, value_name = "TEXT", value_parser = stop_text)]
    pub(crate) stop: Vec<String>,
    /// Write the state after the last token that was printed, to go on from it another time.
    #[arg(long, value_name = "FILE")]
    pub(crate) save_state: Option<PathBuf>,
    /// Keep states along long prompts in the cache folder, of all models at most so many bytes, and start from them: of a prompt that
    /// begins as an earlier one did only the rest is fed.
    #[arg(
        long,
        value_name = "LIMIT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "4G",
        value_parser = memory_size
    )]
    pub(crate) prompt_cache: Option<u64>,
    /// Print the prompt before its continuation.
    #[arg(long)]
    pub(crate) echo: bool,
}

#[derive(ClapArgs)]
#[group(id = "input", required = true, multiple = false)]
pub(crate) struct LogitsInput {
    /// Token numbers, separated by commas.
    #[arg(long, value_name = "1,2,3", group = "input")]
    pub(crate) tokens: Option<String>,
    /// A file of token numbers, separated by commas or white space; `-` is stdin.
    #[arg(long, value_name = "FILE|-", group = "input")]
    pub(crate) tokens_file: Option<PathBuf>,
    /// A text.
    #[arg(long, value_name = "TEXT", group = "input")]
    pub(crate) prompt: Option<String>,
}

#[derive(ClapArgs)]
pub(crate) struct LogitsArgs {
    #[command(flatten)]
    pub(crate) input: LogitsInput,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) tuning: TuningArgs,
    /// Write the logits after every token, not only after the last.
    #[arg(long)]
    pub(crate) all: bool,
    /// Feed this many tokens at a time; by default what suits the device.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) chunk: Option<u32>,
    /// Where to: a file of little-endian f32, or `-` for one number a line on stdout.
    #[arg(long, short, value_name = "FILE|-")]
    pub(crate) output: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum CountedArg {
    /// Every token that one of the chunk comes before: all of the chunk but its first, and the one that follows it.
    All,
    /// The second half of each chunk, as llama.cpp counts.
    Llama,
}

#[derive(ClapArgs)]
pub(crate) struct PerplexityArgs {
    /// Read the text from a file, or from stdin with `-`.
    #[arg(long, short, value_name = "FILE|-")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) tuning: TuningArgs,
    /// Tokens a chunk: the text is cut into chunks, and each begins with the initial state.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) context: u32,
    /// Measure only so many chunks, from the beginning.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) chunks: Option<u32>,
    /// Which tokens of a chunk are counted.
    #[arg(long, value_name = "METHOD", default_value = "all")]
    pub(crate) method: CountedArg,
    /// Chunks that go through the model at once.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) batch: u32,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(ClapArgs)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Tell what re-encoding the matrices would give, as the other commands' --quant does.
    #[arg(long, value_name = "TYPE[:FIRST-LAST]")]
    pub(crate) quant: Option<Quantization>,
    /// List every tensor.
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(ClapArgs)]
pub(crate) struct FilesArgs {
    /// Model file to read.
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,
    /// Model file to write: *.gguf, or *.safetensors or *.st. It appears when it is complete.
    #[arg(value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// Vocabulary to put into a GGUF file: `world`, `bytes` or a vocabulary file. Without it: the one that belongs to
    /// the model.
    #[arg(long, value_name = "FILE|world|bytes")]
    pub(crate) tokenizer: Option<String>,
    #[command(flatten)]
    pub(crate) known: KnownArgs,
}

#[derive(ClapArgs)]
pub(crate) struct QuantizeArgs {
    #[command(flatten)]
    pub(crate) files: FilesArgs,
    /// What the matrices become: q8_0, q6_k, q5_k_m, q4_k_m and other types of ggml in GGUF files; int8, nf4 or sf4 in
    /// safetensors files; f16 in either. May be left out with --prune, for f16. A wrong one lists all.
    #[arg(
        long = "type",
        short = 't',
        value_name = "TYPE[:FIRST-LAST]",
        required_unless_present = "prune",
        default_value_if("prune", clap::builder::ArgPredicate::IsPresent, "f16")
    )]
    pub(crate) weight_type: Option<Quantization>,
    /// Make this share of each matrix zero first, the smallest elements, such as 0.7; 0 only finds zeros that are there.
    /// Pruned are a layer's receptance, key, value, gate, output and its channel mix, not the embedding, the head and
    /// low-rank pairs. In safetensors files what is left of a matrix is kept as sparse rows of F16 where that is less
    /// than 40 % and smaller than TYPE; GGUF files have the zeros in TYPE.
    #[arg(long, value_name = "RATIO")]
    pub(crate) prune: Option<PruneRatio>,
}

#[derive(ClapArgs)]
pub(crate) struct ConvertArgs {
    #[command(flatten)]
    pub(crate) files: FilesArgs,
}

#[derive(ClapArgs)]
pub(crate) struct SynthesizeArgs {
    /// The model: VERSION:LAYERSxWIDTH, such as v7:24x2048, and then perhaps a colon and vocab=N, head=N, ffn=N,
    /// zeros=SHARE (of the activations in the channel mix) or seed=N, separated by commas.
    pub(crate) spec: SyntheticSpec,
    /// Model file to write: *.gguf, or *.safetensors or *.st.
    #[arg(value_name = "OUT")]
    pub(crate) output: PathBuf,
}

#[derive(ClapArgs)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Measure made-up weights instead, without a file; as for `synthesize`, such as v7:24x2048.
    #[arg(long, value_name = "SPEC")]
    pub(crate) synthetic: Option<SyntheticSpec>,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// Prune the matrices of layers first, as `quantize` does, and measure each share twice on a GPU: with dense matrices
    /// and with sparse ones. Shows from where on sparse ones are faster.
    #[arg(long, value_name = "RATIO,…", value_delimiter = ',', conflicts_with_all = ["quant", "profile"])]
    pub(crate) prune: Vec<PruneRatio>,
    /// Tokens of a prompt; 0 measures none.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) prefill: u32,
    /// Prompts that are measured together.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) prompts: u32,
    /// Tokens to decode, for each sequence; 0 measures none.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) decode: u32,
    /// Sequences that decode together; several numbers are measured one after the other.
    #[arg(long, value_name = "N,…", default_value = "1", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) batch: Vec<u32>,
    /// Rounds that are measured, after one that is not.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repeat: u32,
    /// Tell the time of each kernel, from a round of its own; with a FILE, also write what ran when, for
    /// ui.perfetto.dev or chrome://tracing.
    #[arg(long, value_name = "FILE.json", num_args = 0..=1)]
    #[allow(clippy::option_option, reason = "not given, given, given with a file")]
    pub(crate) profile: Option<Option<PathBuf>>,
    /// Replay requests instead, through the engine with as many slots as --batch has sequences at most: the times of a FILE,
    /// lines of {"at": SECONDS, "prompt": TOKENS, "tokens": TOKENS}, or made-up ones, with prompts of about --prefill and
    /// answers of about --decode tokens. Tells throughput, and percentiles of the time to the first token and between
    /// tokens; with --profile also how busy the GPU is.
    #[arg(long, value_name = "FILE|synthetic", conflicts_with = "prune")]
    pub(crate) serve_trace: Option<TraceArg>,
    /// Requests a second, on average, of a made-up trace.
    #[arg(long, value_name = "R", default_value_t = 4.0, requires = "serve_trace", value_parser = rate)]
    pub(crate) rate: f64,
    /// Requests of a made-up trace that come at once.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "serve_trace", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) burst: u32,
    /// Requests of a made-up trace.
    #[arg(long, value_name = "N", default_value_t = 64, requires = "serve_trace", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) requests: u32,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where requests come from.
#[derive(Clone, Debug)]
pub(crate) enum TraceArg {
    /// From the times that they are made up for.
    Synthetic,
    File(PathBuf),
}

impl std::str::FromStr for TraceArg {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "synthetic" => Self::Synthetic,
            path => Self::File(path.into()),
        })
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.trim().parse::<f64>().ok();
    rate.filter(|rate| (1e-6..=1e6).contains(rate))
        .ok_or_else(|| format!("`{text}` is no rate: expected requests a second, such as 2.5"))
}

#[derive(ClapArgs)]
pub(crate) struct DevicesArgs {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Bytes: a number, perhaps with a fraction, and a unit of 1024s.
fn memory_size(text: &str) -> Result<u64, String> {
    let wrong = || {
        "expected bytes, or a number with K, M, G or T, such as 8G, 7.5GiB or 8000M; units are of 1024"
            .to_owned()
    };
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let unit = unit.trim_start().to_ascii_lowercase();
    let bits = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    // More digits are less than a byte.
    let fraction: String = fraction.chars().take(15).collect();
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let parts: u64 = fraction.parse().map_err(|_| wrong())?;
    if bits == 0 && parts > 0 {
        return Err(wrong());
    }
    let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| wrong())?);
    let bytes = (u128::from(whole) << bits) + (u128::from(parts) << bits) / scale;
    u64::try_from(bytes).map_err(|_| "that is more than 2^64 bytes".to_owned())
}

fn token_bias(text: &str) -> Result<(u32, f32), String> {
    let (token, bias) = text
        .split_once('=')
        .ok_or("expected TOKEN=BIAS, such as 261=-2.5")?;
    let token = token
        .trim()
        .parse()
        .map_err(|_| format!("`{token}` is no token number"))?;
    let bias = bias
        .trim()
        .parse()
        .map_err(|_| format!("`{bias}` is no number"))?;
    Ok((token, bias))
}

fn stop_text(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("an empty text would stop before anything is said: give a text".to_owned());
    }
    Ok(text.to_owned())
}

/// A path, which may hold `=` itself, and what follows its last `=` if that is a number.
fn adapter(text: &str) -> Result<(PathBuf, f32), String> {
    let (path, strength) = match text.rsplit_once('=') {
        Some((path, number)) if !std::path::Path::new(text).exists() => {
            let strength = number
                .trim()
                .parse()
                .map_err(|_| format!("`{number}` is no strength, such as 0.5"))?;
            (path, strength)
        }
        _ => (text, 1.0),
    };
    if path.is_empty() || !f32::is_finite(strength) {
        return Err("expected FILE or FILE=STRENGTH".to_owned());
    }
    Ok((path.into(), strength))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_sizes() {
        #[track_caller]
        fn check(text: &str, want: Option<u64>) {
            assert_eq!(memory_size(text).ok(), want, "{text:?}");
        }
        check("0", Some(0));
        check("123456", Some(123_456));
        check("4096B", Some(4096));
        check("512MiB", Some(512 << 20));
        check("8000M", Some(8000 << 20));
        check("8g", Some(8 << 30));
        check("8 GiB", Some(8 << 30));
        check("7.5GB", Some(15 << 29));
        check("1.000000000000000000000000001k", Some(1024));
        check("2T", Some(2 << 40));
        check("18446744073709551615", Some(u64::MAX));
        for wrong in [
            "",
            " ",
            ".",
            "G",
            "8.",
            ".5G",
            "-1",
            "+1",
            "1e9",
            "8GG",
            "8 G iB",
            "1.5",
            "1.2.3G",
            "٣G",
            "8Gé",
            "18446744073709551616",
            "16777216T",
            "99999999999999999999T",
        ] {
            check(wrong, None);
        }
    }
}
