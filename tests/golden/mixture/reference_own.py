"""Reference of the methods for which no one else's numbers exist, in PyTorch and float64.

    python tests/golden/mixture/reference_own.py            writes the files of the plan beside this script
    python tests/golden/mixture/reference_own.py --check    computes them again, in float64 and float32, and compares gradients
                                                            with central differences

Needs torch and safetensors. The plainest form counts: a loop over experts, Kronecker products by the deconvolution of PyTorch,
no rule for a gradient but autograd. What the tensors are is in tests/golden/README.md.
"""
import json
import pathlib
import sys
import zlib

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, safe_open, save_file

HERE = pathlib.Path(__file__).parent
# Least gap between scores that decide a choice.
GAP = 2e-3


def softmax_of_best(z, k, renormalised):
    """Gates of the k best, 0 elsewhere; the choice; the gap to the next one."""
    order = z.argsort(-1, descending=True)
    chosen = torch.zeros(z.shape, dtype=torch.bool).scatter(-1, order[..., :k], True)
    ranked = z.detach().gather(-1, order)
    gap = (ranked[..., k - 1] - ranked[..., k]).min().item() if k < z.shape[-1] else 1e9
    p = z.softmax(-1)
    if renormalised:
        p = z.masked_fill(~chosen, -torch.inf).softmax(-1)
    return torch.where(chosen, p, torch.zeros_like(p)), chosen, gap


def draw(g, std, *dims):
    return torch.randn(*dims, generator=g, dtype=torch.float64).mul(std).float().double()


def linear_inputs(c, g):
    b, s, i, o = c["batch"], c["seq"], c["in"], c["out"]
    t = dict(x=draw(g, 1, b, s, i), w=draw(g, i**-0.5, o, i), grad_y=draw(g, 1, b, s, o))
    if "lengths" in c:
        t["valid"] = (torch.arange(s) < torch.tensor(c["lengths"])[:, None]).int()
    return t


def real(t):
    return t["valid"].double() if "valid" in t else torch.ones(t["x"].shape[:2], dtype=torch.float64)


class modulate:
    frozen = ["w"]

    @staticmethod
    def inputs(c, g):
        t = linear_inputs(c, g)
        t |= dict(router=draw(g, 1.5 * c["in"] ** -0.5, c["E"], c["in"]), scale=draw(g, 0.5, c["E"], c["out"]))
        if c["shift"]:
            t["shift"] = draw(g, 0.5, c["E"], c["out"])
        return t

    @staticmethod
    def compute(c, t):
        y = t["x"] @ t["w"].T
        gates, chosen, gap = softmax_of_best(t["x"] @ t["router"].T, c["k"], True)
        out = y
        for e in range(c["E"]):
            expert = t["scale"][e] * y
            if c["shift"]:
                expert = expert + t["shift"][e]
            out = out + gates[..., e : e + 1] * expert
        return out, dict(chosen=chosen.reshape(-1, c["E"]).int()), {}, gap


class personal:
    frozen = ["w"]

    @staticmethod
    def inputs(c, g):
        t = linear_inputs(c, g)
        t |= dict(a=draw(g, c["in"] ** -0.5, 1, c["r"], c["in"]), b=draw(g, 0.3, 1, c["out"], c["r"]))
        t |= dict(router=draw(g, c["in"] ** -0.5, 1, c["in"]), router_bias=draw(g, 0.5, 1, 1))
        t["task"] = torch.tensor(c["task"], dtype=torch.int32)
        return t

    @staticmethod
    def compute(c, t):
        x = t["x"]
        z = (x * t["router"][0]).sum(-1) + t["router_bias"][0, 0]
        update = (x @ t["a"][0].T) @ t["b"][0].T
        y = x @ t["w"].T + c["alpha"] / c["r"] * torch.sigmoid(z)[..., None] * update
        # Task 0 is generic, below 0 is none.
        known = (t["task"] >= 0)[:, None] * real(t)
        target = (t["task"] != 0)[:, None].double().expand_as(z)
        entropy = F.binary_cross_entropy_with_logits(z, target, reduction="none")
        return y, {}, dict(gate_ce=(entropy * known).sum() / known.sum()), 1e9


class ept:
    frozen = ["w"]

    @staticmethod
    def inputs(c, g):
        t = linear_inputs(c, g)
        e, least = len(c["kernels"]), c["kernels"][0]
        t |= dict(core_a=draw(g, 0.4, c["r"], -(-c["in"] // least)), core_b=draw(g, 0.6, c["r"], -(-c["out"] // least)))
        for side in sorted(set(c["kernels"])):
            t[f"kernel_{side}"] = draw(g, 0.5, c["kernels"].count(side) * side, side)
        t |= dict(router=draw(g, c["in"] ** -0.5, e, c["in"]), embed=draw(g, 1, c["tasks"], c["in"]))
        t["task"] = torch.tensor(c["task"], dtype=torch.int32)
        return t

    @staticmethod
    def matrices(c, t):
        z = t["core_b"].T @ t["core_a"]
        first = {}
        for side in c["kernels"]:
            at = first.setdefault(side, 0)
            kernel = t[f"kernel_{side}"][at : at + side]
            first[side] += side
            rows, cols = -(-c["out"] // side), -(-c["in"] // side)
            grown = F.conv_transpose2d(z[None, None, :rows, :cols], kernel[None, None], stride=side)
            yield grown[0, 0, : c["out"], : c["in"]]

    @staticmethod
    def compute(c, t):
        x, task = t["x"], t["task"].long()
        keys = t["embed"][task]
        seen = keys[:, None].expand_as(x) + (0 if c["by_task"] else x)
        gates, chosen, gap = softmax_of_best(seen @ t["router"].T / c["temperature"], c["k"], False)
        y = x @ t["w"].T
        for e, matrix in enumerate(ept.matrices(c, t)):
            y = y + c["alpha"] / c["r"] * gates[..., e : e + 1] * (x @ matrix.T)
        weights = real(t)
        mean = (x * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
        cosine = F.cosine_similarity(mean[:, None], t["embed"][None], dim=-1)
        contrast = F.cross_entropy(cosine / c["contrast_temperature"], task)
        return y, dict(chosen=chosen.reshape(-1, gates.shape[-1]).int()), dict(contrast=contrast), gap


class uni_moe:
    frozen = ["w_gate", "w_up", "w_down", "router"]

    @staticmethod
    def inputs(c, g):
        b, s, i, h, e, r = (c[n] for n in ["batch", "seq", "in", "hidden", "E", "r"])
        t = dict(x=draw(g, 1, b, s, i), grad_y=draw(g, 1, b, s, i), router=draw(g, 2 * i**-0.5, e, i))
        for name, (rows, cols) in dict(gate=(h, i), up=(h, i), down=(i, h)).items():
            t["w_" + name] = draw(g, cols**-0.5, e, rows, cols)
            t["a_" + name] = draw(g, cols**-0.5, e, r, cols)
            t["b_" + name] = draw(g, 0.3, e, rows, r)
        if c["adapt_router"]:
            t |= dict(router_a=draw(g, i**-0.5, r, i), router_b=draw(g, 0.3, e, r))
        t["tags"] = torch.tensor([[(p // 2 + n) % c["tags"] for p in range(s)] for n in range(b)], dtype=torch.int32)
        return t

    @staticmethod
    def compute(c, t):
        x, scale = t["x"], c["alpha"] / c["r"]
        z = x @ t["router"].T
        if c["adapt_router"]:
            z = z + scale * (x @ t["router_a"].T) @ t["router_b"].T
        gates, chosen, gap = softmax_of_best(z, c["k"], c["renormalise"])
        y = torch.zeros_like(x)
        for e in range(c["E"]):
            def linear(name, v):
                return v @ t["w_" + name][e].T + scale * (v @ t["a_" + name][e].T) @ t["b_" + name][e].T
            h = F.silu(linear("gate", x)) * linear("up", x)
            y = y + gates[..., e : e + 1] * linear("down", h)
        by_tag = torch.stack([chosen[t["tags"] == tag].sum(0) for tag in range(c["tags"])])
        return y, dict(by_tag=by_tag.int()), {}, gap


class cond_options:
    frozen = ["w", "noise"]

    @staticmethod
    def inputs(c, g):
        t = linear_inputs(c, g)
        b, i, o, e, r = (c[n] for n in ["batch", "in", "out", "E", "r"])
        if c["mix_start_layer"]:
            return t | dict(a=draw(g, i**-0.5, r, i), b=draw(g, 0.3, o, r))
        t |= dict(factors_a=draw(g, i**-0.5, e if c["mix_lora_a"] else r, i), factors_b=draw(g, 0.3, e, o))
        width = i
        if c["router_input"] == "condition":
            width = c["cond"][0]
            t["cond.0"] = draw(g, 1, b, width)
        drawn = c["router_input"] == "random"
        sides = (["a"] if c["mix_lora_a"] else []) + (["b"] if c["independent_rank"] else [])
        if not drawn:
            t |= {"router_" + side: draw(g, 2 * width**-0.5, e, width) for side in sides}
        if c["cfs_form"] == "choice":
            t |= dict(choice_embed=draw(g, 1, e, i), router_cfs=draw(g, 2 * i**-0.5, e, i))
        elif c["cfs_form"]:
            t["router_cfs"] = draw(g, 2 * i**-0.5, e, r, i)
        if drawn or c["add_noise"]:
            t["noise"] = draw(g, 1, b, 1, len(sides), e)
        return t

    @staticmethod
    def compute(c, t):
        x, r, scale = t["x"], c["r"], c["alpha"] / c["r"]
        y, gaps, chosen = [], [], []
        if c["mix_start_layer"]:
            return x @ t["w"].T + scale * (x @ t["a"].T) @ t["b"].T, {}, {}, 1e9

        def best(scores):
            order = scores.argsort(descending=True)
            ranked = scores.detach()[order][: r + 1]
            gaps.append((ranked[:-1] - ranked[1:]).min().item())
            return order[:r]

        for n in range(c["batch"]):
            h = t["cond.0"][n] if c["router_input"] == "condition" else x[n].mean(0)
            noise = list(t["noise"][n, 0]) if "noise" in t else []

            def logits(side):
                z = t["router_" + side] @ h if c["router_input"] != "random" else 0
                if not noise:
                    return z
                return z + noise.pop(0) / (r if c["add_noise"] else 1)

            one = torch.ones(r, dtype=x.dtype)
            gate_a, gate_b, first = one, one, torch.arange(r)
            times = r if c["gate_scale"] == "r" else 1
            if c["mix_lora_a"]:
                score = logits("a")
                first = best(score)
                if c["gated"]:
                    gate_a = score[first].softmax(0) * times
            second = first
            if c["independent_rank"]:
                if c["cfs_form"]:
                    if c["cfs_form"] == "choice":
                        q = t["router_cfs"] @ t["choice_embed"][first].mean(0)
                    else:
                        q = 0
                        for k in range(r):
                            a, w = t["factors_a"][first[k]], t["router_cfs"][:, k]
                            q = q + ((w @ a) if c["cfs_form"] == "linear" else w.sum(1) * a.sum()).softmax(0)
                    score = (t["router_b"] @ h).softmax(0) + c["cfs_weight"] * q.softmax(0)
                    if noise:
                        score = score + noise.pop(0) / r
                else:
                    score = logits("b")
                second = best(score)
                if c["gated"]:
                    gate_b = score[second].softmax(0) * times
            delta = torch.zeros(c["out"], c["in"], dtype=x.dtype)
            for k in range(r):
                delta = delta + gate_a[k] * gate_b[k] * torch.outer(t["factors_b"][second[k]], t["factors_a"][first[k]])
            y.append(x[n] @ (t["w"] + scale * delta).T)
            chosen.append(torch.stack([first, second] if c["independent_rank"] else [first]))
        # [1, sides, B, r]
        idx = torch.stack(chosen, 1)[None].int()
        return torch.stack(y), dict(idx=idx), {}, min(gaps)


class sup_con:
    """The supervised contrast of states by their labels, of anchors that have a positive."""

    frozen = []

    @staticmethod
    def inputs(c, g):
        label = torch.randint(c["tasks"], (c["batch"],), generator=g)
        label[1] = label[0]
        return dict(states=draw(g, 1, c["batch"], c["d"]), label=label.int(), grad_y=torch.ones(()))

    @staticmethod
    def compute(c, t):
        z = t["states"] / t["states"].norm(dim=-1, keepdim=True)
        of_anchors = []
        for i in range(c["batch"]):
            others = [j for j in range(c["batch"]) if j != i]
            positives = [j for j in others if t["label"][j] == t["label"][i]]
            if positives:
                every = torch.stack([(z[i] @ z[j] / c["tau"]).exp() for j in others]).sum()
                own = torch.stack([(z[i] @ z[p] / c["tau"]).exp() / every for p in positives])
                of_anchors.append(-own.log().mean())
        loss = torch.stack(of_anchors).mean()
        return loss, {}, dict(sup_con=loss), 1e9


KINDS = dict(sup_con=sup_con, modulate=modulate, personal=personal, ept=ept, uni_moe=uni_moe, cond_options=cond_options)


def plan():
    def layer(kind, batch, seq, d_in, d_out, name="", **more):
        label = f"{kind}_b{batch}_s{seq}_{d_in}x{d_out}" + name
        return dict(kind=kind, name=label, batch=batch, seq=seq, **{"in": d_in, "out": d_out}, **more)

    yield layer("modulate", 1, 5, 32, 40, "_e1_k1", E=1, k=1, shift=True)
    yield layer("modulate", 2, 9, 48, 64, "_e8_k2", E=8, k=2, shift=True)
    yield layer("modulate", 3, 7, 33, 47, "_e6_k3_scale_masked", E=6, k=3, shift=False, lengths=[7, 4, 2])
    yield layer("modulate", 4, 1, 40, 32, "_e4_k1", E=4, k=1, shift=True)

    yield layer("personal", 1, 1, 32, 40, "_r1", r=1, alpha=2, tasks=2, task=[1])
    yield layer("personal", 4, 7, 40, 48, "_r8", r=8, alpha=16, tasks=3, task=[0, 2, 0, 1])
    yield layer("personal", 3, 7, 33, 47, "_r3_masked", r=3, alpha=3, tasks=2, task=[0, -1, 1], lengths=[7, 4, 2])

    def core(batch, seq, d_in, d_out, kernels, name, **more):
        more = dict(alpha=more["r"], temperature=0.05, contrast_temperature=0.1, by_task=False) | more
        more |= dict(E=len(kernels), kernels=kernels)
        return layer("ept", batch, seq, d_in, d_out, name, **more)

    yield core(1, 5, 32, 40, [4], "_e1_r4", r=4, k=1, tasks=2, task=[1])
    yield core(3, 7, 48, 64, [2, 2, 4, 4, 6, 6, 8, 8], "_e8_r4", r=4, k=2, tasks=4, task=[0, 3, 1], temperature=0.5)
    yield core(3, 6, 33, 47, [1, 2, 3, 5], "_e4_r3_masked", r=3, k=3, alpha=6, tasks=3, task=[2, 0, 2], lengths=[6, 4, 1], temperature=0.3)
    yield core(4, 1, 40, 32, [3, 3, 4], "_e3_r2_by_task", r=2, k=2, tasks=3, task=[0, 1, 2, 1], by_task=True, temperature=1.0)

    def experts(batch, seq, d, hidden, name, **more):
        return layer("uni_moe", batch, seq, d, d, f"_{hidden}" + name, hidden=hidden, **more)

    yield experts(1, 1, 16, 12, "_e2_k1_r2", E=2, k=1, r=2, alpha=4, renormalise=True, adapt_router=False, tags=1)
    yield experts(2, 9, 24, 20, "_e4_k2_r4", E=4, k=2, r=4, alpha=8, renormalise=True, adapt_router=False, tags=3)
    yield experts(3, 5, 17, 13, "_e5_k3_r3_router", E=5, k=3, r=3, alpha=3, renormalise=True, adapt_router=True, tags=2)
    yield experts(2, 7, 16, 24, "_e4_k2_r2_raw_router", E=4, k=2, r=2, alpha=4, renormalise=False, adapt_router=True, tags=2)

    def options(batch, seq, d_in, d_out, name, **more):
        plain = dict(E=6, r=3, alpha=12, gated=False, gate_scale="r", cfs_form=None, cfs_weight=1.0, router_input="pooled")
        plain |= dict(independent_rank=True, mix_lora_a=True, mix_start_layer=0, add_noise=False)
        return layer("cond_options", batch, seq, d_in, d_out, "_" + name, **plain | more)

    yield options(3, 5, 20, 24, "pairs", independent_rank=False)
    yield options(2, 4, 17, 13, "pairs_gated", independent_rank=False, gated=True, E=5)
    yield options(3, 5, 20, 24, "one_a", mix_lora_a=False)
    yield options(2, 6, 17, 13, "one_a_gated", mix_lora_a=False, gated=True, E=5)
    yield options(1, 1, 16, 12, "one_a_gated_plain", mix_lora_a=False, gated=True, gate_scale="none", E=4, r=2)
    yield options(2, 3, 16, 20, "below_start", mix_start_layer=1)
    yield options(3, 5, 20, 24, "noise", add_noise=True)
    yield options(2, 4, 20, 16, "noise_linear_gated", add_noise=True, gated=True, cfs_form="linear", cfs_weight=0.7)
    yield options(3, 4, 18, 16, "noise_sum_product", add_noise=True, cfs_form="sum_product")
    yield options(2, 4, 20, 16, "noise_choice_gated", add_noise=True, gated=True, cfs_form="choice", gate_scale="none", E=4)
    yield options(2, 4, 16, 16, "noise_one_a_gated", add_noise=True, gated=True, mix_lora_a=False)
    yield options(4, 3, 20, 24, "random", router_input="random")
    yield options(4, 3, 16, 12, "random_pairs", router_input="random", independent_rank=False, E=3)
    yield options(3, 5, 20, 24, "condition", router_input="condition", cond=[9])
    yield options(3, 4, 20, 16, "condition_linear_gated", router_input="condition", cond=[7], cfs_form="linear", gated=True)
    yield options(2, 4, 16, 16, "condition_pairs_gated", router_input="condition", cond=[5], independent_rank=False, gated=True)


    def contrast(batch, d, tasks, tau, name):
        return dict(kind="sup_con", name=f"sup_con_b{batch}_d{d}_n{tasks}" + name, batch=batch, d=d, tasks=tasks, tau=tau)

    yield contrast(3, 9, 2, 0.07, "_t07")
    yield contrast(5, 33, 2, 0.5, "_t50")
    yield contrast(8, 16, 4, 0.07, "_t07")


def whole(c, t, dtype=torch.float64):
    """Results and gradients of a configuration with the given inputs."""
    layer = KINDS[c["kind"]]
    t = {n: v.to(dtype) if v.is_floating_point() else v for n, v in t.items()}
    trained = [n for n, v in t.items() if v.is_floating_point() and n not in [*layer.frozen, "grad_y"]]
    for n in trained:
        t[n] = t[n].clone().requires_grad_()
    y, integers, losses, gap = layer.compute(c, t)
    out = dict(y=y.detach())
    zero = []

    def gradients(prefix, root):
        for n, gradient in zip(trained, torch.autograd.grad(root, [t[n] for n in trained], allow_unused=True, retain_graph=True)):
            # Gates of a single expert have no derivative.
            constant = n in ("router", "router_a", "router_b", "embed") and c.get("k") == 1 and c.get("renormalise", c["kind"] == "modulate")
            constant |= c["kind"] == "ept" and c["E"] == 1 and n in ("router", "embed") and not prefix
            if gradient is None or constant:
                assert gradient is None or gradient.abs().max() < 1e-6, n
                zero.append(f"{prefix}grad_{n}")
            else:
                out[f"{prefix}grad_{n}"] = gradient

    gradients("", (y * t["grad_y"]).sum())
    for name, loss in losses.items():
        out[f"{name}.value"] = loss.detach()
        gradients(f"{name}.", loss)
    return out, integers, zero, gap


def apart(got, want):
    return max(((got[n].double() - want[n].double()).abs().max() / want[n].double().abs().max()).item() for n in want)


def write(c):
    seed = zlib.crc32(c["name"].encode())
    while True:
        t = KINDS[c["kind"]].inputs(c, torch.Generator().manual_seed(seed))
        out, integers, zero, gap = whole(c, t)
        if gap > GAP:
            break
        seed += 1
    tensors = {n: (v.float() if v.is_floating_point() else v).contiguous() for n, v in {**t, **out, **integers}.items()}
    about = dict(config=json.dumps(dict(c, seed=seed)), margin=f"{gap:.6g}", computed_in="float64", zero_grads=json.dumps(zero))
    save_file(tensors, HERE / (c["name"] + ".safetensors"), metadata=about)


def check(c):
    path = HERE / (c["name"] + ".safetensors")
    stored = load_file(path)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["config"])
    seed = about.pop("seed")
    assert about == c, path
    t = KINDS[c["kind"]].inputs(c, torch.Generator().manual_seed(seed))
    out, integers, _, _ = whole(c, t)
    assert all(torch.equal(t[n].float() if t[n].is_floating_point() else t[n], stored[n]) for n in t)
    assert all(torch.equal(integers[n], stored[n]) for n in integers)
    single = whole(c, t, torch.float32)[0]
    # Central differences along one random direction of each trained tensor.
    worst, layer, g = 0.0, KINDS[c["kind"]], torch.Generator().manual_seed(1)
    for name in [n for n in out if "grad_" in n]:
        loss, _, of = name.rpartition("grad_")
        step = torch.randn(t[of].shape, generator=g, dtype=torch.float64) * 1e-6

        def value(sign):
            y, _, losses, _ = layer.compute(c, t | {of: t[of] + sign * step})
            return losses[loss[:-1]] if loss else (y * t["grad_y"]).sum()

        slope = (value(1) - value(-1)) / 2
        want = (out[name] * step).sum()
        worst = max(worst, ((slope - want).abs() / (out[name].norm() * step.norm())).item())
    print(f"{c['name']}: stored {apart(stored, out):.1e}, float32 {apart(single, out):.1e}, differences {worst:.1e}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for c in plan():
        check(c) if "--check" in sys.argv else write(c)
