"""Quantization of a base model, in `BitsAndBytesConfig`'s own words."""

from __future__ import annotations

from dataclasses import dataclass

from adapterhub.spec._decode import Reader

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """What the base is loaded as, 8-bit (LLM.int8) or 4-bit (NF4, FP4), in the words of BitsAndBytesConfig."""

    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: str = "nf4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_compute_dtype: str = "bfloat16"

    @classmethod
    def read(cls, reader: Reader | None) -> Quantization | None:
        """Read the mapping of a document; an absent one is None (the base is not quantized)."""
        if reader is None:
            return None
        value = cls(
            load_in_4bit=reader.boolean("load_in_4bit", False),
            load_in_8bit=reader.boolean("load_in_8bit", False),
            bnb_4bit_quant_type=reader.string("bnb_4bit_quant_type", "nf4", choices=("nf4", "fp4")),
            bnb_4bit_use_double_quant=reader.boolean("bnb_4bit_use_double_quant", False),
            bnb_4bit_compute_dtype=reader.string("bnb_4bit_compute_dtype", "bfloat16", choices=DTYPES),
        )
        if reader.clean and value.load_in_4bit == value.load_in_8bit:
            reader.fault(None, "set exactly one of load_in_4bit and load_in_8bit, or leave quantization out")
        reader.finish()
        return value

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        if self.load_in_8bit:
            return {"load_in_8bit": True}
        return {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": self.bnb_4bit_quant_type,
            "bnb_4bit_use_double_quant": self.bnb_4bit_use_double_quant,
            "bnb_4bit_compute_dtype": self.bnb_4bit_compute_dtype,
        }
