"""What the Python sides share: the values that every side makes, and one round on request over stdin and stdout."""
import json
import sys
import time

import numpy as np


def scattered(seed, n):
    v = np.arange(n, dtype=np.uint32) + np.uint32(seed * 0x9E3779B9 & 0xFFFFFFFF)
    for factor in (0x7FEB352D, 0x846CA68B):
        v = (v ^ (v >> np.uint32(16))) * np.uint32(factor)
    return v ^ (v >> np.uint32(16))


def values(seed, n, scale):
    """`n` values evenly in -scale .. scale."""
    v = (scattered(seed, n) >> np.uint32(8)).astype(np.float32) / np.float32(1 << 23)
    return (v - np.float32(1)) * np.float32(scale)


def tokens(seed, n, vocab):
    return (scattered(seed, n) % np.uint32(vocab)).astype(np.int64)


def sample(flat):
    """A few values of a result, the last one with them."""
    return [float(flat[len(flat) * i // 8 - 1]) for i in range(1, 9)]


def seconds(repeats, f):
    """Seconds of one call in the mean, after one that is not timed."""
    f()
    started = time.perf_counter()
    for _ in range(repeats):
        f()
    return (time.perf_counter() - started) / repeats


def peak_rss_mib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))


def serve(candidates, **about):
    """`candidates`: name to (sample of the result, function that makes a round and returns names and numbers)."""
    def say(value):
        print(json.dumps(value), flush=True)

    say({"candidates": [(name, sampled) for name, (sampled, _) in candidates.items()], **about})
    for line in sys.stdin:
        say({**candidates[line.strip()][1](), "peak_rss_mib": peak_rss_mib()})
