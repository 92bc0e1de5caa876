"""Training steps of plain LoRA with PyTorch and PEFT on a CUDA GPU: the shapes and settings of `mixlora bench train
--shape`, random weights, AdamW, all seven projections.

Usage: python gpu_train.py SHAPE [--dtype f32|tf32|bf16] [--batch N] [--seq N] [--rank R] [--steps N]
"""

import argparse
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {
    # hidden, intermediate, layers, heads, kv heads, vocabulary, tied
    "smollm2-135m": (576, 1536, 30, 9, 3, 49152, True),
    "llama-1b": (2048, 8192, 16, 32, 8, 128256, True),
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--dtype", default="f32", choices=["f32", "tf32", "bf16"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=256)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    hidden, intermediate, layers, heads, kv_heads, vocabulary, tied = SHAPES[args.shape]
    torch.backends.cuda.matmul.allow_tf32 = args.dtype == "tf32"
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=8192,
    )
    torch.set_default_dtype(torch.bfloat16 if args.dtype == "bf16" else torch.float32)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=PROJECTIONS)
    model = get_peft_model(model, lora).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    ids = torch.randint(vocabulary, (args.batch, args.seq), device="cuda")
    times = []
    for _ in range(args.steps + 2):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    seconds = statistics.median(times[2:])
    print(
        f"torch {torch.__version__} {args.shape} {args.dtype} lora r {args.rank} {args.batch}x{args.seq}: "
        f"{1e3 * seconds:.1f} ms, {args.batch * args.seq / seconds:.0f} tokens/s, "
        f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB, {torch.cuda.get_device_name()}"
    )


if __name__ == "__main__":
    main()
