#!/usr/bin/env python3
"""What llama.cpp makes of a GGUF file: greedy tokens behind prompts, and the perplexity of a text.

    pip install numpy xllamacpp && python benches/peers/exported.py FILE.gguf TEXT [PROMPT ...]

Any shared library of llama.cpp serves (LLAMA_LIBRARY). Its structures of parameters are passed as they come, so that no
version of their layout is needed. Prints one JSON object.
"""
import ctypes as c
import glob
import json
import os
import sys

import numpy as np


class Opaque(c.Structure):
    _fields_ = [("bytes", c.c_byte * 1024)]


def library():
    path = os.environ.get("LLAMA_LIBRARY")
    if not path:
        import importlib.util
        folder = os.path.dirname(importlib.util.find_spec("xllamacpp").origin)
        path = glob.glob(os.path.join(folder, "*.so"))[0]
    lib = c.CDLL(path)
    lib.llama_model_default_params.restype = Opaque
    lib.llama_context_default_params.restype = Opaque
    lib.llama_model_load_from_file.restype = c.c_void_p
    lib.llama_model_load_from_file.argtypes = [c.c_char_p, Opaque]
    lib.llama_init_from_model.restype = c.c_void_p
    lib.llama_init_from_model.argtypes = [c.c_void_p, Opaque]
    lib.llama_model_get_vocab.restype = c.c_void_p
    lib.llama_model_get_vocab.argtypes = [c.c_void_p]
    lib.llama_vocab_n_tokens.argtypes = [c.c_void_p]
    lib.llama_vocab_is_eog.argtypes = [c.c_void_p, c.c_int32]
    lib.llama_vocab_is_eog.restype = c.c_bool
    lib.llama_tokenize.argtypes = [c.c_void_p, c.c_char_p, c.c_int32, c.c_void_p, c.c_int32, c.c_bool, c.c_bool]
    lib.llama_batch_get_one.restype = Batch
    lib.llama_batch_get_one.argtypes = [c.c_void_p, c.c_int32]
    lib.llama_decode.argtypes = [c.c_void_p, Batch]
    lib.llama_get_logits_ith.restype = c.POINTER(c.c_float)
    lib.llama_get_logits_ith.argtypes = [c.c_void_p, c.c_int32]
    lib.llama_free.argtypes = [c.c_void_p]
    return lib


class Batch(c.Structure):
    _fields_ = [("n", c.c_int32)] + [(name, c.c_void_p) for name in ("token", "embd", "pos", "n_seq", "seq", "logits")]


class Model:
    def __init__(self, path):
        self.lib = library()
        self.model = self.lib.llama_model_load_from_file(path.encode(), self.lib.llama_model_default_params())
        if not self.model:
            sys.exit(f"{path} cannot be loaded")
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.rows = self.lib.llama_vocab_n_tokens(self.vocab)

    def tokens(self, text, start):
        raw = text.encode()
        out = (c.c_int32 * (len(raw) + 8))()
        n = self.lib.llama_tokenize(self.vocab, raw, len(raw), out, len(out), start, True)
        return list(out[:n])

    def walk(self, ids):
        """Logits behind each token, one after the other; yields and takes the next token."""
        context = self.lib.llama_init_from_model(self.model, self.lib.llama_context_default_params())
        position = 0
        queue = list(ids)
        while queue:
            one = (c.c_int32 * 1)(queue.pop(0))
            if self.lib.llama_decode(context, self.lib.llama_batch_get_one(one, 1)):
                sys.exit("llama_decode failed")
            position += 1
            logits = np.ctypeslib.as_array(self.lib.llama_get_logits_ith(context, -1), (self.rows,)).copy()
            more = yield logits
            if more is not None:
                queue.append(more)
        self.lib.llama_free(context)

    def greedy(self, prompt, count):
        ids = self.tokens(prompt, True)
        steps = self.walk(ids)
        logits = next(steps)
        for _ in ids[1:]:
            logits = next(steps)
        said, apart = [], []
        for _ in range(count):
            best = np.sort(logits)[-2:]
            token = int(logits.argmax())
            said.append(token)
            apart.append(float(best[1] - best[0]))
            if self.lib.llama_vocab_is_eog(self.vocab, token):
                break
            logits = steps.send(token)
        return {"prompt": prompt, "tokens": said, "apart": apart}

    def perplexity(self, text):
        ids = self.tokens(text, True)[:400]
        total = 0.0
        steps = self.walk(ids)
        for token in ids[1:]:
            logits = next(steps).astype(np.float64)
            total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[token]
        return float(np.exp(total / (len(ids) - 1))), ids


def main():
    model = Model(sys.argv[1])
    with open(sys.argv[2], encoding="utf-8") as file:
        perplexity, ids = model.perplexity(file.read())
    prompts = [model.greedy(prompt.replace("\\n", "\n"), 32) for prompt in sys.argv[3:]]
    print(json.dumps({"perplexity": perplexity, "tokens": ids, "prompts": prompts}))


if __name__ == "__main__":
    main()
