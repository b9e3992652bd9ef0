"""The command lines that serve exported adapters: ready to paste, quoted for a POSIX shell."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapterhub.bases import BaseRecord
from adapterhub.catalog.engines import ServingEngine

# Where a base has no GGUF file that we know of, the user's goes here.
_BASE_GGUF = "BASE.gguf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command line. title: what it is for."""

    title: str
    text: str

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {"title": self.title, "command": self.text}


def commands_of(
    engine: ServingEngine,
    base: BaseRecord,
    adapters: Sequence[tuple[str, Path]],
    *,
    out: Path,
    rank: int,
    tokenizer: Path | None = None,
) -> tuple[Command, ...]:
    """Return the command lines for adapters (name, path) below `out`.

    rank: the highest of any. tokenizer: the folder of the adapter whose tokenizer replaces the base's.
    """
    found = [(name, path.absolute()) for name, path in adapters]
    if engine.gguf:
        return _llama_cpp(found)
    model = _model(base)
    words = tokenizer.absolute() if tokenizer is not None else None
    if engine.name == "vllm":
        return _vllm(model, base, found, out=out.absolute(), rank=rank, tokenizer=words)
    return _sglang(model, found, rank=rank, tokenizer=words)


def _model(base: BaseRecord) -> list[str]:
    """Return how engines are told which base: by its id where the Hub has it, with the revision, else its folder."""
    if base.source != "hub-cache":
        return [str(base.path)]
    return [base.ref.id, *(["--revision", base.ref.revision] if base.ref.revision else [])]


def _vllm(
    model: list[str],
    base: BaseRecord,
    adapters: Sequence[tuple[str, Path]],
    *,
    out: Path,
    rank: int,
    tokenizer: Path | None,
) -> tuple[Command, ...]:
    """Source: https://docs.vllm.ai/en/latest/features/lora/."""
    serve = ["vllm", "serve", *model, *(["--tokenizer", str(tokenizer)] if tokenizer else [])]
    serve += ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", str(len(adapters))]
    modules = [
        json.dumps({"name": name, "path": str(path), "base_model_name": model[0]}, ensure_ascii=False)
        for name, path in adapters
    ]
    loads = [json.dumps({"lora_name": name, "lora_path": str(path)}, ensure_ascii=False) for name, path in adapters]
    commands = [
        Command(title="serve", text=shlex.join([*serve, "--lora-modules", *modules])),
        Command(
            title="serve, and load adapters at run time",
            text=f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=true {shlex.join(serve)}",
        ),
    ]
    post = ["curl", "http://localhost:8000/v1/load_lora_adapter", "-H", "Content-Type: application/json", "-d"]
    commands += [Command(title="load one", text=shlex.join([*post, body])) for body in loads]
    if base.source == "hub-cache":
        # The resolver takes a folder only if the base that its config names is, to the letter, what is served.
        folder = shlex.quote(f"VLLM_LORA_RESOLVER_CACHE_DIR={out}")
        settings = f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=true VLLM_PLUGINS=lora_filesystem_resolver {folder}"
        commands.append(
            Command(
                title="serve, and take an adapter when a request names it", text=f"env {settings} {shlex.join(serve)}"
            )
        )
    return tuple(commands)


def _sglang(
    model: list[str], adapters: Sequence[tuple[str, Path]], *, rank: int, tokenizer: Path | None
) -> tuple[Command, ...]:
    """Source: https://docs.sglang.ai/advanced_features/lora.html."""
    launch = ["python", "-m", "sglang.launch_server", "--model-path", *model]
    launch += ["--tokenizer-path", str(tokenizer)] if tokenizer else []
    launch += ["--enable-lora", "--max-lora-rank", str(rank)]
    return (Command(title="serve", text=shlex.join([*launch, "--lora-paths", *[f"{n}={p}" for n, p in adapters]])),)


def _llama_cpp(adapters: Sequence[tuple[str, Path]]) -> tuple[Command, ...]:
    """Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md."""
    serve = ["llama-server", "-m", _BASE_GGUF, "--lora", ",".join(str(path) for _, path in adapters)]
    if len(adapters) == 1:
        return (Command(title=f"serve ({_BASE_GGUF}: the base as GGUF)", text=shlex.join(serve)),)
    body = {"prompt": "…", "lora": [{"id": 0, "scale": 1.0}]}
    post = ["curl", "http://localhost:8080/completion", "-d", json.dumps(body, ensure_ascii=False)]
    return (
        Command(
            title=f"serve, no adapter active ({_BASE_GGUF}: the base as GGUF)",
            text=shlex.join([*serve, "--lora-init-without-apply"]),
        ),
        Command(title=f"ask with one, by its place: {adapters[0][0]} is 0", text=shlex.join(post)),
    )
