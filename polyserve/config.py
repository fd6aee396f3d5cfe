"""What an engine and a server are told at their start: frozen values, each field with its help and its check.

The command line derives its flags from these dataclasses (`polyserve.cli.options`): a field `max_model_len` is the
flag `--max-model-len`, its metadata is the help, and its check runs here, so that option, default, help and check exist
once. Flag spellings follow vLLM's where a flag means the same.
"""

from dataclasses import dataclass, field
from typing import Any

DTYPES = ("bfloat16", "float32", "float16")
QUANTIZATIONS = ("auto", "none", "int8", "int4")
DEVICES = ("auto", "cpu", "cuda")
LOG_LEVELS = ("debug", "info", "warning", "error")
GRAMMAR_TIMEOUT_MS = 500
TOOL_CALL_PARSERS = ("auto", "none", "hermes", "llama3", "mistral", "mistral-args", "gemma")
KV_CACHE_DTYPES = ("auto", *DTYPES, "int8", "fp8")


def option(default: Any, help: str, *, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field that the command line can show as a flag. Every value gets its own copy of a list or dict."""
    metadata = {"help": help, "choices": choices}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One engine: which model, in which numbers, with how much memory and how large a step."""

    model: str = option("smollm2", "a folder, a .gguf file, smollm2, gemma3-270m, or a Hugging Face id with @revision")
    dtype: str = option("bfloat16", "dtype of weights and products; the residual stream is always fp32", choices=DTYPES)
    quantization: str = option(
        "auto",
        "numbers of the matrices; auto: the checkpoint's own integers where the kernels multiply them, else --dtype; "
        "none: --dtype; int8, int4: quantised while they are loaded",
        choices=QUANTIZATIONS,
    )
    quantization_group: int | None = option(
        None, "channels that share a scale of --quantization; default: 32 for int4, a whole row for int8"
    )
    device: str = option("auto", "where the model computes; auto: on a GPU if there is one", choices=DEVICES)
    max_model_len: int | None = option(
        None, "longest sequence in tokens, prompt and answer; default: the model's own limit"
    )
    max_num_seqs: int = option(64, "most sequences that compute in one step")
    max_num_batched_tokens: int = option(512, "most tokens that one step computes; longer prompts go in chunks")
    max_step_ms: float | None = option(
        None, "longest a step may take while sequences wait for their next token: prompts go in smaller chunks then"
    )
    block_size: int = option(16, "tokens in one block of the KV cache; divides 128, or is a multiple of it")
    kv_cache_dtype: str = option(
        "auto",
        "dtype of the KV cache; auto: that of the weights; int8 and fp8 keep a scale for each token and head",
        choices=KV_CACHE_DTYPES,
    )
    kv_cache_memory_bytes: int | None = option(
        None,
        "memory of the KV cache; default: on a CPU 1 GiB, or one longest sequence if that is more; on a GPU what "
        "--gpu-memory-utilization leaves",
    )
    gpu_memory_utilization: float = option(0.9, "share of a GPU's memory for weights, KV cache and computing")
    async_scheduling: bool | None = option(
        None, "schedule and launch a step while the one before it computes; default: on a GPU"
    )
    enable_prefix_caching: bool = option(True, "reuse the keys and values of prompts that begin alike")
    backend: str | None = option(
        None,
        "kernels to use; default: the best one for the device",
        choices=("cpu", "reference", "triton", "triton+flash"),
    )
    fast_matmul: bool = option(
        False, "multiply with cuBLAS on a GPU: faster, but a row's bits then depend on how many are computed with it"
    )
    enforce_eager: bool = option(False, "launch every kernel of a decode step, where a GPU would replay a CUDA graph")
    threads: int | None = option(None, "CPU threads of the engine; default: the cores this process may use")

    def __post_init__(self) -> None:
        _check_choices(self, "dtype", DTYPES)
        _check_choices(self, "quantization", QUANTIZATIONS)
        _check_choices(self, "device", DEVICES)
        _check_choices(self, "kv_cache_dtype", KV_CACHE_DTYPES)
        if self.quantization_group is not None and self.quantization not in ("int8", "int4"):
            raise ValueError(f"quantization_group is for quantization int8 and int4, got {self.quantization}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"gpu_memory_utilization must be more than 0 and at most 1, got {self.gpu_memory_utilization}"
            )
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_cache_memory_bytes", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.max_step_ms is not None and not self.max_step_ms > 0:
            raise ValueError(f"max_step_ms must be more than 0, got {self.max_step_ms}")
        if self.block_size < 1 or (128 % self.block_size and self.block_size % 128):
            raise ValueError(f"block_size must divide 128 (the key tile) or be a multiple of it, got {self.block_size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where a server listens and under which name it answers."""

    host: str = option("127.0.0.1", "address of both servers")
    port: int = option(8000, "HTTP port; 0 takes a free one")
    grpc_port: int = option(50051, "gRPC port; 0 takes a free one")
    served_model_name: list[str] = option(
        [], "names clients may use, the first of which responses carry; default: the model as it was given"
    )
    chat_template: str | None = option(
        None, "a jinja file, or polylm-base, polylm-multialpaca, polylm-chat; default: the checkpoint's"
    )
    api_keys_file: str | None = option(
        None, "names and hashes of the keys that calls need (polyserve keys makes them); also POLYSERVE_API_KEYS"
    )
    tls_cert: str | None = option(None, "certificate in PEM, for HTTPS and gRPC over TLS; needs --tls-key")
    tls_key: str | None = option(None, "its private key in PEM, without a password")
    cors_origins: list[str] = option([], "origins whose web pages may call, such as https://example.org; default: none")
    normalize_input: str = option(
        "none",
        "nfc: compose the characters of prompts and conversations before they are tokenised; not of stop strings",
        choices=("none", "nfc"),
    )
    store: str | None = option(None, "file to keep chat completions in whose requests say so; default: none are kept")
    store_limit: int = option(1000, "stored completions of one API key; the oldest go first")
    tool_call_parser: str = option(
        "auto", "how the model writes calls of functions; auto: as its chat template tells", choices=TOOL_CALL_PARSERS
    )
    max_logprobs: int = option(20, "most alternatives a request may ask for at each token")
    grammar_timeout_ms: int = option(GRAMMAR_TIMEOUT_MS, "processor time that compiling a request's grammar may take")
    step_timeout: float = option(60.0, "seconds after which an engine that is silent is stuck, and is started again")
    fork_server: bool = option(
        True, "Linux: fork engines from a process that has all but the model: restarts are 2 s shorter, for 150 MB"
    )
    request_timeout: float = option(600.0, "seconds that a request may take; clients can ask for less, not for more")
    drain_timeout: float = option(25.0, "seconds that running requests may take when the server is told to end")
    metrics_compat: str = option(
        "none",
        "vllm: /metrics also under vLLM's names, for dashboards and gateways made for it",
        choices=("none", "vllm"),
    )
    otlp_traces_endpoint: str | None = option(
        None, "send traces to this OpenTelemetry collector, such as http://localhost:4318/v1/traces"
    )
    log_format: str = option("text", "how log lines are written", choices=("text", "json"))
    access_log: bool = option(False, "log a line for each HTTP request: method, path, status, time, key's name")
    log_level: str = option("info", "least important lines to log", choices=LOG_LEVELS)
    log_level_file: str | None = option(None, "a file that holds the level instead; SIGHUP reads it again")

    def __post_init__(self) -> None:
        _check_choices(self, "metrics_compat", ("none", "vllm"))
        _check_choices(self, "log_format", ("text", "json"))
        _check_choices(self, "log_level", LOG_LEVELS)
        _check_choices(self, "tool_call_parser", TOOL_CALL_PARSERS)
        if self.grammar_timeout_ms < 1:
            raise ValueError(f"grammar_timeout_ms must be at least 1, got {self.grammar_timeout_ms}")
        for name in ("step_timeout", "request_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)}")
        if not self.drain_timeout >= 0:
            raise ValueError(f"drain_timeout must be at least 0, got {self.drain_timeout}")
        _check_choices(self, "normalize_input", ("none", "nfc"))
        if self.store_limit < 1:
            raise ValueError(f"store_limit must be at least 1, got {self.store_limit}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together, got one of them")
        for name in ("port", "grpc_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ValueError(f"{name} must be between 0 and 65535, got {getattr(self, name)}")


def _check_choices(config: object, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
