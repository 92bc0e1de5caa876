"""Conditional MixLoRA in PyTorch, as one would write it, and a Llama whose projections it adapts.

Per instance `dW = s * sum_k b_k a_k^T` is never formed: two thin products and an addition to the frozen one. Routers
are frozen, as published, so routing needs no history.
"""
import torch
import torch.nn.functional as F
from torch import nn


class OneDnn(torch.autograd.Function):
    """`x W^T` with a frozen W by oneDNN, where PyTorch itself calls its BLAS; it keeps W^T as well."""

    @staticmethod
    def forward(ctx, x, w, wt):
        ctx.wt = wt
        return torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")

    @staticmethod
    def backward(ctx, dy):
        return torch.ops.mkldnn._linear_pointwise(dy.contiguous(), ctx.wt, None, "none", [], ""), None, None


def blas(w):
    """A frozen linear."""
    return lambda x: F.linear(x, w)


def one_dnn(w):
    wt = w.t().contiguous()
    return lambda x: OneDnn.apply(x, w, wt)


class MixLora(nn.Module):
    """A frozen linear and two pools of factors, of which `r` of each side are chosen per instance."""

    def __init__(self, weight, factors, r, linear=blas):
        super().__init__()
        d_out, d_in = weight.shape
        self.linear, self.r, self.scale = linear(weight), r, 2 * factors / r

        def uniform(*shape, bound=d_in ** -0.5):
            return torch.empty(*shape).uniform_(-bound, bound)

        self.factors_a = nn.Parameter(uniform(factors, d_in))
        self.factors_b = nn.Parameter(torch.zeros(factors, d_out))
        self.router_a, self.router_b = uniform(factors, d_in), uniform(factors, d_in)
        self.router_cfs = uniform(factors, r, d_in, bound=(r * d_in) ** -0.5)

    @torch.no_grad()
    def choose(self, x):
        h = x.mean(dim=1)
        i = (h @ self.router_a.T).topk(self.r, dim=-1).indices
        condition = torch.einsum("bki,eki->bke", self.factors_a[i], self.router_cfs).softmax(-1).sum(1)
        scores = (h @ self.router_b.T).softmax(-1) + condition.softmax(-1)
        return i, scores.topk(self.r, dim=-1).indices

    def forward(self, x):
        i, j = self.choose(x)
        a, b = self.factors_a[i], self.factors_b[j]
        u = torch.bmm(x, a.transpose(1, 2))
        return torch.baddbmm(self.linear(x), u, b, alpha=self.scale)


class Lora(nn.Module):
    """Plain LoRA of rank `r`."""

    def __init__(self, weight, r):
        super().__init__()
        d_out, d_in = weight.shape
        self.weight = weight
        self.a = nn.Parameter(torch.empty(r, d_in).uniform_(-d_in ** -0.5, d_in ** -0.5))
        self.b = nn.Parameter(torch.zeros(d_out, r))

    def forward(self, x):
        return F.linear(x, self.weight) + 2.0 * F.linear(F.linear(x, self.a), self.b)


class Layer(nn.Module):
    def __init__(self, cfg, w, adapt):
        super().__init__()
        self.cfg, self.norms = cfg, (w["attn_norm"], w["ffn_norm"])
        names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
        self.q, self.k, self.v, self.o, self.gate, self.up, self.down = (adapt(w[n]) for n in names)

    def norm(self, x, w):
        return F.rms_norm(x, (x.shape[-1],), w, self.cfg["eps"])

    def forward(self, x, cos, sin):
        b, s, _ = x.shape
        h = self.norm(x, self.norms[0])

        def heads(y, n):
            return y.view(b, s, n, -1).transpose(1, 2)

        def turned(y):
            low, high = y.chunk(2, dim=-1)
            return y * cos + torch.cat((-high, low), dim=-1) * sin

        n, kv = self.cfg["heads"], self.cfg["kv_heads"]
        q, k, v = turned(heads(self.q(h), n)), turned(heads(self.k(h), kv)), heads(self.v(h), kv)
        k, v = (t.repeat_interleave(n // kv, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, s, -1))
        h = self.norm(x, self.norms[1])
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    """A decoder of the Llama family with tied embeddings; `weights` has the names of a GGUF file."""

    def __init__(self, cfg, weights, adapt, linear=blas):
        super().__init__()
        self.cfg, self.embedding, self.last_norm = cfg, weights["token_embd"], weights["output_norm"]
        self.head = linear(self.embedding)

        def of(i):
            prefix = f"blk.{i}."
            return {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}

        self.layers = nn.ModuleList(Layer(cfg, of(i), adapt) for i in range(cfg["layers"]))

    def forward(self, ids):
        """Mean loss of every token that another stands before."""
        cfg, s = self.cfg, ids.shape[1]
        d = self.embedding.shape[1] // cfg["heads"]
        rates = cfg["theta"] ** (-torch.arange(0, d, 2, dtype=torch.float32) / d)
        angles = torch.outer(torch.arange(s, dtype=torch.float32), rates).repeat(1, 2)
        cos, sin = angles.cos(), angles.sin()
        x = F.embedding(ids, self.embedding)
        for layer in self.layers:
            x = layer(x, cos, sin)
        x = F.rms_norm(x, (x.shape[-1],), self.last_norm, cfg["eps"])
        logits = self.head(x[:, :-1].contiguous())
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def read_gguf(path):
    """Configuration and f32 weights of a Llama in a GGUF file."""
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(path)

    def value(key):
        field = reader.fields[f"llama.{key}"]
        return field.parts[field.data[0]][0].item()

    cfg = {
        "layers": value("block_count"), "heads": value("attention.head_count"),
        "kv_heads": value("attention.head_count_kv"), "theta": value("rope.freq_base"),
        "eps": value("attention.layer_norm_rms_epsilon"),
    }
    weights = {}
    for t in reader.tensors:
        w = torch.from_numpy(dequantize(t.data, t.tensor_type).copy()).float()
        name = t.name.removesuffix(".weight")
        heads = {"attn_q": cfg["heads"], "attn_k": cfg["kv_heads"]}.get(name.split(".")[-1])
        if heads:  # Rows of a head alternate between its halves in these files.
            w = w.view(heads, -1, 2, w.shape[1]).transpose(1, 2).reshape(w.shape).contiguous()
        weights[name] = w
    return cfg, weights
