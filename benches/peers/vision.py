"""Times vision towers and a small LLaVA in mixlora and in transformers, in turns, and prints tables: see README.md.

    python vision.py tower [--shape clip-b16] [--images N]
    python vision.py train [--model DIR]

PyTorch is a process that stays alive; mixlora is its program, `mixlora bench tower` and `mixlora bench train`, started anew
in each round. Both have the same weights: those of a folder.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from compare import HERE, PAUSE, Side, head, row
from serve import serve, tokens, values

TINY = HERE.parent.parent / "tests/golden/vision/vlm_llava15_new_names"
SHAPES = {
    # hidden, intermediate, layers, heads, image, patch
    "clip-b32": (768, 3072, 12, 12, 224, 32),
    "clip-b16": (768, 3072, 12, 12, 224, 16),
    "clip-l14": (1024, 4096, 24, 16, 224, 14),
}
PROJECTIONS = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"


def threads(n):
    import torch

    torch.set_num_threads(n)
    return torch


def median_of(repeats, f):
    """The median seconds of some calls, after one that is not timed."""
    f()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        f()
        times.append(time.perf_counter() - started)
    return median(times)


# The side of PyTorch.

def made(torch, shape):
    """A CLIP of random weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    hidden, inner, layers, heads, image, patch = SHAPES[shape]
    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
                              num_attention_heads=heads, image_size=image, patch_size=patch)
    return CLIPVisionModel(config).eval()


def side_tower(folder, images, repeats, n):
    torch = threads(n)
    from transformers import CLIPVisionModel

    found = {}
    for attention in ("sdpa", "eager"):
        model = CLIPVisionModel.from_pretrained(folder, attn_implementation=attention).eval()
        side = model.config.image_size
        pixels = torch.from_numpy(values(1, images * 3 * side * side, 1.0)).view(images, 3, side, side)

        # Of a tower alone mixlora takes the states before the last layer, and does not compute that one.
        model.vision_model.encoder.layers = model.vision_model.encoder.layers[:-1]

        @torch.no_grad()
        def forward(model=model, pixels=pixels):
            return model(pixels, output_hidden_states=True).hidden_states[-1]

        def round(forward=forward):
            return {"forward": median_of(repeats, forward)}

        found[f"torch {attention}"] = ([], round)
    serve(found)


def side_train(folder, batch, seq, repeats, n):
    torch = threads(n)
    from peft import LoraConfig, get_peft_model
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa")
    config = model.config
    side = config.vision_config.image_size
    pixels = torch.from_numpy(values(1, batch * 3 * side * side, 1.0)).view(batch, 3, side, side)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=rf".*language_model.*\.({PROJECTIONS})$")
    model = get_peft_model(model, lora).train()
    whole = model.base_model.model
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0, fused=True)
    text = torch.from_numpy(tokens(1, batch * seq, config.image_token_index)).view(batch, seq)
    with torch.no_grad():
        rows = torch.stack(list(whole.get_image_features(pixels)))
        hidden = whole.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        features = hidden[config.vision_feature_layer]
        if config.vision_feature_select_strategy == "default":
            features = features[:, 1:]
    places = rows.shape[1]
    shown = text.clone()
    shown[:, 1:1 + places] = config.image_token_index
    labels = text.clone()
    labels[:, :1 + places] = -100

    def step(**inputs):
        loss = model(labels=labels, **inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def on_features():
        embedded = whole.get_input_embeddings()(text)
        made = whole.model.multi_modal_projector(features)
        return step(inputs_embeds=torch.cat([embedded[:, :1], made, embedded[:, 1 + places:]], dim=1))

    @torch.no_grad()
    def look():
        return whole.model.vision_tower(pixels[:1], output_hidden_states=True)

    def round():
        return {
            "step": median_of(repeats, lambda: step(input_ids=text)),
            "step on features": median_of(repeats, on_features),
            "step with pixels": median_of(repeats, lambda: step(input_ids=shown, pixel_values=pixels)),
            "tower": median_of(repeats, look),
        }

    serve({"torch": ([], round)})


# Both sides.

def rounds(args, peers, ours):
    """Medians of each round: of PyTorch's candidates, and of the rows of mixlora's report."""
    names = [name for name, _ in peers.about["candidates"]]
    all_rounds = []
    for i in range(args.rounds + 1):
        turn = {}
        order = [*names, "mixlora"]
        order = order[i % len(order):] + order[:i % len(order)]
        for name in order:
            time.sleep(PAUSE)
            turn[name] = ours() if name == "mixlora" else peers.ask(name)
        if i > 0:  # A round to warm up.
            all_rounds.append(turn)
    peers.close()
    return names, all_rounds


def report(args, *command):
    """The rows of a report of mixlora, by their names."""
    env = {**os.environ, "RAYON_NUM_THREADS": str(args.threads)}
    out = subprocess.run([args.mixlora, "bench", *map(str, command), "--device", "cpu", "--json"], env=env, check=True,
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return {row["op"]: row for row in json.loads(out.stdout)}


def python(*rest):
    return [sys.executable, __file__, "side", *map(str, rest)]


def tower(args):
    with tempfile.TemporaryDirectory() as folder:
        import torch

        model = made(torch, args.shape)
        model.save_pretrained(folder)
        peers = Side(python("tower", folder, args.images, args.repeats, args.threads), args.threads)

        def ours():
            found = report(args, "tower", "--vision", folder, "--images", args.images, "-r", args.repeats)
            return {name: row["median_us"] * 1e-6 for name, row in found.items()}

        names, turns = rounds(args, peers, ours)
    head(f"{args.shape}, {args.images} pictures", "mixlora", *names)
    time_of = {"mixlora": [t["mixlora"]["forward"] for t in turns], **{n: [t[n]["forward"] for t in turns] for n in names}}
    row("ms", *(f"{median(time_of[n]) * 1e3:.1f}" for n in ("mixlora", *names)))
    row("speed of mixlora over it", "", *(f"{median(a / b for a, b in zip(time_of[n], time_of['mixlora'])):.2f}"
                                          for n in names))
    share = median(t["mixlora"]["dense products"] / t["mixlora"]["forward"] for t in turns)
    print(f"\nmixlora's dense products alone take {100 * share:.0f} % of its time.")


def train(args):
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "picture.png"
        Image.effect_noise((64, 64), 80).convert("RGB").save(image)
        sizes = ("--batch", args.batch, "--seq", args.seq, "--method", "lora", "--r", 8, "--steps", args.repeats)
        peers = Side(python("train", args.model, args.batch, args.seq, args.repeats, args.threads), args.threads)

        def ours():
            found = report(args, "train", "--model", args.model, "--image", image, *sizes)
            return {name: row["median_us"] * 1e-6 for name, row in found.items()}

        _, turns = rounds(args, peers, ours)
    head(f"{args.batch} x {args.seq} tokens, ms", "mixlora", "torch", "speed of mixlora over it")
    for what in ("step", "step on features", "step with pixels", "tower"):
        theirs = median(t["torch"][what] for t in turns)
        if what not in turns[0]["mixlora"]:
            row(what, "", f"{theirs * 1e3:.2f}", "")
            continue
        mine = median(t["mixlora"][what] for t in turns)
        ratio = median(t["torch"][what] / t["mixlora"][what] for t in turns)
        row(what, f"{mine * 1e3:.2f}", f"{theirs * 1e3:.2f}", f"{ratio:.2f}")


def main():
    if sys.argv[1:2] == ["side"]:
        work, folder, *sizes = sys.argv[2:]
        return {"tower": side_tower, "train": side_train}[work](folder, *map(int, sizes))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for work, repeats in ((tower, 5), (train, 10)):
        p = commands.add_parser(work.__name__)
        p.set_defaults(run=work)
        p.add_argument("--threads", type=int, default=2)
        p.add_argument("--rounds", type=int, default=7)
        p.add_argument("--repeats", type=int, default=repeats, help="calls of a round")
        target = os.environ.get("CARGO_TARGET_DIR", HERE.parent.parent / "target")
        p.add_argument("--mixlora", type=Path, default=Path(target) / "release/mixlora", help="the program")
        if work is tower:
            p.add_argument("--shape", choices=SHAPES, default="clip-b16")
            p.add_argument("--images", type=int, default=1)
        else:
            p.add_argument("--model", type=Path, default=TINY, help="a folder with a LLaVA")
            p.add_argument("--batch", type=int, default=4)
            p.add_argument("--seq", type=int, default=64)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
