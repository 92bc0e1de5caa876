"""The llama.cpp side: `llama_side.py decode MODEL PROMPTxGENERATED THREADS`. compare.py starts it.

It calls the C interface, so that no more Python runs between two tokens than it takes to choose one.
"""
import ctypes
import sys
import time

import llama_cpp as ll
import numpy as np

from serve import serve, tokens


def decode(path, prompt, generated, threads):
    ll.llama_backend_init()
    quiet = ll.llama_log_callback(lambda *_: None)
    ll.llama_log_set(quiet, ctypes.c_void_p())
    model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
    params = ll.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = prompt + generated + 8, prompt, prompt
    params.n_threads = params.n_threads_batch = threads
    context = ll.llama_init_from_model(model, params)
    vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
    ids = tokens(1, prompt, vocab)

    def push(new):
        array = (ll.llama_token * len(new))(*map(int, new))
        if ll.llama_decode(context, ll.llama_batch_get_one(array, len(new))) != 0:
            raise RuntimeError("llama_decode failed")

    def run():
        ll.llama_memory_clear(ll.llama_get_memory(context), True)
        started = time.perf_counter()
        push(ids)
        # Waits until the values are there.
        logits = ll.llama_get_logits_ith(context, -1)
        read = time.perf_counter()
        answer = []
        for _ in range(generated):
            answer.append(int(np.ctypeslib.as_array(logits, (vocab,)).argmax()))
            push(answer[-1:])
            logits = ll.llama_get_logits_ith(context, -1)
        return {"prompt": read - started, "generate": time.perf_counter() - read}, answer

    return {"llama.cpp": (run()[1], lambda: run()[0])}, quiet


def main():
    _, path, sizes, threads = sys.argv[1:]
    candidates, _quiet = decode(path, *map(int, sizes.split("x")), int(threads))
    serve(candidates, versions={"llama-cpp-python": ll.__version__}, system=ll.llama_print_system_info().decode())


main()
