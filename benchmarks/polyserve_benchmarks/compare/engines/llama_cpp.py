"""llama.cpp through its batch API: all streams are sequences of one context and one `llama_decode` a step.

Prompts are packed into batches of 512 tokens that may hold parts of several sequences. `kv_unified` is off, as its
documentation advises where sequences share no prefix, and `swa_full` as in its server: layers with a window keep no
more than that. Flash attention is "auto", its default, which turns it on where the model allows it. The greedy choice
is numpy's argmax over the rows of logits, which is faster than llama.cpp's own sampler chain (that builds an array of
candidates for every token). It quantises activations to int8 for products with quantised weights.
Source   https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h
"""

from typing import Any

BATCH = 512
CONTEXT_MULTIPLE = 256  # llama.cpp rounds a sequence's cells up to this


class LlamaCpp:
    def __init__(self, job: dict[str, Any]) -> None:
        import llama_cpp
        import numpy

        self._lib: Any = llama_cpp
        self._numpy: Any = numpy
        self._max_len = -(-job["max_len"] // CONTEXT_MULTIPLE) * CONTEXT_MULTIPLE
        self._threads = job["threads"]
        self._contexts: dict[int, Any] = {}
        self._lib.llama_backend_init()
        params = self._lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = self._lib.llama_model_load_from_file(job["model"].encode(), params)
        if not self._model:
            raise RuntimeError("llama.cpp cannot load this file")
        self._vocab_size = self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(self._model))
        self._batch = self._lib.llama_batch_init(max(BATCH, job["max_streams"]), 0, 1)
        self.version = llama_cpp.__version__
        self.settings: dict[str, object] = {
            "n_threads": self._threads,
            "n_batch": BATCH,
            "flash_attn": "auto",
            "kv_unified": False,
            "swa_full": False,
            "system_info": self._lib.llama_print_system_info().decode().strip(),
        }
        self._context(1)

    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        context = self._context(len(prompts))
        self._lib.llama_memory_clear(self._lib.llama_get_memory(context), False)
        answers: list[list[int]] = [[] for _ in prompts]
        entries = [
            (token, position, stream, position == len(prompt) - 1)
            for stream, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        for begin in range(0, len(entries), BATCH):
            self._decode(context, entries[begin : begin + BATCH], answers)
        for step in range(num_tokens - 1):
            last = [
                (answer[-1], len(prompt) + step, stream, True)
                for stream, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
            ]
            self._decode(context, last, answers)
        return answers

    def _decode(self, context: Any, entries: list[tuple[int, int, int, bool]], answers: list[list[int]]) -> None:
        """Compute (token, position, stream, whether its next token is wanted) and add what was wanted to `answers`."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for index, (token, position, stream, wanted) in enumerate(entries):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = stream
            batch.logits[index] = wanted
        if self._lib.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        streams = [stream for _, _, stream, wanted in entries if wanted]
        if not streams:
            self._lib.llama_synchronize(context)
            return
        logits = self._numpy.ctypeslib.as_array(
            self._lib.llama_get_logits(context), shape=(len(streams), self._vocab_size)
        )
        for stream, token in zip(streams, logits.argmax(axis=1), strict=True):
            answers[stream].append(int(token))

    def _context(self, num_streams: int) -> Any:
        """The context of so many sequences, made the first time: in the warm-up, not in a measured run."""
        if num_streams not in self._contexts:
            params = self._lib.llama_context_default_params()
            params.n_ctx = num_streams * self._max_len
            params.n_seq_max = num_streams
            params.n_batch = params.n_ubatch = BATCH
            params.n_threads = params.n_threads_batch = self._threads
            params.kv_unified = params.swa_full = False
            context = self._lib.llama_init_from_model(self._model, params)
            if not context:
                raise RuntimeError(f"llama.cpp cannot make a context of {num_streams} sequences")
            self._contexts[num_streams] = context
        return self._contexts[num_streams]


def load(job: dict[str, Any]) -> LlamaCpp:
    return LlamaCpp(job)
