"""llama.cpp through its C interface: checks a converted model, measures it.

llamacpp.py check MODEL.gguf EXPECTED.safetensors
llamacpp.py measure MODEL.gguf LENGTH... > rows.jsonl     (THREADS, REPEATS, STEPS in the environment)
"""

import ctypes
import json
import os
import sys
import time

import llama_cpp.llama_cpp as llama
import numpy as np

import checkpoint

THREADS = int(os.environ.get("THREADS", os.cpu_count()))
REPEATS = int(os.environ.get("REPEATS", 3))
STEPS = int(os.environ.get("STEPS", 32))
# Largest difference of two logits, relative to the spread of the reference logits. f16 weights and cache stay several
# times below it; rows left unpermuted or a wrong theta are ten times above it and more.
TOLERANCE = 0.1
ATTENTION = {
    "flash attention": llama.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "plain attention": llama.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}


@llama.llama_log_callback
def only_errors(level, text, _):
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        sys.stderr.buffer.write(text)


class Session:
    """One sequence in one context: f16 cache, everything else as llama.cpp sets it."""

    def __init__(self, model, room, attention):
        params = llama.llama_context_default_params()
        params.n_ctx = room
        params.n_threads = params.n_threads_batch = THREADS
        params.flash_attn_type = ATTENTION[attention]
        self.context = llama.llama_init_from_model(model, params)
        if not self.context:
            sys.exit("llama.cpp could not create a context")
        self.memory = llama.llama_get_memory(self.context)
        self.largest = params.n_batch
        self.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))

    def feed(self, ids):
        """Runs tokens behind those in the cache and waits for the logits of the last one."""
        for begin in range(0, len(ids), self.largest):
            part = ids[begin : begin + self.largest]
            tokens = (llama.llama_token * len(part))(*part)
            if status := llama.llama_decode(self.context, llama.llama_batch_get_one(tokens, len(part))):
                sys.exit(f"llama_decode failed: {status}")
        return llama.llama_get_logits_ith(self.context, -1)

    def logits(self, ids):
        return np.ctypeslib.as_array(self.feed(ids), (self.vocab,)).copy()

    def truncate(self, length):
        llama.llama_memory_seq_rm(self.memory, 0, length, -1)

    def close(self):
        llama.llama_free(self.context)


def check(model, path):
    """Compares with the logits of transformers: one token at a time, and the last ones as one batch as well."""
    expected = dict(checkpoint.read(path))
    ids, reference, greedy = expected["input_ids"].tolist(), expected["logits"], expected["greedy"].tolist()
    prompt = ids[: int(np.ravel(expected.get("prompt_len", len(ids)))[0])]
    allowed = TOLERANCE * float(reference.std())
    wrong = []
    for attention in ATTENTION:
        session = Session(model, len(ids) + len(greedy), attention)
        steps = np.stack([session.logits([token]) for token in ids])
        worst = float(np.abs(steps - reference).max())
        session.truncate(0)
        batch = float(np.abs(session.logits(ids) - reference[-1]).max())
        session.truncate(0)
        same, last = 0, session.logits(prompt)
        for token in greedy:
            same += int(last.argmax()) == token
            last = session.logits([token])
        session.close()
        print(
            f"llama.cpp, {attention}: largest difference of logits {worst:.4f} ({batch:.4f} as one batch), "
            f"{allowed:.4f} allowed; {same} of {len(greedy)} greedy tokens the same"
        )
        if not max(worst, batch) < allowed:
            wrong.append(attention)
    if wrong:
        sys.exit(f"the converted model computes something else ({', '.join(wrong)})")


def measure(model, lengths):
    # Any ids do for timing, and so do positions past the trained ones.
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    ids = [i * 7919 % vocab for i in range(lengths[-1])]

    def row(attention, what, begin, end, tokens, seconds):
        fields = {"engine": "llama.cpp", "variant": attention, "what": what, "from": begin, "to": end}
        print(json.dumps({**fields, "tokens_per_s": tokens / seconds}), flush=True)

    for attention in ATTENTION:
        session = Session(model, lengths[-1] + STEPS + 2, attention)
        session.feed(ids[:512])
        for _ in range(REPEATS):
            session.truncate(0)
            begin = 0
            for end in lengths:
                start = time.perf_counter()
                session.feed(ids[begin:end])
                row(attention, "prefill", begin, end, end - begin, time.perf_counter() - start)
                # Two steps that are not timed: the first one after a batch plans its graph anew.
                for token in ids[:2]:
                    session.feed([token])
                start = time.perf_counter()
                for token in ids[:STEPS]:
                    session.feed([token])
                row(attention, "decode", end, end, STEPS, time.perf_counter() - start)
                session.truncate(end)
                begin = end
        session.close()


if __name__ == "__main__":
    command, path, *rest = sys.argv[1:]
    llama.llama_log_set(only_errors, ctypes.c_void_p(0))
    llama.llama_backend_init()
    print(llama.llama_print_system_info().decode(), file=sys.stderr)
    model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp could not load {path}")
    if command == "check":
        check(model, *rest)
    else:
        measure(model, sorted(map(int, rest)))
