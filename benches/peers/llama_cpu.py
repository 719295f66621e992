"""Decode and prompt speed on the processor: this engine's bench and llama.cpp's CPU backend, in turns on the same files.

    python llama_cpu.py --cli rwkv-cli --threads 1 --rounds 5 MODEL.gguf ...

Needs the package llama-cpp-python. One line a model and workload: tokens a second of both, medians over the rounds,
once by the clock and once by the processor time that was used, and their ratio.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time


def used() -> float:
    """Seconds of processor time of the processes that were waited for."""
    times = os.times()
    return times.children_user + times.children_system


def ours(args, model: str, workload: str, tokens: int, repeat: int) -> tuple[float, float]:
    """Tokens a second, the median of `repeat` rounds, and the processor time of the whole run."""
    other = "decode" if workload == "prefill" else "prefill"
    before = used()
    command = [args.cli, "bench", "--model", model, "--device", "cpu", "--json"]
    command += [f"--{workload}", str(tokens), f"--{other}", "0", "--repeat", str(repeat)]
    environment = {**os.environ, "RAYON_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    speed = json.loads(done.stdout)["workloads"][0]["tokens_per_second"]
    return speed["median"], used() - before


def llama(args, model: str, workload: str, tokens: int, repeat: int) -> tuple[float, float]:
    """As `ours`, of a process of its own."""
    before = used()
    command = [sys.executable, __file__, "--worker", workload, "--tokens", str(tokens)]
    command += ["--threads", str(args.threads), "--rounds", str(repeat), model]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return statistics.median(json.loads(done.stdout.splitlines()[-1])), used() - before


def worker(args) -> None:
    """A warm-up and then the rounds of one workload; prints tokens a second of each."""
    import ctypes

    import llama_cpp as c

    c.llama_backend_init()
    c.llama_log_set(quiet := c.llama_log_callback(lambda *_: None), ctypes.c_void_p(0))
    model = c.llama_model_load_from_file(args.models[0].encode(), c.llama_model_default_params())
    vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
    parameters = c.llama_context_default_params()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = 2048, 512, 512
    parameters.n_threads = parameters.n_threads_batch = args.threads
    context = c.llama_init_from_model(model, parameters)

    def tokens(count: int):
        return (c.llama_token * count)(*(1 + 7 * i % (min(vocabulary, 4096) - 1) for i in range(count)))

    def step(ids) -> None:
        if c.llama_decode(context, c.llama_batch_get_one(ids, len(ids))):
            sys.exit("llama.cpp refuses the tokens")
        c.llama_get_logits_ith(context, -1)

    def round_() -> float:
        c.llama_memory_clear(c.llama_get_memory(context), True)
        ids = tokens(args.tokens)
        if args.worker == "prefill":
            start = time.perf_counter()
            step(ids)
        else:
            singles = [(c.llama_token * 1)(token) for token in ids]
            step(tokens(1))
            start = time.perf_counter()
            for single in singles:
                step(single)
        return args.tokens / (time.perf_counter() - start)

    round_()
    print(json.dumps([round_() for _ in range(args.rounds)]))
    # What it frees on its way out is not measured.
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL.gguf")
    parser.add_argument("--cli", default="rwkv-cli", help="this engine's command line")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each program")
    parser.add_argument("--decode", type=int, default=64, help="tokens to decode; 0 measures none")
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prompt; 0 measures none")
    parser.add_argument("--worker", choices=["prefill", "decode"], help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args)
    more = 4
    print(f"{args.threads} threads, {args.rounds} turns; tokens a second by the clock, then of processor time")
    for model in args.models:
        for workload, tokens in (("decode", args.decode), ("prefill", args.prefill)):
            if not tokens:
                continue
            clock, processor = {ours: [], llama: []}, {ours: [], llama: []}
            for _ in range(args.rounds):
                for program in (ours, llama):
                    # Loading and warming up cost the same in both runs, so that the difference is of the rounds.
                    _, few = program(args, model, workload, tokens, 1)
                    speed, many = program(args, model, workload, tokens, 1 + more)
                    clock[program].append(speed)
                    processor[program].append(more * tokens / max(many - few, 1e-9))
            columns = []
            for speeds in (clock, processor):
                a, b = statistics.median(speeds[ours]), statistics.median(speeds[llama])
                columns.append(f"{a:9.1f} {b:9.1f} {a / b:5.2f}")
            print(f"{os.path.basename(model):24} {workload:8} {tokens:4}  " + "   ".join(columns), flush=True)


if __name__ == "__main__":
    main()
