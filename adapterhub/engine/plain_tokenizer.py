"""A base's tokenizer without transformers: what is needed to count the tokens of rows, and no more.

It reads tokenizer.json with the tokenizers library and renders chat templates with jinja2, in the sandbox and with the
settings that transformers has (https://huggingface.co/docs/transformers/chat_templating), so that a plan counts what a
build will count and imports neither torch nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from adapterhub.documents import read_json
from adapterhub.errors import AdapterHubError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


T = TypeVar("T", bound="PlainTokenizer")


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a text, or each text of a list, became."""

    input_ids: Any
    offsets: Any

    def __getitem__(self, name: str) -> Any:
        return {"input_ids": self.input_ids, "offset_mapping": self.offsets}[name]


class PlainTokenizer:
    """The part of transformers' tokenizers that engine/data.py asks for."""

    is_fast = True

    def __init__(self, tokenizer: Tokenizer, config: Mapping[str, object], template: str | None) -> None:
        self._tokenizer = tokenizer
        self.chat_template = template
        self._special = {name: text for name in _SPECIAL if (text := _content(config.get(name))) is not None}
        self._compiled: Any = None
        extra = config.get("additional_special_tokens", config.get("extra_special_tokens"))
        texts = [*self._special.values(), *(_content(item) for item in (extra if isinstance(extra, list) else ()))]
        ids = (tokenizer.token_to_id(text) for text in texts if text is not None)
        self.all_special_ids = [i for i in ids if i is not None]
        self.added_tokens_decoder = tokenizer.get_added_tokens_decoder()

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a sequence."""
        text = self._special.get("eos_token")
        return None if text is None else self._tokenizer.token_to_id(text)

    def __call__(
        self, text: str | Sequence[str], *, add_special_tokens: bool = True, return_offsets_mapping: bool = False
    ) -> Encoded:
        """Turn a text, or a list of them, into ids."""
        del return_offsets_mapping
        if isinstance(text, str):
            one = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
            return Encoded(one.ids, one.offsets)
        many = self._tokenizer.encode_batch(list(text), add_special_tokens=add_special_tokens)
        return Encoded([one.ids for one in many], [one.offsets for one in many])

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, tokenize: bool, add_generation_prompt: bool = False
    ) -> str:
        """Render a chat; templates raise what they like."""
        assert not tokenize and self.chat_template is not None
        if self._compiled is None:
            self._compiled = _compile(self.chat_template)
        rendered: str = self._compiled.render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._special,
        )
        return rendered


@overload
def read_plain_tokenizer(folder: Path) -> PlainTokenizer | None: ...
@overload
def read_plain_tokenizer(folder: Path, *, kind: type[T]) -> T | None: ...
def read_plain_tokenizer(folder: Path, *, kind: type[Any] = PlainTokenizer) -> Any:
    """Read a folder's tokenizer; None where it has no tokenizer.json, or one that cannot be read so."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
        config = _read(folder / "tokenizer_config.json")
        template = _template(folder, config)
    except (AdapterHubError, OSError, UnicodeDecodeError):
        return None
    except Exception as error:  # the library raises a bare Exception for a file it cannot read
        if type(error) is not Exception:
            raise
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return kind(tokenizer, config, template)


def _read(path: Path) -> Mapping[str, object]:
    data = read_json(path) if path.is_file() else {}
    return data if isinstance(data, Mapping) else {}


def _template(folder: Path, config: Mapping[str, object]) -> str | None:
    """Return the chat template from the places that transformers looks in, in its order."""
    if (path := folder / "chat_template.jinja").is_file():
        return path.read_text("utf-8")
    found = _read(folder / "chat_template.json").get("chat_template", config.get("chat_template"))
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, Mapping)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _content(token: object) -> str | None:
    """Return a special token's text: configs write it plain, or as an object with its properties."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _compile(template: str) -> Any:
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Lets `{% generation %}` pass: it marks the assistant's words and prints nothing of its own."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def to_json(value: object, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def strftime_now(form: str) -> str:
        from datetime import datetime

        return datetime.now().strftime(form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment.from_string(template)
