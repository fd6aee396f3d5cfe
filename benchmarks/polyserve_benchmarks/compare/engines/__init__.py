"""One file an engine. Each runs in that engine's own environment, where nothing of PolyServe is installed, so a file
imports the standard library and its engine alone, inside `load(job)`. What `load` returns has `version: str`,
`settings: dict` and `generate(prompts, num_tokens) -> list[list[int]]`: greedy, the end of sequence ignored, every
answer `num_tokens` long, token ids in and out. A file may also have `prepare(job)`, run before loading is timed.
The keys of a job are those of `polyserve_benchmarks.compare.process.Job`.
"""
