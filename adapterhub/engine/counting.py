"""A base's tokenizer without transformers, with what tasks other than chats ask of it: pairs, cuts, windows.

It is told what transformers tells the tokenizers library, so that a plan counts what a build will count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.engine.plain_tokenizer import PlainTokenizer, read_plain_tokenizer

if TYPE_CHECKING:
    from tokenizers import Encoding

_STRATEGIES: Mapping[object, str] = {
    True: "longest_first",
    "longest_first": "longest_first",
    "only_second": "only_second",
}


class Windows:
    """Encodings by transformers' names for their parts."""

    def __init__(self, found: Sequence[tuple[int, Encoding]]) -> None:
        self._found = found

    def get(self, name: str) -> Any:
        """Return one part of every encoding, None where there is no such."""
        encodings = [encoding for _, encoding in self._found]
        if name == "input_ids":
            return self.input_ids
        if name == "token_type_ids":
            return [encoding.type_ids for encoding in encodings]
        if name == "offset_mapping":
            return [encoding.offsets for encoding in encodings]
        return [row for row, _ in self._found] if name == "overflow_to_sample_mapping" else None

    @property
    def input_ids(self) -> list[list[int]]:
        """The tokens of every encoding."""
        return [encoding.ids for _, encoding in self._found]

    def __getitem__(self, name: str) -> Any:
        return self.get(name)

    def sequence_ids(self, index: int) -> list[int | None]:
        """Return of which text each token of an encoding is."""
        return self._found[index][1].sequence_ids


class CountingTokenizer(PlainTokenizer):
    """The part of transformers' tokenizers that engine/tasks asks for."""

    @property
    def cls_token_id(self) -> int | None:
        """The token before a text, where there is one."""
        text = self._special.get("cls_token")
        return None if text is None else self._tokenizer.token_to_id(text)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many tokens a text, or a pair of them, gets besides its own."""
        return self._tokenizer.num_special_tokens_to_add(pair)

    def __call__(  # type: ignore[override]
        self,
        text: str | Sequence[str] = (),
        text_pair: Sequence[str] | None = None,
        *,
        truncation: bool | str = False,
        max_length: int | None = None,
        stride: int = 0,
        add_special_tokens: bool = True,
        return_overflowing_tokens: bool = False,
        return_offsets_mapping: bool = False,
        text_target: Sequence[str] | None = None,
        verbose: bool = True,
    ) -> Any:
        """Turn texts, or pairs of them, into ids, cut as transformers cuts them.

        text_target: texts to be learned; as in transformers, tokenizers of this kind treat them like any other.
        """
        del verbose, return_offsets_mapping
        if isinstance(text, str):
            return super().__call__(text, add_special_tokens=add_special_tokens)
        text = text if text_target is None else text_target
        given: list[Any] = list(text) if text_pair is None else list(zip(text, text_pair, strict=True))
        if truncation:
            assert max_length is not None
            self._tokenizer.enable_truncation(max_length, stride=stride, strategy=_STRATEGIES[truncation])
        try:
            encodings = self._tokenizer.encode_batch(given, add_special_tokens=add_special_tokens)
        finally:
            self._tokenizer.no_truncation()
        pieces = [
            (row, piece)
            for row, encoding in enumerate(encodings)
            for piece in (encoding, *(encoding.overflowing if return_overflowing_tokens else ()))
        ]
        return Windows(pieces)


def read_counting_tokenizer(folder: Path) -> CountingTokenizer | None:
    """Read a folder's tokenizer; None where `read_plain_tokenizer` cannot."""
    return read_plain_tokenizer(folder, kind=CountingTokenizer)
