"""Times the same work in mixlora and in other programs, in turns, and prints tables: see README.md.

    python compare.py linear|layer|train|decode|gpu [--help]

Every side is a process that stays alive and does one round on request; in every round each candidate runs once, in an
order that moves on by one. A ratio is the median over rounds of the quotient within a round.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
LINEAR = ["1024x576x1536", "1024x1536x576", "1024x2048x2048", "1024x4096x4096",
          "512x512x512", "1024x1024x1024", "2048x2048x2048"]
LAYERS = ["576x1536", "2048x2048", "4096x4096"]
# Between two candidates: threads of the one before have gone to sleep.
PAUSE = 0.03


class Side:
    """A process with candidates."""

    def __init__(self, command, threads):
        count = {name: str(threads) for name in (
            "RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "MATMUL_NUM_THREADS", "CANDLE_NUM_THREADS")}
        self.process = subprocess.Popen([str(c) for c in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env={**os.environ, **count})
        self.about = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.process.args[:3]} ended: {self.process.wait()}")
        return json.loads(line)

    def ask(self, name):
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Comparison:
    """Rounds of all candidates of some sides."""

    def __init__(self, sides):
        self.sides = sides
        self.samples = {name: sample for side in sides for name, sample in side.about["candidates"]}
        self.names = list(self.samples)

    def agree(self, bound, names=None):
        """Ends the program where results are not near each other."""
        names = names or self.names
        want = self.samples[names[0]]
        most = max(map(abs, want))
        for name in names[1:]:
            worst = max(abs(a - b) for a, b in zip(want, self.samples[name], strict=True)) / most
            if not worst <= bound:
                sys.exit(f"{name} is not {names[0]}: off by {worst:.1e} of the largest value\n"
                         f"{want}\n{self.samples[name]}")

    def run(self, rounds):
        pairs = [(side, name) for side in self.sides for name, _ in side.about["candidates"]]
        for side, name in pairs:  # A round to warm up.
            side.ask(name)
        self.rounds = {name: [] for name in self.names}
        for i in range(rounds):
            for j in range(len(pairs)):
                side, name = pairs[(i + j) % len(pairs)]
                time.sleep(PAUSE)
                self.rounds[name].append(side.ask(name))
        for side in self.sides:
            side.close()

    def of(self, name, what):
        return median(r[what] for r in self.rounds[name])

    def ratio(self, over, under, what):
        """Median of the quotients of times within a round."""
        return median(a[what] / b[what] for a, b in zip(self.rounds[over], self.rounds[under], strict=True))

    def peak(self, name):
        return max(r["peak_rss_mib"] for r in self.rounds[name])


def row(*cells):
    print("| " + " | ".join(str(c) for c in cells) + " |", flush=True)


def head(first, *names):
    row(first, *names)
    print("|---" + "|--:" * len(names) + "|")


def ours(args, *rest):
    return Side([args.rust, *rest], args.threads)


def python(args, script, *rest):
    return Side([sys.executable, HERE / script, *rest], args.threads)


def repeats(flops):
    """Calls in a sample: about a tenth of a second of a fast machine's time."""
    return max(1, min(200, int(0.1 / (flops / 4e11))))


def linear(args):
    first = True
    for shape in args.shapes or LINEAR:
        m, k, n = map(int, shape.split("x"))
        flops = 2 * m * k * n
        work = ("linear", shape, args.threads, repeats(flops))
        c = Comparison([ours(args, *work), python(args, "torch_side.py", *work)])
        c.agree(1e-4)
        c.run(args.rounds)
        if first:
            head("rows x in x out, GFLOP/s", "", *c.names, "mixlora / gemm", "mixlora / best of the others")
            first = False
        for what, name in (("forward", "x W^T"), ("backward", "dY W")):
            speeds = [round(flops / c.of(n, what) * 1e-9) for n in c.names]
            best = min(c.names[1:], key=lambda n: c.of(n, what))
            quotients = [c.ratio(n, "mixlora", what) for n in ("gemm", best)]
            row(shape, name, *speeds, f"{quotients[0]:.2f}", f"{quotients[1]:.2f} ({best})")


def frozen(name):
    """The frozen linear that an adapted one stands on."""
    engine, _ = name.rsplit(" ", 1)
    return ("torch" if engine == "peft" else engine) + " frozen"


def layer(args):
    first = True
    for shape in args.shapes or LAYERS:
        d_in, d_out = map(int, shape.split("x"))
        work = ("layer", f"{args.batch}x{args.seq}x{d_in}x{d_out}x{args.factors}x{args.r}", args.threads,
                repeats(4 * args.batch * args.seq * d_in * d_out))
        c = Comparison([ours(args, *work), python(args, "torch_side.py", *work)])
        for method in ("frozen", "mixlora-cond", "lora"):
            c.agree(1e-4, [n for n in c.names if n.split()[-1] == method])
        c.run(args.rounds)
        if first:
            head("in x out", "", *c.names)
            first = False
        row(shape, "ms", *(f"{c.of(n, 'both') * 1e3:.1f}" for n in c.names))
        row(shape, "over its own frozen linear", *(f"{c.ratio(n, frozen(n), 'both'):.2f}" for n in c.names))
        cond = "mixlora mixlora-cond"
        row(shape, f"over {cond}", *(f"{c.ratio(n, cond, 'both'):.2f}" for n in c.names))


def train(args):
    work = ("train", args.model, f"{args.batch}x{args.seq}x{args.factors}x{args.r}", args.threads)
    sides = [ours(args, *work), *(python(args, "torch_side.py", *work, name) for name in ("torch", "torch oneDNN"))]
    c = Comparison(sides)
    c.agree(1e-4)  # The losses of the model, before the adapter says anything.
    c.run(args.rounds)
    head("", *c.names)
    tokens = args.batch * args.seq
    row("tokens/s", *(f"{tokens / c.of(n, 'step'):.0f}" for n in c.names))
    row("speed over torch", *(f"{c.ratio('torch', n, 'step'):.2f}" for n in c.names))
    row("peak RSS, MiB", *(f"{c.peak(n):.0f}" for n in c.names))
    row("first loss", *(f"{c.samples[n][0]:.4f}" for n in c.names))


def decode(args):
    work = ("decode", args.model, f"{args.prompt}x{args.generate}", args.threads)
    sides = [ours(args, *work), python(args, "llama_side.py", *work)]
    print(sides[1].about["system"], file=sys.stderr)
    c = Comparison(sides)
    c.run(args.rounds)
    head("tokens/s", *c.names)
    for what, name, n in (("prompt", "prompt of", args.prompt), ("generate", "generated behind it,", args.generate)):
        row(f"{name} {n}", *(f"{n / c.of(x, what):.1f}" for x in c.names))
        row("speed over llama.cpp", *(f"{c.ratio('llama.cpp', x, what):.2f}" for x in c.names))
    row("peak RSS, MiB", *(f"{c.peak(n):.0f}" for n in c.names))
    a, b = c.samples["mixlora"], c.samples["llama.cpp"]
    same = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), len(a))
    print(f"\nThe same first {same} of {len(a)} tokens without an adapter.")


def gpu(args):
    flops = 2 * args.side ** 3
    c = Comparison([ours(args, "gpu", args.side, max(1, repeats(flops) // 40))])
    c.agree(1e-4)
    c.run(args.rounds)
    head(f"{args.side}^3", *c.names)
    row("GFLOP/s", *(f"{flops / c.of(n, 'matmul') * 1e-9:.1f}" for n in c.names))
    if "burn-wgpu" not in c.names:
        return print("\nFor burn, build the Rust side with --features burn.")
    row("speed over burn-wgpu", *(f"{c.ratio('burn-wgpu', n, 'matmul'):.2f}" for n in c.names))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for work, rounds in ((linear, 15), (layer, 15), (train, 9), (decode, 9), (gpu, 15)):
        p = commands.add_parser(work.__name__)
        p.set_defaults(run=work)
        p.add_argument("--threads", type=int, default=2)
        p.add_argument("--rounds", type=int, default=rounds)
        target = os.environ.get("CARGO_TARGET_DIR", HERE / "rust/target")
        p.add_argument("--rust", type=Path, default=Path(target) / "release/mixlora-peers", help="the Rust side")
        if work in (linear, layer):
            p.add_argument("shapes", nargs="*", help="ROWSxINxOUT" if work is linear else "INxOUT")
        if work in (train, decode):
            p.add_argument("--model", required=True, help="a .gguf file")
        if work in (layer, train):
            sizes = (4, 256, 16, 4) if work is layer else (2, 128, 8, 2)
            for name, default in zip(("batch", "seq", "factors", "r"), sizes):
                p.add_argument(f"--{name}", type=int, default=default)
        if work is decode:
            p.add_argument("--prompt", type=int, default=128)
            p.add_argument("--generate", type=int, default=64)
        if work is gpu:
            p.add_argument("--side", type=int, default=512)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
