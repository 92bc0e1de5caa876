"""The PyTorch side: `torch_side.py WORK ARGUMENTS`, as the Rust side; `train` is told which. compare.py starts it."""
import sys
import time

import torch
import torch.nn.functional as F

from serve import sample, seconds, serve, tokens, values
from torch_model import Llama, Lora, MixLora, blas, one_dnn, read_gguf


def made(seed, shape, scale=1.0):
    return torch.from_numpy(values(seed, torch.Size(shape).numel(), scale)).view(shape)


def linear(rows, d_in, d_out, repeats):
    x, dy, w = made(1, (rows, d_in)), made(2, (rows, d_out)), made(3, (d_out, d_in), 0.1)
    y, dx = torch.empty(rows, d_out), torch.empty(rows, d_in)
    forward, back = one_dnn(w), one_dnn(w.t().contiguous())

    @torch.no_grad()
    def into():
        return {
            "forward": seconds(repeats, lambda: torch.mm(x, w.t(), out=y)),
            "backward": seconds(repeats, lambda: torch.mm(dy, w, out=dx)),
        }

    @torch.no_grad()
    def new():
        return {
            "forward": seconds(repeats, lambda: F.linear(x, w)),
            "backward": seconds(repeats, lambda: torch.mm(dy, w)),
        }

    @torch.no_grad()
    def by_one_dnn():
        return {"forward": seconds(repeats, lambda: forward(x)), "backward": seconds(repeats, lambda: back(dy))}

    def sampled(y, dx):
        return sample(y.flatten()) + sample(dx.flatten())

    plain = sampled(F.linear(x, w), torch.mm(dy, w))
    return {
        "torch": (plain, new), "torch out=": (plain, into),
        "torch oneDNN": (sampled(forward(x), back(dy)), by_one_dnn),
    }


def layer(batch, seq, d_in, d_out, factors, r, repeats):
    x, dy = made(1, (batch, seq, d_in)).requires_grad_(), made(2, (batch, seq, d_out))
    w = made(3, (d_out, d_in), 0.1)

    def candidate(forward, trained):
        def both():
            y = forward(x)
            return y, torch.autograd.grad(y, [x, *trained], dy)

        y, (dx, *_) = both()
        sampled = sample(y.detach().flatten()) + sample(dx.flatten())
        return sampled, lambda: {"both": seconds(repeats, both)}

    def mix_lora(linear):
        cond = MixLora(w, factors, r, linear)
        fill(cond.factors_a, made(10, (factors, d_in), 0.1)), fill(cond.factors_b, made(11, (factors, d_out), 0.1))
        # Both are one matrix on the other side.
        cond.router_a, cond.router_b = made(12, (2 * factors, d_in), 0.1).split(factors)
        cond.router_cfs = made(13, (factors, r, d_in), 0.1)
        return candidate(cond, [cond.factors_a, cond.factors_b])

    lora = Lora(w, r)
    # The other side keeps B as rows.
    a, b = made(10, (r, d_in), 0.1), made(11, (r, d_out), 0.1).t()
    fill(lora.a, a), fill(lora.b, b)
    found = {
        "torch frozen": candidate(blas(w), []),
        "torch mixlora-cond": mix_lora(blas),
        "torch lora": candidate(lora, [lora.a, lora.b]),
        "torch oneDNN frozen": candidate(one_dnn(w), []),
        "torch oneDNN mixlora-cond": mix_lora(one_dnn),
    }
    try:
        module, trained = peft_lora(w, r)
        fill(trained[0], a), fill(trained[1], b)
        found["peft lora"] = candidate(module, trained)
    except ImportError:
        print("peft is not installed: left out", file=sys.stderr)
    return found


@torch.no_grad()
def fill(parameter, tensor):
    parameter.copy_(tensor)


def peft_lora(w, r):
    from peft import LoraConfig, get_peft_model

    class Bare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
            self.layer.weight = torch.nn.Parameter(w, requires_grad=False)

        def forward(self, x):
            return self.layer(x)

    config = LoraConfig(r=r, lora_alpha=2 * r, lora_dropout=0.0, target_modules=["layer"], init_lora_weights=False)
    # The adapted linear itself, without the wrappers of a whole model.
    module = get_peft_model(Bare(), config).base_model.model.layer
    return module, [p for p in module.parameters() if p.requires_grad]


def train(path, batch, seq, factors, r, name):
    cfg, weights = read_gguf(path)
    linear = {"torch": blas, "torch oneDNN": one_dnn}[name]
    model = Llama(cfg, weights, lambda w: MixLora(w, factors, r, linear), linear)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0, fused=True)
    ids = torch.from_numpy(tokens(1, batch * seq, weights["token_embd"].shape[0])).view(batch, seq)

    def step():
        loss = model(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def round():
        started = time.perf_counter()
        loss = step()
        return {"step": time.perf_counter() - started, "loss": loss}

    return {name: ([step()], round)}


def main():
    work, *args = sys.argv[1:]
    torch.set_num_threads(int(args[-2]))
    sizes = map(int, args[-3].split("x"))
    match work:
        case "linear":
            candidates = linear(*sizes, repeats=int(args[-1]))
        case "layer":
            candidates = layer(*sizes, repeats=int(args[-1]))
        case "train":
            candidates = train(args[0], *sizes, name=args[-1])
    serve(candidates, versions={"torch": torch.__version__}, threads=torch.get_num_threads())


main()
