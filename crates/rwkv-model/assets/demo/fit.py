"""The training loop: AdamW over random windows, and the held-out loss as the judge."""

import math
import time

import numpy as np
import torch
from torch.nn import functional as F
from triton.runtime.autotuner import Autotuner

WARM_UP_STEPS = 100
FINAL_LEARNING_RATE = 0.03  # of the peak
COMPILING_STEPS = 3
VALIDATION_INTERVAL = 150
VALIDATION_BATCH = 64


def fit(train, held_out, held_out_bytes, args):
    """Trains on the tokens `train` and returns ({tensor name: float16 array}, report) of the best weights by loss on
    the tokens `held_out`. `args` are train.py's; `held_out_bytes` turns nats a token into nats a byte."""
    use_one_triton_configuration()
    from model import Rwkv7  # only now: importing it declares the recurrence's kernels

    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    model = Rwkv7(args.vocab, args.dim, args.layers, args.dropout).cuda()
    optimizer = adamw(model, args.lr)
    windows = random_windows(train, args)
    held_out = torch.tensor(held_out).cuda()
    tokens_per_byte = len(held_out) / held_out_bytes
    steps = int(args.epochs * len(train) / (args.batch * args.context))

    start, step, elapsed = time.time(), 0, 0.0
    best_loss, best_weights, log = math.inf, None, []
    while step < steps and elapsed < 1:
        rate = args.lr * learning_rate(step, max(step / steps, elapsed))
        loss = train_step(model, optimizer, next(windows), rate)
        step += 1
        if step == COMPILING_STEPS:
            torch.cuda.synchronize()
            print(f"first steps took {time.time() - start:.0f} s", flush=True)
            start = time.time()
        elapsed = (time.time() - start) / (args.minutes * 60)
        if step % VALIDATION_INTERVAL == 0 or step == steps or elapsed >= 1:
            held_out_loss = validate(model, held_out, args.context)
            log.append([round(n, 4) for n in (step, loss.item(), held_out_loss, held_out_loss * tokens_per_byte)])
            print("step {} train {} held-out {} nats/token {} nats/byte".format(*log[-1]), flush=True)
            if held_out_loss < best_loss:
                best_loss, best_weights = held_out_loss, as_float16(model)

    report = {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "layers": args.layers,
        "dim": args.dim,
        "vocab": args.vocab,
        "steps": step,
        "train_tokens": len(train),
        "held_out_tokens": len(held_out),
        "held_out_bytes": held_out_bytes,
        "nats_per_token": best_loss,
        "nats_per_byte": best_loss * tokens_per_byte,
        "seconds": time.time() - start,
        "log": log,
    }
    return best_weights, report


def use_one_triton_configuration():
    """Makes triton compile one good guess for each kernel declared from now on: trying every candidate for the
    recurrence's kernels takes minutes."""
    original = Autotuner.__init__

    def init(self, fn, arg_names, configs, *args, **kwargs):
        configs = sorted(configs, key=lambda config: abs(config.num_warps - 4) + abs(config.num_stages - 2))
        original(self, fn, arg_names, configs[:1], *args, **kwargs)

    Autotuner.__init__ = init


def adamw(model, peak_rate):
    """Weight decay for the large matrices only, not for vectors, `r_k` and the narrow LoRA pairs."""
    large, rest = [], []
    for weight in model.parameters():
        (large if weight.ndim == 2 and min(weight.shape) >= 64 else rest).append(weight)
    groups = [{"params": large, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak_rate, betas=(0.9, 0.99), eps=1e-12, fused=True)


def random_windows(tokens, args):
    """Yields batches [batch, context + 1] of windows that start anywhere in `tokens`."""
    rng = np.random.default_rng(args.seed)
    tokens = torch.tensor(tokens).cuda()
    offsets = torch.arange(args.context + 1, device="cuda")
    while True:
        starts = rng.integers(0, len(tokens) - args.context - 1, args.batch)
        yield tokens[torch.tensor(starts).cuda()[:, None] + offsets]


def learning_rate(step, progress):
    """Share of the peak learning rate: linear warm-up, then half a cosine over the progress from 0 to 1."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
    return min(1, (step + 1) / WARM_UP_STEPS) * (FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * cosine)


def train_step(model, optimizer, window, rate):
    """One optimizer step; returns the loss before it, still on the GPU."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast("cuda", torch.bfloat16):
        logits = model(window[:, :-1])
    loss = cross_entropy(logits, window[:, 1:])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss


def validate(model, tokens, context):
    """Nats a token over `tokens`, cut into windows of `context` that each start from an empty state."""
    rows = (len(tokens) - 1) // context
    inputs = tokens[: rows * context].view(rows, context)
    targets = tokens[1 : rows * context + 1].view(rows, context)
    total = 0.0
    model.eval()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        for batch, target in zip(inputs.split(VALIDATION_BATCH), targets.split(VALIDATION_BATCH)):
            total += cross_entropy(model(batch), target, reduction="sum").item()
    model.train()
    return total / targets.numel()


def cross_entropy(logits, targets, **options):
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), **options)


def as_float16(model):
    return {name: weight.detach().half().cpu().numpy() for name, weight in model.named_parameters()}
