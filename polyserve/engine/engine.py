"""Token ids in, token ids out: requests come and go at any time, and each `step` brings new tokens for many at once.

It runs where it is called, in one thread, and knows neither text nor clients. A request's fault ends that request; a
fault while a step is computed ends the sequence whose it is; a broken invariant is raised and ends the engine.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace

import torch

from polyserve.config import EngineConfig
from polyserve.engine.block_manager import BlockManager
from polyserve.engine.cuda_graphs import DecodeGraphs
from polyserve.engine.device import cache_memory, choose_device, choose_packing, choose_scheme, step_bytes
from polyserve.engine.grammar import Grammars
from polyserve.engine.kv_cache import allocate, bytes_per_block, cache_dtype, num_blocks_for
from polyserve.engine.meter import StepMeter
from polyserve.engine.pace import Pace
from polyserve.engine.runner import ModelRunner
from polyserve.engine.scheduler import Scheduler, SchedulerStats
from polyserve.engine.step import Step
from polyserve.errors import InvalidRequest, ModelLoadError
from polyserve.log import get_logger
from polyserve.model.decoder import Decoder
from polyserve.model.weights.load import load_model
from polyserve.model.weights.resolve import resolve
from polyserve.request import Request, SequenceOutput, Vocabulary, check_request, refusals
from polyserve.sampling_params import SamplingParams
from polyserve_kernels import dispatch

log = get_logger(__name__)

_FAULTS = (RuntimeError, ValueError, MemoryError)  # what computing raises; anything else is a broken invariant
_NOT_COMPUTED = "the engine could not compute this request"
COMPILING_TURN_S = 0.005  # that a step without other work waits for a grammar, so that its caller can hear of more


class Engine:
    def __init__(
        self, model: Decoder, config: EngineConfig, *, load_vocabulary: Callable[[], Vocabulary] | None = None
    ) -> None:
        """load_vocabulary: what the tokens look like, for requests with a grammar; without it they are refused."""
        device, block_size = model.head_weight.device, config.block_size
        dtype = cache_dtype(config.kv_cache_dtype, model_dtype=model.dtype)
        max_model_len = config.max_model_len or model.max_model_len
        if max_model_len > model.max_model_len:
            raise ModelLoadError(f"max_model_len must be at most {model.max_model_len}, got {max_model_len}")
        block_bytes = bytes_per_block(model.config, block_size=block_size, dtype=dtype)
        num_blocks = num_blocks_for(
            cache_memory(
                config,
                device,
                workspace_bytes=step_bytes(
                    model.config, num_tokens=config.max_num_batched_tokens, num_rows=config.max_num_seqs
                ),
            ),
            block_bytes=block_bytes,
            block_size=block_size,
            max_model_len=max_model_len,
            max_num_seqs=config.max_num_seqs,
        )
        if num_blocks == 0:
            raise ModelLoadError(
                f"kv_cache_memory_bytes must be at least {block_bytes} (one block), got {config.kv_cache_memory_bytes}"
            )
        if num_blocks * block_size < max_model_len:
            log.warning(
                "the KV cache holds %d tokens: longer sequences are refused, though the model takes %d",
                num_blocks * block_size,
                max_model_len,
            )
            max_model_len = num_blocks * block_size
        log.info("KV cache: %d blocks of %d tokens, %d MiB", num_blocks, block_size, num_blocks * block_bytes >> 20)

        self.max_model_len = max_model_len
        self._max_beams = min(config.max_num_seqs, config.max_num_batched_tokens)
        self.vocab_size = model.config.vocab_size
        self.hidden_size = model.config.hidden_size
        self.eos_ids = model.config.eos_ids
        self.bos_id = model.config.bos_id
        self.numerics_id = f"{dispatch.numerics_id(device)}-{str(model.dtype).removeprefix('torch.')}"
        if config.quantization != "auto":
            self.numerics_id += f"-w_{choose_scheme(config) or config.quantization}"
        if dtype != model.dtype:
            self.numerics_id += f"-kv_{config.kv_cache_dtype}"
        self._scheduler = Scheduler(
            BlockManager(
                num_blocks=num_blocks,
                block_size=block_size,
                enable_prefix_caching=config.enable_prefix_caching,
                salt=self.numerics_id.encode(),
            ),
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=max_model_len,
            eos_ids=model.config.eos_ids,
        )
        cache = allocate(model.config, num_blocks=num_blocks, block_size=block_size, dtype=dtype, device=device)
        recorded = device.type == "cuda" and not config.enforce_eager
        self._grammars = Grammars(load_vocabulary, vocab_size=self.vocab_size, eos_ids=self.eos_ids)
        self._runner = ModelRunner(
            model, cache, graphs=DecodeGraphs(model, cache) if recorded else None, grammars=self._grammars
        )
        self._overlaps = device.type == "cuda" if config.async_scheduling is None else config.async_scheduling
        self._under_way: Step | None = None
        self._pace = (
            None if config.max_step_ms is None else Pace(config.max_step_ms / 1000, config.max_num_batched_tokens)
        )
        self._meter = StepMeter(model.config, kv_bytes_per_token=block_bytes / block_size)
        self._began = self._ended = 0.0  # when the step under way did, and the one before it
        self._compiling: dict[str, tuple[Request, Future[None]]] = {}  # requests that wait for their grammar
        self._notice: Callable[[set[str]], None] | None = None

    @classmethod
    def from_config(cls, config: EngineConfig, *, load_vocabulary: Callable[[], Vocabulary] | None = None) -> "Engine":
        """Load the model that `config` names, and set this process's threads and kernels. Raises ModelLoadError."""
        torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
        device, path = choose_device(config), resolve(config.model)
        dtype = getattr(torch, config.dtype)
        model = load_model(
            path, dtype=dtype, max_model_len=config.max_model_len, device=device, packing=choose_packing(config, device)
        )
        return cls(model, config, load_vocabulary=load_vocabulary)

    def add(self, request: Request) -> None:
        """Take a request in. Raises InvalidRequest if it can never be served; a too long answer is cut instead."""
        check_request(
            request.prompt_ids,
            request.params,
            vocab_size=self.vocab_size,
            max_model_len=self.max_model_len,
            max_logprobs=self.vocab_size,  # how many a client may have is the server's affair
        )
        params = request.params
        if params.seed is None:
            raise ValueError("a request must bring its seed; polyserve.request.admit draws one")
        stop_ids = {*params.stop_token_ids, *(() if params.ignore_eos else self.eos_ids)}
        if params.min_tokens and params.allowed_token_ids is not None and stop_ids.issuperset(params.allowed_token_ids):
            raise InvalidRequest(
                "allowed_token_ids must name a token that does not stop the answer before min_tokens",
                param="allowed_token_ids",
            )
        if params.use_beam_search:
            self._check_beams(request)
        if params.grammar_field is None:
            self._scheduler.add(request)
        else:
            self._compiling[request.request_id] = request, self._grammars.compile(params)

    def check_grammar(self, params: SamplingParams) -> None:
        """Compile the grammar that `params` hold, if any. Raises InvalidRequest if that cannot be done."""
        if params.grammar_field is not None:
            self._grammars.compile(params).result()

    def warm_up_grammars(self) -> None:
        """Prepare for the first grammar, while there is nothing else to do."""
        self._grammars.warm_up()

    def _check_beams(self, request: Request) -> None:
        num_beams, name = request.params.num_beams, "n" if request.params.best_of is None else "best_of"
        if num_beams > self._max_beams:
            message = f"{name} must be at most {self._max_beams} with use_beam_search on this server, got {num_beams}"
            raise InvalidRequest(message, param=name)
        if self._scheduler.room_for(request) < 1 and request.params.max_tokens != 0:
            message = f"the KV cache has no room for {num_beams} beams of a prompt of {len(request.prompt_ids)} tokens"
            raise InvalidRequest(message, param="prompt")

    def abort(self, request_id: str, choice: int | None = None) -> None:
        """End one choice of a request, or all: nothing more comes for it. Unknown ids have just ended."""
        if choice is None:
            self._compiling.pop(request_id, None)
        self._scheduler.abort(request_id, choice)

    def watch(self, notice: Callable[[set[str]], None]) -> None:
        """Call `notice` before each step with the ids of the requests it computes: suspects, if it is the last one."""
        self._notice = notice

    def has_work(self) -> bool:
        return self._scheduler.has_work or self._under_way is not None or bool(self._compiling)

    def step(self) -> list[SequenceOutput]:
        """Compute one step and tell what it brought. Without work it does nothing.

        Where steps overlap, this one is launched first and the answer to the one before is told.
        """
        outputs = self._admit_compiled() if self._compiling else []
        if not (self._overlaps and self._runner.settled):
            outputs += self._finish()
        paced = self._pace if self._scheduler.answering else None
        step = self._scheduler.schedule(None if paced is None else paced.num_tokens)
        began = time.monotonic()
        if self._notice is not None:
            self._notice(self._scheduler.requests_of(step))
        launched = bool(step.chunks) and self._launch(step)
        outputs += self._finish()
        if launched:
            self._under_way, self._began = step, began
        else:
            outputs += self._scheduler.fail(step, _NOT_COMPUTED)
        if not self._overlaps:
            outputs += self._finish()
        return outputs

    def _admit_compiled(self) -> list[SequenceOutput]:
        """Queue the requests whose grammar is compiled. Returns the ends of those whose grammar cannot be."""
        if not self._scheduler.has_work and self._under_way is None:
            wait([compiled for _, compiled in self._compiling.values()], COMPILING_TURN_S, FIRST_COMPLETED)
        outputs = []
        for request, compiled in [waiting for waiting in self._compiling.values() if waiting[1].done()]:
            del self._compiling[request.request_id]
            error = compiled.exception()
            if error is None:
                self._scheduler.add(request)
            elif isinstance(error, InvalidRequest):
                outputs += refusals(request, error)
            else:
                raise error
        return outputs

    def _launch(self, step: Step) -> bool:
        try:
            self._runner.submit(step)
        except _FAULTS:
            log.exception("a step of %d sequences could not be computed", len(step.chunks))
            return False
        return True

    def _finish(self) -> list[SequenceOutput]:
        """What the step under way brought, if there is one."""
        step, self._under_way = self._under_way, None
        if step is None:
            return []
        try:
            result = self._runner.result()
            began, self._ended = max(self._began, self._ended), time.monotonic()
            self._meter.note(step, self._ended - began)
            if self._pace is not None:
                self._pace.learn(step.num_tokens, self._ended - began)
            return self._scheduler.update(step, result)
        except _FAULTS:
            log.exception("a step of %d sequences could not be computed", len(step.chunks))
            return self._scheduler.fail(step, _NOT_COMPUTED)

    def stats(self) -> SchedulerStats:
        meter = self._meter
        return replace(
            self._scheduler.stats,
            num_steps=meter.num_steps,
            step_tokens=meter.num_tokens,
            step_seconds=meter.seconds,
            step_predicted_seconds=meter.predicted_seconds,
        )
