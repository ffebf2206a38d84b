#!/usr/bin/env python3
"""compare.py - HRA beside the attention that PyTorch has, in one run, in turn.

    examples/tools/compare.py --list
    examples/tools/compare.py --case dense-d128-8k image-hilbert --repeat 30 --json compare.jsonl
    torchrun --nproc-per-node 2 examples/tools/compare.py --ranks --transport auto nccl
    examples/tools/compare.py --errors

Every contestant of a case gets the same random bf16 tensors, one sequence, in the order that it
works in, lying as (batch, heads, tokens, dim). Before it is timed its output and gradients must
agree with those of the first peer that runs. Then all are timed in turn, forward and backward
apart and in another order each time, so that a drift of the machine falls on all alike: CUDA events
around the call, the L2 cache overwritten before each, medians. TFLOP/s count the pairs that attend,
4 x pairs x dim forward and 10 x pairs x dim backward.

With --ranks, under torchrun, the contestants are PyTorch's context_parallel (cp-) and HRA on
several GPUs, one sequence over all ranks, each in the sharding of its own. Before each call the
ranks meet on their GPUs; of each repetition the slowest rank counts. Beside them every rank runs
the same kernels alone on the whole sequence (-alone). HRA has its tensors as all others have, and
once more (-rows) lying as (batch, tokens, heads, dim), as linear layers leave them: between GPUs of
one node K and V need not be copied then before they are sent. And

    efficiency = time alone / (ranks x time on all ranks)

TFLOP/s are those of one GPU.

With --errors nothing is timed: output and gradients of dense and causal attention, of inputs as
they are drawn, times 8, and with all scores far below 0, beside attention written out in double,

    error = |result - exact| / |exact|    in the Euclidean norm of the whole tensor, mean of 8 seeds

A failure of one contestant or case is reported and stops no other. Ends with 1 where HRA failed,
was wrong or was not timed, or where its errors are more than 1.05 times cuDNN's."""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import gc
import itertools
import json
import math
import os
import pathlib
import random
import statistics
import subprocess
import sys
import warnings

try:
    import torch
except ImportError as why:
    print(f"compare.py: needs PyTorch: {why}", file=sys.stderr)
    sys.exit(2)
import torch._functorch.config
import torch.distributed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import and_masks, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "pytorch"))
import hra_torch  # noqa: E402

# The compiler would let the first backward through a graph overwrite what the second needs.
torch._functorch.config.donated_buffer = False

DEVICE = "cuda"        # the current one
BACKEND = "gpu"        # HRA's, by --backend
BLOCK = 128            # tokens on a side of FlexAttention's blocks
WARM_UP = 3            # rounds before those that count
FLUSH_BYTES = 1 << 28  # more than the L2 cache of any GPU
WIDTH = 28             # of the contestants' names
# Two right results in bf16 are 0.005 apart, in the norm of 128 rows of a head. A 128 x 128 tile too
# many or too few is 0.06 in the largest dense case here and more in all others.
LIMIT = 0.02


# ---- Cases: every row of the tables -------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Case:
    mask: str           # for HRA
    tokens: int
    heads: int
    dim: int
    peers: tuple        # contestants beside HRA; all are compared with the first that runs
    goal: tuple = ()    # what HRA is to reach: its unit, forward, backward or None; on several
                        # ranks where the case is for those
    grid: tuple = ()
    order: str = "identity"  # of HRA and of the peers
    second: str = ""         # another order, in which HRA is timed too
    natural: bool = False    # HRA takes and gives natural order, and the reordering counts
    methods: bool = False    # HRA with backward by cuBLAS is timed too
    flex: tuple = ()         # mask for FlexAttention: a function below and its numbers
    segment: tuple = ()      # mask of dilated segments for peers that gather: S, r, mode; as
                             # `hra natural` HRA reorders into the second order and back, too
    note: str = ""


DENSE = ("cudnn", "cudnn-det", "flash", "flash-det")
GATHERED = ("gather+cudnn", "gather+flash")
ALONE = ("cudnn-alone", "flash-alone")
# The K/V go round, or are gathered after the first round.
SPLIT = ("cp-cudnn-ring", "cp-cudnn-gather", "cp-flash-ring")


def dense(dim, thousands, causal, forward, backward):
    heads, fits = 2048 // dim, thousands <= 8  # its scores in memory, several times
    return Case("causal" if causal else "full", thousands * 1024, heads, dim,
                (*DENSE, "written-out") if fits else DENSE, ("x cudnn", forward, backward),
                methods=fits)


def sparse(mask, tokens, flex, goal=(), **more):
    return Case(mask, tokens, more.pop("heads", 16), 128, ("flex",), goal, flex=flex, **more)


def over_ranks(thousands, causal, goal):
    return Case("causal" if causal else "full", thousands * 1024, 16, 128, ALONE + SPLIT,
                ("efficiency", goal, goal))


IMAGE = {"grid": (256, 256), "flex": ("near", 16, 16)}
VIDEO = {"grid": (32, 64, 64), "flex": ("near", 4, 8, 8)}

CASES = {
    "dense-d128-8k": dense(128, 8, False, 1.10, 1.15),
    "dense-d128-16k": dense(128, 16, False, 1.14, 1.08),
    "dense-d128-32k": dense(128, 32, False, 1.10, 1.08),
    "causal-d128-8k": dense(128, 8, True, 1.20, 1.15),
    "causal-d128-16k": dense(128, 16, True, 1.15, 1.08),
    "causal-d128-32k": dense(128, 32, True, 1.08, 1.05),
    "dense-d64-32k": dense(64, 32, False, 1.10, 1.08),
    "causal-d64-32k": dense(64, 32, True, 1.10, 1.08),

    "window-4096": sparse("causal & window(4095,0)", 32768, ("window", 4095),
                          ("x flex", 1.55, 1.45)),
    "window-1024": sparse("causal & window(1023,0)", 32768, ("window", 1023),
                          ("TFLOP/s", 560, 415),
                          note="FlashAttention-3 published 523 / 332 TFLOP/s"),
    "strided-blocks": sparse("strided_blocks(128,16,3)", 65536, ("strided", 128, 16, 3),
                             ("x flex", 1.6, 1.5)),
    "image-raster": sparse("grid(16,16)", 65536, **IMAGE,
                           note="in any order HRA is to reach 12 x the raster row of flex"),
    "image-hilbert": sparse("grid(16,16)", 65536, **IMAGE, goal=("x flex", 2.8, 2.0),
                            order="hilbert", second="boxes:8x8"),
    "video-raster": sparse("grid(4,8,8)", 131072, **VIDEO,
                           note="in any order HRA is to reach 6 x the raster row of flex"),
    "video-hilbert": sparse("grid(4,8,8)", 131072, **VIDEO, goal=("x flex", 3.7, 2.2),
                            order="hilbert", second="boxes:4x4x8"),
    "dilated-both": Case("dilated(16384,4,0,both)", 65536, 16, 128, GATHERED,
                         ("x gather+cudnn", 1.1, 1.1), second="residues:16384:4",
                         segment=(16384, 4, "both")),
    "dilated-hilbert": Case("slots(hilbert; dilated(4096,4,0,keys))", 32768, 16, 64,
                            (*GATHERED, "written-out"), ("ms", 0.40, 0.90), order="hilbert",
                            second="residues:4096:4:hilbert", segment=(4096, 4, "keys")),
    "natten-image": sparse("neighbourhood(80,80)", 65536, ("neighbourhood", 80, 80),
                           ("ms", 9.9, None), grid=(256, 256), heads=24, natural=True,
                           order="hilbert", second="boxes:8x8",
                           note="NATTEN published 16.2 ms + 2.4 ms of permutation, forward"),
    "natten-video": sparse("neighbourhood(18,24,24)", 115200, ("neighbourhood", 18, 24, 24),
                           ("ms", 34, None), grid=(30, 48, 80), heads=24, natural=True,
                           order="hilbert", second="boxes:2x8x4",
                           note="NATTEN published 79.0 ms + 5.4 ms of permutation, forward"),
}

RANKS_CASES = {
    "ranks-16k": over_ranks(16, False, 0.95),
    "ranks-causal-16k": over_ranks(16, True, 0.92),
    "ranks-64k": over_ranks(64, False, 0.99),
    "ranks-causal-64k": over_ranks(64, True, 0.98),
}


# ---- The same masks for FlexAttention, on slots whose tokens are given --------------------------

def flex_window(_case, _tokens, left):
    return lambda b, h, q, k: (q >= k) & (q - k <= left)


def flex_strided(_case, _tokens, size, stride, width):
    def allows(b, h, q, k):
        apart = q // size - k // size
        return (apart.abs() <= width) | (apart % stride == 0)
    return allows


def coordinates(case, tokens):
    """Of each slot's token, a tensor for each axis of the grid."""
    axes, rest = [], tokens
    for extent in reversed(case.grid):
        axes.insert(0, (rest % extent).int())
        rest = rest // extent
    return axes


def flex_near(case, tokens, *radius):
    def along(c, r):
        return lambda b, h, q, k: (c[q] - c[k]).abs() <= r
    return and_masks(*map(along, coordinates(case, tokens), radius))


def flex_neighbourhood(case, tokens, *extent):
    def along(c, n, length):
        first = (c - n // 2).clamp(0, length - n)
        return lambda b, h, q, k: (c[k] >= first[q]) & (c[k] - first[q] < n)
    return and_masks(*map(along, coordinates(case, tokens), extent, case.grid))


FLEX = {"window": flex_window, "strided": flex_strided, "near": flex_near,
        "neighbourhood": flex_neighbourhood}


# ---- Contestants --------------------------------------------------------------------------------

class Inputs:
    """q, k, v and the gradient of o, drawn once, the same on all ranks, in natural order and in
    those that are asked for, which may be only some of the rows."""

    def __init__(self, case, seed=1, change=lambda *tensors: tensors):
        torch.manual_seed(seed)
        shape = (1, case.heads, case.tokens, case.dim)
        drawn = [torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) for _ in range(4)]
        self.natural = list(change(*drawn))
        if on_ranks():  # GPUs of other sizes draw other numbers
            for tensor in self.natural:
                torch.distributed.broadcast(tensor, 0)
        self.ordered = {}

    def along(self, order, tokens):
        """In the order in which slots have these tokens; q, k and v want gradients."""
        if order not in self.ordered:
            tensors = self.natural
            if order != "identity":
                tensors = [t.index_select(2, tokens) for t in tensors]
            self.ordered[order] = wanting_gradients(tensors)
        return self.ordered[order]


def wanting_gradients(tensors):
    return [t.detach().requires_grad_(n < 3) for n, t in enumerate(tensors)]


class Contestant:
    """One way to compute a case. attend maps q, k, v to o; the gradient of o is given in o's shape;
    home makes natural order and shape (1, heads, tokens, dim) of o, home_gradient of the gradient
    of an input. around is a context for all its calls, plan HRA's. Where it computes on all ranks,
    alone is the name of who does the same on one GPU."""

    def __init__(self, name, attend, inputs, gradient, home, home_gradient=None,
                 around=contextlib.nullcontext, plan=None, alone=None):
        self.name, self.attend, self.inputs, self.around = name, attend, inputs, around
        self.gradient, self.home = gradient, home
        self.home_gradient = home_gradient or home
        self.ranks = torch.distributed.get_world_size() if alone else 1
        self.plan, self.alone = plan, alone
        self.o = None

    def forward(self):
        with self.around():
            return self.attend(*self.inputs)

    def backward(self):
        with self.around():
            return torch.autograd.grad(self.o, self.inputs, self.gradient, retain_graph=True)

    def check(self):
        """Once the stream is done: raises what has failed meanwhile."""
        if self.plan:
            self.plan.comm.wait()

    def results(self, passes):
        """What it computes, in natural order: o and, where backward is asked for, its gradients."""
        self.o = self.forward()
        results = [self.home(self.o.detach())]
        if "backward" in passes:
            results += [self.home_gradient(g) for g in self.backward()]
        return results


def homeward(tokens):
    """Back from slots to tokens."""
    slots = torch.empty_like(tokens).index_copy_(0, tokens, torch.arange(len(tokens)).to(tokens))
    return lambda tensor: tensor.index_select(2, slots)


@contextlib.contextmanager
def deterministic():
    """PyTorch's deterministic algorithms, but without its filling of new tensors, which takes
    time."""
    settings = torch.utils.deterministic
    fill, settings.fill_uninitialized_memory = settings.fill_uninitialized_memory, False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        settings.fill_uninitialized_memory = fill


def fused(kind, **options):
    """scaled_dot_product_attention by one kind of kernel and no other."""
    def attend(q, k, v):
        with sdpa_kernel(kind):
            return scaled_dot_product_attention(q, k, v, **options)
    return attend


def written_out(q, k, v, is_causal=False):
    """By matrix products and softmax, differentiated by autograd."""
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    if is_causal:
        shape = scores.shape[2:]
        later = torch.ones(shape, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    return torch.softmax(scores, -1) @ v


KERNEL_KINDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
KERNELS = {name: fused(kind) for name, kind in KERNEL_KINDS.items()}


def make_dense(name, case, inputs, tokens):
    causal = case.mask == "causal"
    attend = (functools.partial(written_out, is_causal=causal) if name == "written-out" else
              fused(KERNEL_KINDS[name.partition("-")[0]], is_causal=causal))
    *qkv, gradient = inputs.along(case.order, tokens)
    around = deterministic if name.endswith("-det") else contextlib.nullcontext
    return Contestant(name, attend, qkv, gradient, homeward(tokens), around=around)


def make_flex(name, case, inputs, tokens):
    kind, *numbers = case.flex
    allows = FLEX[kind](case, tokens, *numbers)
    blocks = torch.compile(create_block_mask)(allows, None, None, case.tokens, case.tokens,
                                              DEVICE, BLOCK)
    flex = torch.compile(flex_attention, dynamic=False)
    *qkv, gradient = inputs.along(case.order, tokens)
    return Contestant(name, lambda q, k, v: flex(q, k, v, block_mask=blocks), qkv, gradient,
                      homeward(tokens))


def make_gathered(name, case, inputs, tokens):
    """Every r-th token of each segment is gathered, and the segments become sequences of a
    batch."""
    size, rate, mode = case.segment
    attend = KERNELS.get(name.removeprefix("gather+"), written_out)
    step = rate if mode == "both" else 1  # of the queries

    def cut(t, every):
        segments = t.unflatten(2, (-1, size))[:, :, :, ::every]
        return segments.flatten(0, 2).unsqueeze(1)

    def whole(o):
        out = torch.zeros(1, case.heads, case.tokens, case.dim, dtype=o.dtype, device=o.device)
        out.unflatten(2, (-1, size))[:, :, :, ::step] = o.squeeze(1).unflatten(
            0, (1, case.heads, case.tokens // size))
        return out
    *qkv, gradient = inputs.along(case.order, tokens)
    back = homeward(tokens)
    return Contestant(name, lambda q, k, v: attend(cut(q, step), cut(k, rate), cut(v, rate)), qkv,
                      cut(gradient, step), lambda o: back(whole(o)), back)


def turned(t):
    """(batch, heads, tokens, dim) as (batch, tokens, heads, dim) or the other way, not copied."""
    return t.transpose(1, 2)


def make_hra(name, case, inputs, tokens):
    order = name.removeprefix("hra").strip() or case.order
    if case.natural or order == "natural":
        order = case.second if order == "natural" else order
        module = hra_torch.HraAttention(case.mask, order=order, grid=case.grid or None,
                                        backend=BACKEND)
        *qkv, gradient = inputs.along("identity", None)
        return Contestant(name, lambda *t: turned(module(*map(turned, t))), qkv, gradient,
                          lambda t: t)
    if order == "cublas":
        order, plan = case.order, plan_of(case, case.order, BACKEND, backward="cublas")
    else:
        plan = plan_of(case, order, BACKEND)
    tokens = plan.row_index()[1]
    *qkv, gradient = inputs.along(order, tokens)
    return Contestant(name, lambda *t: turned(hra_torch.hra_attention(*map(turned, t), plan)), qkv,
                      gradient, homeward(tokens), plan=plan)


def plan_of(case, order, backend=None, comm=None, backward="auto"):
    return hra_torch.Plan(case.mask, tokens=case.tokens, heads=case.heads, dim=case.dim,
                          order=order, grid=case.grid or None, dtype=torch.bfloat16,
                          backend=backend, comm=comm, backward=backward)


def make_written_out(name, case, inputs, tokens):
    maker = make_gathered if case.segment else make_dense
    return maker(name, case, inputs, tokens)


MAKERS = {**{name: make_dense for name in DENSE}, "flex": make_flex,
          **{name: make_gathered for name in GATHERED}, "written-out": make_written_out}


# ---- Contestants on several ranks ---------------------------------------------------------------

def on_ranks():
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class Split:
    """A case on several ranks: what its contestants share. comms are HRA's, by transport."""

    def __init__(self, case, inputs, comms):
        # Not in every PyTorch.
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor.experimental import _attention
        self.parallel = _attention
        self.mesh = init_device_mesh(DEVICE, (torch.distributed.get_world_size(),))
        self.case, self.inputs, self.comms = case, inputs, comms
        self.whole = torch.arange(case.tokens, device=DEVICE)
        # Of this rank, while context_parallel holds.
        self.tokens = self.whole.clone()
        self.shards = [t.clone() for t in inputs.natural]

    @contextlib.contextmanager
    def sharded(self):
        """Around everything, also around contestants that do not call the function that
        context_parallel patches: to enter and leave takes copies of all tensors."""
        self.parallel._cp_options.enable_load_balance = self.case.mask == "causal"
        buffers = [*self.shards, self.tokens]
        with self.parallel.context_parallel(self.mesh, buffers=buffers,
                                            buffer_seq_dims=[2] * len(self.shards) + [0],
                                            no_restore_buffers=set(buffers)):
            yield

    def together(self, tokens):
        """The whole, made of the rows of all ranks; this one's are those of `tokens`."""
        def home(rows):
            whole = torch.zeros_like(self.inputs.natural[0]).index_copy_(2, tokens, rows)
            torch.distributed.all_reduce(whole)
            return whole
        return home

    def make(self, name):
        kind, rest = name.split("-", 1)
        if kind == "cp":
            return self.make_parallel(name, *rest.split("-"))
        if kind == "hra":
            transport, _, layout = rest.partition("-")
            return self.make_hra(name, self.comms.get(transport), layout == "rows")
        return make_dense(name, self.case, self.inputs, self.whole)

    def make_parallel(self, name, kernel, way):
        method = {"ring": "alltoall", "gather": "allgather"}[way]
        causal = self.case.mask == "causal"

        def attend(q, k, v):
            # The function that context_parallel has patched, not the one imported above.
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

        @contextlib.contextmanager
        def around():
            self.parallel.set_rotate_method(method)
            with sdpa_kernel(KERNEL_KINDS[kernel]):
                yield
        *qkv, gradient = wanting_gradients(self.shards)
        return Contestant(name, attend, qkv, gradient, self.together(self.tokens), around=around,
                          alone=f"{kernel}-alone")

    def make_hra(self, name, comm, by_rows):
        plan = plan_of(self.case, "identity", BACKEND, comm)
        tensors = self.inputs.along(name if comm else "identity", plan.row_tokens)
        if by_rows:
            tensors = wanting_gradients([turned(turned(t).contiguous()) for t in tensors])
        *qkv, gradient = tensors
        home = self.together(plan.row_tokens) if comm else homeward(self.whole)
        return Contestant(name, lambda *t: turned(hra_torch.hra_attention(*map(turned, t), plan)),
                          qkv, gradient, home, plan=plan, alone="hra-alone" if comm else None)


# ---- Checking and timing ------------------------------------------------------------------------

def distance(result, reference):
    """The largest difference over runs of 128 rows of a head, relative to the reference there."""
    def norms(t):
        return t.float().unflatten(2, (-1, BLOCK)).flatten(3).norm(dim=3)
    size = norms(reference)
    apart = norms(result.float() - reference.float())
    return (apart / size.clamp_min(0.01 * size.mean())).max().item()


def time_in_turn(calls, rounds):
    """Milliseconds of each call, sorted, from `rounds` rounds in which each has its turn; of each
    round those of the slowest rank. Turns are drawn anew each round: a call that follows one which
    spares the GPU's power may find it at a higher clock."""
    here = torch.zeros(1, device=DEVICE)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=DEVICE)
    events = {name: [] for name in calls}
    for turn in range(-WARM_UP, rounds):
        order = random.Random(turn).sample(list(calls.items()), len(calls))  # alike on all ranks
        for name, call in order:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()  # also keeps the GPU busy while the call is prepared
            if on_ranks():
                torch.distributed.all_reduce(here)  # the GPUs wait for each other, the hosts do not
            begin.record()
            call()
            end.record()
            if turn >= 0:
                events[name].append((begin, end))
    clock = sm_clock()  # while the last calls run, or just after
    torch.cuda.synchronize()
    ranks = hra_torch.of_all({name: [b.elapsed_time(e) for b, e in pairs]
                              for name, pairs in events.items()})
    return {name: sorted(map(max, zip(*(ms[name] for ms in ranks)))) for name in calls}, clock


def smi(query):
    """What nvidia-smi says of our GPU, "" without it."""
    uuid = f"GPU-{torch.cuda.get_device_properties(DEVICE).uuid}"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", "-i", uuid]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30,
                              check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def sm_clock():
    """MHz now, None where it is not known."""
    clock = smi("clocks.sm")
    return int(clock) if clock.isdigit() else None


def reason(error, caught=()):
    """One line for a failure. Where PyTorch has no kernel for a call its warnings say why, besides
    naming the kernels that are not asked for."""
    lines = [str(error) or type(error).__name__]
    if "No available kernel" in lines[0]:
        lines += [str(w.message) for w in caught]
    lines = [line.strip().split("\n")[0][:200] for line in lines]
    return " ".join(line for line in lines
                    if "not used because" not in line and "runtime disabled" not in line)


def try_out(name, make, passes):
    """The contestant and its results."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            contestant = make(name)
            results = contestant.results(passes)
            torch.cuda.synchronize()
            contestant.check()
            return contestant, results
        except Exception as error:
            raise RuntimeError(reason(error, caught)) from error


def admit(names, make, passes, say):
    """Those contestants that run and agree with the first peer, on all ranks."""
    admitted, reference, first = [], None, None
    for name in names:
        failed = None
        try:
            contestant, results = try_out(name, make, passes)
        except RuntimeError as error:
            failed = str(error)
        failed = next(filter(None, hra_torch.of_all(failed)), None)
        if failed:
            say(what=name, failed=failed)
            continue
        if reference is None and not name.startswith("hra"):
            reference, first = results, name
        off = [distance(r, t) for r, t in zip(results, reference)] if reference else []
        off = sum(hra_torch.of_all(off), [])
        if not all(x <= LIMIT for x in off):  # not a number is no agreement
            say(what=name, failed=f"not timed: differs from {first} by {max(off):.3g}, more than "
                f"{LIMIT}")
            continue
        contestant.off = max(off) if reference else None
        admitted.append(contestant)
    return admitted


# ---- Reporting ----------------------------------------------------------------------------------

def rate(case, plan, which, ms):
    """TFLOP/s over the pairs that attend, which the plan sums over the heads."""
    return (4 if which == "forward" else 10) * plan.info["pairs_live"] * case.dim / ms * 1e-9


def lines_of(case, plan, which, times, clock, admitted):
    """One line for each contestant of a pass."""
    median = {name: statistics.median(ms) for name, ms in times.items()}
    lines = []
    for contestant in admitted:
        name = contestant.name
        ms = times[name]
        quartiles = statistics.quantiles(ms, n=4) if len(ms) > 1 else ms * 3
        line = {"what": name, "pass": which, "median_ms": median[name], "min_ms": ms[0],
                "max_ms": ms[-1], "quartiles_ms": [quartiles[0], quartiles[2]], "runs": len(ms),
                "tflops": rate(case, plan, which, median[name]) / contestant.ranks,
                "sm_mhz": clock, "distance": contestant.off}
        if contestant.alone in median:
            line["efficiency"] = median[contestant.alone] / (contestant.ranks * median[name])
        if contestant.plan and on_ranks():
            line["ran"] = {what: contestant.plan.info[what]
                           for what in ("backend", "backward", "transport", "shard")}
        if name.startswith("hra"):
            line["speed_over"] = {peer.name: median[peer.name] / median[name] for peer in admitted
                                  if not peer.name.startswith("hra")
                                  and peer.ranks == contestant.ranks}
            if case.goal and (contestant.alone or not on_ranks()):
                line["goal"] = {"unit": case.goal[0],
                                "value": case.goal[1 if which == "forward" else 2]}
        lines.append(line)
    return lines


def row(line):
    """A line of the table."""
    if "failed" in line:
        return f"  {line['what']:{WIDTH}}{line['failed']}"
    over = [f"{ratio:.2f} x {peer}" for peer, ratio in line.get("speed_over", {}).items()]
    if "efficiency" in line:
        over.insert(0, f"efficiency {line['efficiency']:.3f}")
    over = ", ".join(over)
    goal = line.get("goal", {})
    if goal.get("value") is not None:
        over += f"  (goal: {goal['value']} {goal['unit']})"
    if "ran" in line:
        over += "  [" + ", ".join(f"{what} {value}" for what, value in line["ran"].items()) + "]"
    text = (f"  {line['what']:{WIDTH}}{line['pass']:9}{line['median_ms']:9.3f}"
            f"{line['min_ms']:9.3f}{line['max_ms']:9.3f}{line['tflops']:9.1f}  {over}")
    return text.rstrip()


def machine():
    """What every figure depends on."""
    ranks = {"ranks": torch.distributed.get_world_size(),
             "nccl": ".".join(map(str, torch.cuda.nccl.version()))} if on_ranks() else {}
    return {"gpu": torch.cuda.get_device_name(), "driver": smi("driver_version"),
            "sm_max_mhz": smi("clocks.max.sm"), "torch": torch.__version__,
            "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
            "hra": hra_torch.VERSION, **ranks,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}


def tell(text):
    """On one rank."""
    if not on_ranks() or torch.distributed.get_rank() == 0:
        print(text, flush=True)


def report(name, about, file, **line):
    """A line of a case to the table and the file, on one rank."""
    if on_ranks() and torch.distributed.get_rank() > 0:
        return
    print(row(line), flush=True)
    if file:
        with open(file, "a") as lines:
            print(json.dumps({"case": name, **line, **about}), file=lines)


def run(name, case, options, say):
    """One case. Returns whether HRA did all that it should."""
    variants = ["hra"] + [f"hra {case.second}"] * bool(case.second)
    variants += ["hra natural"] * bool(case.segment) + ["hra cublas"] * case.methods
    names = [peer for peer in case.peers if peer in options.peers] + variants
    plan = plan_of(case, case.order, "cpu")  # knows the pairs and the order, and computes nothing
    tokens = plan.row_index()[1].to(DEVICE)
    print(f"\n{name}: {case.mask}, {case.tokens} tokens, {case.heads} heads of {case.dim}, bf16; "
          f"{plan.info['pairs_live'] / plan.info['pairs_all']:.3g} of the pairs, order {case.order}"
          + (f"\n  {case.note}" if case.note else "")
          + (", HRA with its reordering" if case.natural else ""), flush=True)

    inputs = Inputs(case)

    def make(name):
        maker = make_hra if name.startswith("hra") else MAKERS[name]
        return maker(name, case, inputs, tokens)
    return contest(case, plan, names, make, options, say) >= set(variants)


def contest(case, plan, names, make, options, say):
    """Names of those that were admitted and timed."""
    passes = ("forward",) if options.out_only else ("forward", "backward")
    admitted = admit(names, make, passes, say)
    for which in passes:
        calls = {c.name: getattr(c, which) for c in admitted}
        times, clock = time_in_turn(calls, options.repeat)
        for contestant in admitted:
            contestant.check()
        for line in lines_of(case, plan, which, times, clock, admitted):
            say(**line)
    return {c.name for c in admitted}


def run_over_ranks(name, case, options, say, comms):
    """One case on several ranks. Returns whether HRA did all that it should."""
    plan = plan_of(case, "identity", "cpu")
    variants = ["hra-alone", *(f"hra-{transport}{layout}" for transport in comms
                               for layout in ("", "-rows"))]
    names = [peer for peer in case.peers if peer in options.peers] + variants
    tell(f"\n{name}: {case.mask}, {case.tokens} tokens, {case.heads} heads of {case.dim}, bf16, "
         f"over {torch.distributed.get_world_size()} ranks")
    split = Split(case, Inputs(case), comms)
    with split.sharded():
        return contest(case, plan, names, split.make, options, say) >= set(variants)


# ---- Errors -------------------------------------------------------------------------------------

ERROR_SEEDS = 8
ERROR_GOAL = 1.05  # times cuDNN's
ERROR_CASES = {f"{mask}-d{dim}": Case(mask, 2048, 4, dim, ("cudnn", "flash"))
               for mask in ("full", "causal") for dim in (128, 64)}
CHANGES = {
    "as drawn": lambda q, k, v, gradient: (q, k, v, gradient),
    "times 8": lambda q, k, v, gradient: (8 * q, 8 * k, 8 * v, gradient),
    # Every score is some 256 sqrt(dim) less.
    "scores far below 0": lambda q, k, v, gradient: (q + 16, k - 16, v, gradient),
}


def exact(case, inputs):
    """Output and gradients in double."""
    *qkv, gradient = wanting_gradients([t.double() for t in inputs.natural])
    q, k, v = qkv
    scores = q @ k.transpose(2, 3) / math.sqrt(case.dim)
    if case.mask == "causal":
        above = torch.ones(case.tokens, case.tokens, dtype=torch.bool, device=DEVICE).triu(1)
        scores = scores.masked_fill(above, -math.inf)
    o = torch.softmax(scores, -1) @ v
    return [o.detach(), *torch.autograd.grad(o, qkv, gradient)]


def errors_of(name, case, change, passes):
    """Means over seeds, of o and, where backward is asked for, dq, dk, dv."""
    whole, seeds = torch.arange(case.tokens, device=DEVICE), []
    for seed in range(ERROR_SEEDS):
        inputs = Inputs(case, seed, change)
        make = make_hra if name == "hra" else make_dense
        _, results = try_out(name, lambda name: make(name, case, inputs, whole), passes)
        seeds.append([((result.double() - true).norm() / true.norm()).item()
                      for result, true in zip(results, exact(case, inputs))])
    return [statistics.mean(of_one) for of_one in zip(*seeds)]


def run_errors(options, about):
    """Returns whether HRA failed, or is further off than it may be."""
    passes = ("forward",) if options.out_only else ("forward", "backward")
    failed = False
    for (name, case), (what, change) in itertools.product(ERROR_CASES.items(), CHANGES.items()):
        print(f"\n{name}, {case.tokens} tokens, {case.heads} heads, inputs {what}")
        found = {}
        for contestant in (*case.peers, "hra"):
            try:
                found[contestant] = errors_of(contestant, case, change, passes)
            except RuntimeError as error:
                failed |= contestant == "hra"
                print(f"  {contestant:17}{error}")
        over = [e / c for e, c in zip(found.get("hra", ()), found.get("cudnn", ()))]
        failed |= not all(ratio <= ERROR_GOAL for ratio in over)
        for contestant, errors in found.items():
            print(f"  {contestant:17}" + "".join(f"  {of} {error:.3e}" for of, error
                                                 in zip(("o", "dq", "dk", "dv"), errors)))
            if options.json:
                with open(options.json, "a") as lines:
                    print(json.dumps({"case": name, "inputs": what, "what": contestant,
                                      "errors": errors, **about}), file=lines)
        if over:
            print("  hra / cudnn      " + "".join(f"  {of} {ratio:<9.3f}" for of, ratio
                                                  in zip(("o", "dq", "dk", "dv"), over)).rstrip()
                  + f"  (goal: {ERROR_GOAL})", flush=True)
    return failed


def clear():
    """Give memory and compiled code back; False where the GPU can no longer be used by this
    process."""
    gc.collect()
    torch._dynamo.reset()
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def run_all_over_ranks(options, about):
    comms = {transport: hra_torch.Comm.over(transport=transport, timeout=options.timeout)
             for transport in options.transport}
    failed = False
    for name in options.case:
        say = functools.partial(report, name, about, options.json)
        try:
            failed |= not run_over_ranks(name, RANKS_CASES[name], options, say, comms)
        except Exception as error:
            say(what="the case", failed=f"on rank {torch.distributed.get_rank()}: {reason(error)}")
            raise  # the other ranks may be anywhere
        clear()
    for comm in comms.values():
        comm.destroy()
    torch.distributed.destroy_process_group()
    return failed


def run_all(options, about):
    failed = options.failed
    for done, name in enumerate(options.case, 1):
        say = functools.partial(report, name, about, options.json)
        try:
            failed |= not run(name, CASES[name], options, say)
        except Exception as error:
            say(what="the case", failed=reason(error))
            failed = True
        if not clear() and options.case[done:]:
            print("the GPU is lost to this process: the other cases go on in a new one", flush=True)
            rest = ["--failed", "--repeat", str(options.repeat), "--peers", *options.peers,
                    *["--out-only"] * options.out_only, "--backend", options.backend,
                    "--case", *options.case[done:]]
            if options.json:
                rest += ["--json", options.json]
            os.execv(sys.executable, [sys.executable, __file__, *rest])
    return failed


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", metavar="NAME", choices=[*CASES, *RANKS_CASES],
                        help="only these cases")
    parser.add_argument("--list", action="store_true", help="what cases there are")
    parser.add_argument("--repeat", type=int, default=20, metavar="N",
                        help="rounds that count, after %d that do not (default 20)" % WARM_UP)
    parser.add_argument("--json", metavar="FILE",
                        help="a line for each contestant and pass is appended to it")
    peers = [*MAKERS, *ALONE, *SPLIT]
    parser.add_argument("--peers", nargs="*", metavar="NAME", choices=peers, default=peers,
                        help="only these beside HRA, of " + ", ".join(peers))
    parser.add_argument("--out-only", action="store_true", help="no backward")
    parser.add_argument("--backend", choices=("gpu", "cuda", "sm90"), default="gpu",
                        help="HRA's (default gpu)")
    parser.add_argument("--errors", action="store_true",
                        help="errors instead of times; no cases are chosen")
    parser.add_argument("--ranks", action="store_true",
                        help="the cases for several ranks; under torchrun, a GPU for each")
    parser.add_argument("--transport", nargs="+", metavar="NAME", choices=hra_torch.TRANSPORTS,
                        default=["auto"], help="with --ranks: HRA over each of these, of "
                        + ", ".join(hra_torch.TRANSPORTS) + " (default auto)")
    parser.add_argument("--timeout", type=float, default=120, metavar="S",
                        help="with --ranks: seconds that HRA waits for a rank (default 120)")
    parser.add_argument("--failed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.repeat < 1:
        parser.error("--repeat must be 1 or more")
    if options.errors and (options.ranks or options.case):
        parser.error("--errors has cases of its own, on one rank")
    table = RANKS_CASES if options.ranks else CASES
    options.case = options.case or list(table)
    for name in options.case:
        if name not in table:
            parser.error(f"{name} is a case {'without' if options.ranks else 'for'} --ranks")
    if not options.list and options.ranks != hra_torch.under_torchrun():
        parser.error("--ranks and torchrun go together: "
                     "torchrun --nproc-per-node 2 examples/tools/compare.py --ranks")
    return options


def main():
    global BACKEND
    options = parse()
    BACKEND = options.backend
    if options.list:
        for name, case in {**CASES, **RANKS_CASES}.items():
            print(f"{name:17}{case.tokens:7} tokens {case.heads:3} x {case.dim:3}  {case.mask}"
                  f"  [{', '.join(case.peers)}]")
        return 0
    if not torch.cuda.is_available():
        sys.exit("compare.py: PyTorch finds no GPU here")
    if options.ranks:
        hra_torch.join()
        if torch.distributed.get_world_size() < 2:
            sys.exit("compare.py: --ranks compares two ranks or more; torchrun has started one")
    about = machine()
    if options.errors:
        tell(", ".join(f"{key} {value}" for key, value in about.items()))
        return int(run_errors(options, about))
    tell(", ".join(f"{key} {value}" for key, value in about.items()))
    tell(f"medians of {options.repeat} runs in turn after {WARM_UP} more, L2 overwritten before "
         f"each{', the slowest rank of each' * options.ranks}\n"
         f"  {'':{WIDTH + 9}}{'median':>9}{'least':>9}{'most':>9}{'TFLOP/s':>9}  HRA's speed over\n"
         f"  {'':{WIDTH + 9}}{'ms':>9}{'ms':>9}{'ms':>9}{'a GPU' * options.ranks:>9}".rstrip())
    return 1 if (run_all_over_ranks if options.ranks else run_all)(options, about) else 0


if __name__ == "__main__":
    sys.exit(main())
