#!/usr/bin/env python3
"""scaling.py - hra-bench over numbers of ranks: weak and strong sweeps, one JSON file, plots.

    examples/scaling/scaling.py --list
    examples/scaling/scaling.py --ranks 1,2,4,8,16 --launch 'mpirun --hostfile hosts' CASE...
    examples/scaling/scaling.py --plot

A strong sweep does one case on more and more ranks. A weak sweep gives every rank as many rows as
the case has on one: on n ranks n times the tokens, and on a grid n times the slowest axis; lengths
of the mask stay. Both begin with the same run of one rank. The measure of both is

    efficiency = rate of a rank / rate of a rank in the sweep's smallest run

where the rate counts pairs that attend. In a strong sweep from one rank that is t1 / (n tn); in a
weak one it is t1 / tn where the work of a rank stays the same, as with windows and grids. With
`full` and `causal` every row has n times the pairs there: tn grows by design, and the rate is what
can be compared. A dilated segment that is longer than the tokens of one rank lies between.

Every run is in OUT/scaling.json as soon as it is done, with what failed and why, and is not done
again unless --again asks for it; a run that takes longer than --limit is stopped. Then OUT has for
each case and sweep CASE-strong.svg or CASE-weak.svg. Exit status: 0; 1 where a run failed; 2 where
nothing could be done. README.md has recipes for hostfiles and Slurm."""

import argparse
import contextlib
import dataclasses
import datetime
import fcntl
import fractions
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import typing

from figures import draw_sweep

FORMAT = 1  # of scaling.json
KINDS = ("strong", "weak")
BACKENDS = ("cpu", "gpu", "cuda", "sm90")  # gpu: the faster of the other two that can do the case
PASSES = ("forward", "backward")
TRANSPORTS = ("mpi", "gpu", "nccl", "peer")
GRACE_S = 15  # for mpirun to stop its ranks, or --limit if that is shorter
HERE = pathlib.Path(__file__).resolve().parent


def die(why):
    print(f"scaling.py: {why}", file=sys.stderr)
    sys.exit(2)


# ---- Cases --------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Case:
    shape: tuple             # tokens, or the extents of a grid, slowest axis first
    mask: typing.Callable    # of a function that scales a length, to the mask's text
    heads: int = 16
    heads_kv: int = 0        # 0: as heads
    dim: int = 128
    order: typing.Callable = lambda n: "identity"  # as mask

    def options(self, scale, heads, times):
        """hra-bench's words for this case, scaled, of `times` the tokens."""
        factor = float(scale) ** (1 / len(self.shape))
        shape = [max(1, round(extent * factor)) for extent in self.shape]
        shape[0] *= times

        def scaled(length):
            return max(1, round(length * factor))
        kv = self.heads_kv or self.heads
        return ["--tokens" if len(shape) == 1 else "--grid", "x".join(map(str, shape)),
                "--mask", self.mask(scaled), "--order", self.order(scaled), "--dim", str(self.dim),
                "--heads", str(heads or self.heads),
                "--kv-heads", str(max(1, heads * kv // self.heads) if heads else kv)]


def dense(mask, thousands, dim=128, **more):
    more.setdefault("heads", 2048 // dim)
    return Case((thousands * 1024,), lambda n: mask, dim=dim, **more)


def image(mask, order="identity", side=256, **more):
    return Case((side, side), mask, order=lambda n: order, **more)


def video(mask, order="identity", shape=(32, 64, 64), **more):
    return Case(shape, mask, order=lambda n: order, **more)


def dilated_both(order):
    return Case((65536,), lambda n: f"dilated({n(16384)},4,0,both)", order=order)


def dilated_hilbert(order):
    return Case((32768,), lambda n: f"slots(hilbert; dilated({n(4096)},4,0,keys))", dim=64,
                order=order)


# Lengths that are tiles and not a part of the sequence, as the 128 of strided blocks, do not scale.
CASES = {
    **{f"dense-d128-{k}k": dense("full", k) for k in (8, 16, 32, 64)},
    **{f"causal-d128-{k}k": dense("causal", k) for k in (8, 16, 32, 64)},
    "dense-d64-32k": dense("full", 32, 64),
    "causal-d64-32k": dense("causal", 32, 64),
    "causal-gqa-8k": dense("causal", 8, heads=64, heads_kv=8),
    "window-4096": Case((32768,), lambda n: f"causal & window({n(4096) - 1},0)"),
    "window-1024": Case((32768,), lambda n: f"causal & window({n(1024) - 1},0)"),
    "strided-blocks": Case((65536,), lambda n: "strided_blocks(128,16,3)"),
    "image-raster": image(lambda n: f"grid({n(16)},{n(16)})"),
    "image-hilbert": image(lambda n: f"grid({n(16)},{n(16)})", "hilbert"),
    "image-boxes": image(lambda n: f"grid({n(16)},{n(16)})", "boxes:8x16"),
    "image-1m-hilbert": image(lambda n: f"grid({n(16)},{n(16)})", "hilbert", 1024),
    "image-1m-boxes": image(lambda n: f"grid({n(16)},{n(16)})", "boxes:8x16", 1024),
    "video-raster": video(lambda n: f"grid({n(4)},{n(8)},{n(8)})"),
    "video-hilbert": video(lambda n: f"grid({n(4)},{n(8)},{n(8)})", "hilbert"),
    "video-boxes": video(lambda n: f"grid({n(4)},{n(8)},{n(8)})", "boxes:4x4x8"),
    "dilated-both": dilated_both(lambda n: "identity"),
    "dilated-both-residues": dilated_both(lambda n: f"residues:{n(16384)}:4"),
    "dilated-hilbert": dilated_hilbert(lambda n: "hilbert"),
    "dilated-hilbert-residues": dilated_hilbert(lambda n: f"residues:{n(4096)}:4:hilbert"),
    "natten-image": image(lambda n: f"neighbourhood({n(80)},{n(80)})", "hilbert", heads=24),
    "natten-video": video(lambda n: f"neighbourhood({n(18)},{n(24)},{n(24)})", "hilbert",
                          (30, 48, 80), heads=24),
}


# ---- The file of results ------------------------------------------------------------------------

class Results:
    """OUT/scaling.json: the settings that all runs share, and the runs. One process at a time."""

    def __init__(self, folder):
        self.path = folder / "scaling.json"
        self.settings = None
        self.runs = {}  # by key()
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as why:
            die(f"cannot read {self.path}: {why}")
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                die(f"{self.path} has format {data['format']}, this program reads {FORMAT}")
            self.settings = data["settings"]
            self.runs = {key(run): run for run in data["runs"]}
            list(sweeps(self.runs.values()))  # finds out what is missing in them
            describe("", "", self.settings)
        except (ValueError, LookupError, TypeError, AttributeError) as why:
            die(f"{self.path} is no file of results: {why!r}; nothing was changed")

    def settle(self, settings):
        """Take these settings, which must be those of runs that are there."""
        for name in settings if self.runs else ():
            if self.settings.get(name) != settings[name]:
                die(f"{self.path} was made with {name} {self.settings.get(name)!r}, this run has "
                    f"{settings[name]!r}: choose another --out")
        self.settings = settings

    def add(self, run):
        self.runs[key(run)] = run
        self.save()

    def save(self):
        data = {"format": FORMAT, "settings": self.settings, "runs": list(self.runs.values()),
                "points": [point for sweep in sweeps(self.runs.values()) for point in sweep.points]}
        try:
            write_whole(self.path, json.dumps(data, indent=1) + "\n")
        except OSError as why:
            die(f"cannot write {self.path}: {why}")


def write_whole(path, text):
    """Replace a file, all of it or not at all."""
    draft = path.with_name(f".{path.name}.draft")
    with open(draft, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def key(run):
    return run["case"], run["kind"], run["transport"], run["ranks"]


@contextlib.contextmanager
def alone_in(folder):
    """No other process writes results there meanwhile."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError as why:
        die(f"cannot write in {folder}: {why}")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        die(f"another scaling.py is at work in {folder}")
    try:
        yield
    finally:
        os.close(lock)


# ---- What the runs come to ----------------------------------------------------------------------

@dataclasses.dataclass
class Sweep:
    case: str
    kind: str
    transport: str
    points: list   # of both passes, by ranks: what draw_sweep and the JSON file show
    missing: list  # runs that failed


def sweeps(runs):
    """All sweeps of which there is a run with several ranks, or a lonely run of one."""
    found = {}
    for run in runs:
        if run["kind"] is not None:
            found.setdefault((run["case"], run["kind"], run["transport"]), []).append(run)
    for run in runs:
        if run["kind"] is not None:
            continue
        own = [sweep for name, sweep in found.items() if name[0] == run["case"]]
        for sweep in own or [found.setdefault((run["case"], "strong", "none"), [])]:
            sweep.append(run)
    for name, of_sweep in sorted(found.items()):
        of_sweep.sort(key=lambda run: run["ranks"])
        done = [run for run in of_sweep if run["status"] == "ok"]
        yield Sweep(*name, [point for way in PASSES for point in points(name, way, done)],
                    [run for run in of_sweep if run["status"] != "ok"])


def points(name, way, runs):
    """One pass of a sweep over the numbers of ranks."""
    first = None
    for run in runs:
        row = [row for row in run["rows"] if row["what"] == way][0]
        first = first or row
        time_s, ranks = row["median_s"], row["ranks"]
        if name[1] == "strong":
            efficiency = first["ranks"] * first["median_s"] / (ranks * time_s)
        else:
            rate = first["gflops_live_pairs"]
            efficiency = row["gflops_live_pairs"] / rate if rate > 0 else None
        point = {"case": name[0], "kind": name[1], "transport": name[2], "pass": way,
                 "ranks": ranks, "nodes": row.get("nodes"), "backend": row["backend"],
                 "time_s": time_s, "min_s": row["min_s"], "max_s": row["max_s"],
                 "gflops_a_rank": row["gflops_live_pairs"], "efficiency": efficiency,
                 "efficiency_against_ranks": first["ranks"],
                 "speed_up": first["median_s"] / time_s}
        if ranks > 1:
            point.update(transfers(row, first, efficiency))
        yield point


def transfers(row, first, efficiency):
    """What travels to a rank in a pass: how long it takes by itself, and how much of that shows."""
    found = {"bytes_received": row["bytes_received"], "transfer_s": row["transfer_s"],
             "exposed_s": row.get("exposed_s"), "exposed_against": "alone",
             "efficiency_against_alone": row.get("efficiency")}
    by_sweep = first["ranks"] == 1 and efficiency is not None and "balance" in row
    if found["exposed_s"] is None and by_sweep:
        # Beside the busiest rank's share of the work at the rate of the run of one rank.
        found.update(exposed_s=row["median_s"] * (1 - row["balance"] * efficiency),
                     exposed_against="sweep")
    if found["exposed_s"] is None:
        found["exposed_against"] = None
    else:
        found["hidden_s"] = max(0.0, row["transfer_s"] - max(0.0, found["exposed_s"]))
    return found


def report(sweep):
    """A table. ~ beside what is exposed: taken from the sweep's run of one rank."""
    on_gpus = sweep.points[0]["backend"] != "cpu"
    unit, scale = ("TFLOP/s a GPU", 1e-3) if on_gpus else ("GFLOP/s a rank", 1)
    heads = "ranks", "nodes", "ms", unit, "efficiency", "transfer ms", "exposed ms", "hidden ms"
    print(f"\n{sweep.case}, {sweep.kind}, transport {sweep.transport}")
    print(f"{'':10}" + "".join(f"{head:>15}" for head in heads))
    for p in sweep.points:
        cells = [p["ranks"], p["nodes"] or "-", f"{p['time_s'] * 1e3:.3f}",
                 f"{p['gflops_a_rank'] * scale:.1f}",
                 "-" if p["efficiency"] is None else f"{p['efficiency']:.3f}"]
        for name in ("transfer_s", "exposed_s", "hidden_s"):
            about = "~" if name == "exposed_s" and p.get("exposed_against") == "sweep" else ""
            cells.append("-" if p.get(name) is None else f"{about}{p[name] * 1e3:.3f}")
        print(f"{p['pass']:10}" + "".join(f"{cell:>15}" for cell in cells))
    for run in sweep.missing:
        print(f"{'not timed':10}{run['ranks']:15}   {run['why']}")


def plot(results, folder):
    """Tables to stdout, a figure for each case and kind."""
    figures = {}
    for sweep in sweeps(results.runs.values()):
        if sweep.points:
            report(sweep)
        figures.setdefault((sweep.case, sweep.kind), []).append(sweep)
    print()
    for (case, kind), of_figure in figures.items():
        path = folder / f"{case}-{kind}.svg"
        try:
            what = describe(case, kind, results.settings)
            write_whole(path, draw_sweep(case, kind, of_figure, what))
        except OSError as why:
            die(f"cannot write {path}: {why}")
        print(path)


def describe(case, kind, settings):
    """What a figure is of, in one line."""
    scale, own = fractions.Fraction(settings["scale"]), [*settings["options"]]
    words = CASES[case].options(scale, settings["heads"], 1) if case in CASES else []
    return ("for each rank: " if kind == "weak" else "") + shlex.join(
        [*words, "--dtype", settings["dtype"], *own])


# ---- Runs ---------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Job:
    """One run that is wanted. On one rank nothing travels, and weak and strong are the same."""
    case: str
    kind: typing.Optional[str]
    transport: typing.Optional[str]
    ranks: int

    def text(self):
        return f"{self.case}, {self.ranks} rank{'s' if self.ranks > 1 else ''}" + (
            f", {self.kind}, {self.transport}" if self.kind else "")


def jobs(args):
    wanted = {}
    for case in args.case:
        for ranks in args.ranks:
            for kind in args.kind:
                for transport in args.transport:
                    alone = Job(case, None, None, 1)
                    job = Job(case, kind, transport, ranks) if ranks > 1 else alone
                    wanted[job] = None  # a set that keeps its order
    return list(wanted)


def command(job, args):
    words = [*args.launch, "-n", str(job.ranks), args.bench, "--json", "--repeat", str(args.repeat),
             "--timeout", f"{max(1.0, args.limit / 2):g}"]
    if job.ranks > args.alone:
        words.append("--no-alone")
    if job.ranks > 1:
        words += ["--transport", job.transport]
    words += ["--backend", args.backend, "--dtype", args.dtype]
    if args.backend == "cpu":
        words += ["--threads", str(args.threads)]
    times = job.ranks if job.kind == "weak" else 1
    return words + CASES[job.case].options(args.scale, args.heads, times) + args.options


def stop(process, grace_s):
    """End a run and all that mpirun started on this machine; mpirun ends its ranks on others."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)


def execute(words, limit):
    """Run a command for at most `limit` seconds: its exit status or None, its output, its errors.
    They go through files: a pipe would stay open as long as anything that the command left."""
    with tempfile.TemporaryFile("w+", errors="replace") as out, \
            tempfile.TemporaryFile("w+", errors="replace") as err:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                   start_new_session=True)
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                stop(process, min(GRACE_S, limit))
        out.seek(0)
        err.seek(0)
        return status, out.read(), err.read()


def judge(status, out, err, limit):
    """The rows of a run, or why there are none."""
    said = [line.strip() for line in err.splitlines() if line.strip()]
    ours = [line for line in said if line.startswith("hra-bench: ")]
    why = " | ".join((ours or said)[:4])[:600]
    if status is None:
        return [], "timeout", f"not done after {limit:g} s" + (f": {why}" if why else "")
    if status != 0:
        return [], "failed", f"exit status {status}" + (f": {why}" if why else "")
    try:
        rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        missing = set(PASSES) - {row["what"] for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        return [], "failed", f"what hra-bench printed is not its JSON: {error!r}"
    if missing:
        return [], "failed", f"hra-bench printed no row for {' and '.join(sorted(missing))}"
    if not all(row["median_s"] > 0 for row in rows):
        return [], "failed", "a pass took no time"
    return rows, "ok", ""


def do(job, args):
    words = command(job, args)
    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    begun = time.monotonic()
    try:
        status, out, err = execute(words, args.limit)
    except OSError as why:
        die(f"cannot start {words[0]}: {why.strerror}")
    rows, verdict, why = judge(status, out, err, args.limit)
    return {**dataclasses.asdict(job), "status": verdict, "why": why, "exit_status": status,
            "started": started, "took_s": round(time.monotonic() - begun, 3), "command": words,
            "rows": rows}


def wanted_now(job, results, again):
    known = results.runs.get(key(dataclasses.asdict(job)))
    return known is None or again == "all" or (again == "failed" and known["status"] != "ok")


def measure(args, results):
    """All runs that are not done yet, each saved at once."""
    todo = [job for job in jobs(args) if wanted_now(job, results, args.again)]
    print(f"{len(jobs(args))} runs, {len(todo)} of them to do")
    for number, job in enumerate(todo, 1):
        print(f"[{number}/{len(todo)}] {job.text()}: ", end="", flush=True)
        run = do(job, args)
        results.add(run)
        times = {row["what"]: row["median_s"] * 1e3 for row in run["rows"]}
        print(run["why"] or ", ".join(f"{way} {times[way]:.3f} ms" for way in PASSES), flush=True)


# ---- The command line ---------------------------------------------------------------------------

def some_of(names):
    def parse(text):
        chosen = list(dict.fromkeys(text.split(",")))
        wrong = [word for word in chosen if word not in names]
        if wrong:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(names)}")
        return chosen
    return parse


def numbers_of_ranks(text):
    try:
        ranks = sorted({int(word) for word in text.split(",")})
    except ValueError:
        ranks = [0]
    if ranks[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers from 1, such as 1,2,4")
    return ranks


def factor(text):
    try:
        scale = fractions.Fraction(text)
    except (ValueError, ZeroDivisionError):
        scale = 0
    if scale <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0, such as 1/16")
    return scale


def whole(least):
    def parse(text):
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least}")
        return number
    return parse


def seconds(text):
    try:
        limit = float(text)
    except ValueError:
        limit = 0
    if not 1 <= limit < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 1")
    return limit


def words(text):
    try:
        return shlex.split(text)
    except ValueError as why:
        raise argparse.ArgumentTypeError(f"{text!r}: {why}") from None


def parse(argv):
    parser = argparse.ArgumentParser(prog="scaling.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("case", nargs="*", metavar="CASE", help="cases (default: all of --list)")
    add("--list", action="store_true", help="show the cases as --scale and --heads make them")
    add("--plot", action="store_true", help="run nothing, draw what is in OUT")
    add("--dry-run", action="store_true", help="print the commands that would be run")
    add("--out", type=pathlib.Path, default=pathlib.Path("scaling"),
        help="folder of the results (scaling)")
    add("--ranks", type=numbers_of_ranks, default=[1, 2, 4], metavar="N,N",
        help="numbers of ranks (1,2,4)")
    add("--kind", type=some_of(KINDS), default=list(KINDS), metavar="KIND",
        help="strong, weak (both)")
    add("--backend", choices=BACKENDS, default="cpu",
        help="what computes; gpu takes the faster of cuda and sm90 that can do the case (cpu)")
    add("--transport", type=some_of(TRANSPORTS), metavar="NAME,NAME",
        help=f"one sweep for each: {', '.join(TRANSPORTS)} (mpi, on GPUs gpu)")
    add("--dtype", choices=("f64", "f32", "bf16", "f16"), help="(f32, on GPUs bf16)")
    add("--scale", type=factor, default=fractions.Fraction(1), metavar="X",
        help="tokens of each case and the lengths of its mask times X, such as 1/16 (1)")
    add("--heads", type=whole(1), default=0, metavar="H",
        help="query heads instead of the case's; K/V heads in proportion")
    add("--threads", type=whole(1), default=1, metavar="T",
        help="of a rank on CPUs, the same in every run (1)")
    add("--repeat", type=whole(1), default=7, metavar="N",
        help="times that each pass is timed in a run (7)")
    add("--alone", type=whole(1), default=8, metavar="N",
        help="in runs of up to N ranks each of them also does the whole problem alone, and what is "
        "exposed is told from that; in larger ones, where it would take long, from the run of one "
        "rank (8)")
    add("--limit", type=seconds, default=600.0, metavar="S",
        help="stop a run after that many seconds (600)")
    add("--again", choices=("failed", "all"), help="repeat runs that are in the file")
    add("--launch", type=words, default=["mpirun"], metavar="WORDS",
        help="what starts ranks; -n RANKS follows (mpirun)")
    add("--options", type=words, default=[], metavar="WORDS",
        help="more options for hra-bench, such as --options='--shard zigzag'")
    add("--bench", metavar="FILE",
        help="hra-bench, at the same place on all nodes (the one in PATH, else that in the folder "
        "build of this checkout)")
    args = parser.parse_args(argv)
    wrong = [case for case in args.case if case not in CASES]
    if wrong:
        parser.error(f"there is no case {wrong[0]!r}; --list shows them")
    args.case = list(dict.fromkeys(args.case)) or list(CASES)
    args.dtype = args.dtype or ("f32" if args.backend == "cpu" else "bf16")
    args.transport = args.transport or ["mpi" if args.backend == "cpu" else "gpu"]
    if args.backend == "cpu" and args.transport != ["mpi"]:
        parser.error(f"--transport {','.join(args.transport)}: between CPUs there is mpi only")
    if not args.launch:
        parser.error("--launch has no words")
    return args


def find_bench(args):
    built = HERE.parents[1] / "build" / "examples" / "hra-bench"
    found = args.bench or shutil.which("hra-bench") or str(built)
    path = shutil.which(found)
    if path is None:
        die(f"there is no program {found}; --bench says where hra-bench is")
    return os.path.abspath(path)


def settings_of(args):
    """What all runs of a file share."""
    return {"backend": args.backend, "dtype": args.dtype, "scale": str(args.scale),
            "heads": args.heads, "threads": args.threads if args.backend == "cpu" else None,
            "launch": args.launch, "options": args.options}


def main(argv):
    args = parse(argv)
    if args.list:
        for case in args.case:
            print(f"{case:26}{shlex.join(CASES[case].options(args.scale, args.heads, 1))}")
        return 0
    if args.plot:
        results = Results(args.out)
        if not results.runs:
            die(f"there are no results in {args.out}")
        plot(results, args.out)
        return 0
    args.bench = find_bench(args)
    if args.dry_run:
        for job in jobs(args):
            print(shlex.join(command(job, args)))
        return 0
    with alone_in(args.out):
        results = Results(args.out)
        results.settle(settings_of(args))
        measure(args, results)
        plot(results, args.out)
    wanted = [results.runs[key(dataclasses.asdict(job))] for job in jobs(args)]
    return 0 if all(run["status"] == "ok" for run in wanted) else 1


def interrupted(number, _frame):
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGHUP, interrupted)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt as why:
        print("\nscaling.py: stopped; the run that was under way is not in the results",
              file=sys.stderr)
        sys.exit(128 + (why.args[0] if why.args else signal.SIGINT))
