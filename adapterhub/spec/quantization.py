"""Quantization of a base model, in `BitsAndBytesConfig`'s own words."""

from __future__ import annotations

from dataclasses import dataclass, replace

from adapterhub.spec._decode import Reader

DTYPES = ("float32", "bfloat16", "float16")
QUANT_TYPES = ("nf4", "fp4")
STORAGES = ("uint8", *DTYPES)
# Columns of activations with a greater entry are multiplied in 16 bits (https://arxiv.org/abs/2208.07339, section 3.2).
OUTLIER_THRESHOLD = 6.0
_FOUR_BITS_ALONE = (
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_storage",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """What the base is loaded as, 8-bit (LLM.int8) or 4-bit (NF4, FP4), in the words of BitsAndBytesConfig.

    bnb_4bit_compute_dtype: what products are computed in; None in a recipe leaves it to the device, in a manifest it
    was not recorded. bnb_4bit_quant_storage: the type that packed weights lie in. llm_int8_skip_modules: modules that
    are not packed (with 4 bits neither), besides the output layer and heads, which never are.
    """

    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: str = "nf4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_compute_dtype: str | None = None
    bnb_4bit_quant_storage: str = "uint8"
    llm_int8_threshold: float = OUTLIER_THRESHOLD
    llm_int8_skip_modules: tuple[str, ...] = ()

    @classmethod
    def read(cls, reader: Reader | None) -> Quantization | None:
        """Read the mapping of a document; an absent one is None (the base is not quantized)."""
        if reader is None:
            return None
        computed = None
        if "bnb_4bit_compute_dtype" in reader:
            computed = reader.string("bnb_4bit_compute_dtype", choices=DTYPES)
        value = cls(
            load_in_4bit=reader.boolean("load_in_4bit", False),
            load_in_8bit=reader.boolean("load_in_8bit", False),
            bnb_4bit_quant_type=reader.string("bnb_4bit_quant_type", "nf4", choices=QUANT_TYPES),
            bnb_4bit_use_double_quant=reader.boolean("bnb_4bit_use_double_quant", False),
            bnb_4bit_compute_dtype=computed,
            bnb_4bit_quant_storage=reader.string("bnb_4bit_quant_storage", "uint8", choices=STORAGES),
            llm_int8_threshold=reader.number("llm_int8_threshold", OUTLIER_THRESHOLD, minimum=0.0),
            llm_int8_skip_modules=reader.strings(
                "llm_int8_skip_modules", (), pattern=r"[A-Za-z0-9_.]{1,200}", shape="the name of a module"
            ),
        )
        if reader.clean and value.load_in_4bit == value.load_in_8bit:
            reader.fault(None, "set exactly one of load_in_4bit and load_in_8bit, or leave quantization out")
        elif reader.clean:
            for key in _FOUR_BITS_ALONE if value.load_in_8bit else ("llm_int8_threshold",):
                if key in reader:
                    reader.fault(key, f"has no meaning with load_in_{value.bits}bit")
        reader.finish(known=("bnb_4bit_compute_dtype",))
        return value

    @property
    def bits(self) -> int:
        """Bits of a packed weight: 4 or 8."""
        return 8 if self.load_in_8bit else 4

    @property
    def is_first_form(self) -> bool:
        """True where nothing is said that the first formats could not say."""
        newer = self.to_data().keys() & {"bnb_4bit_quant_storage", "llm_int8_threshold", "llm_int8_skip_modules"}
        return not newer and (self.load_in_8bit or self.bnb_4bit_compute_dtype is not None)

    def computing_in(self, dtype: str) -> Quantization:
        """Return it with a compute dtype, where 4 bits have none yet: what a device decides."""
        if self.load_in_8bit or self.bnb_4bit_compute_dtype is not None:
            return self
        return replace(self, bnb_4bit_compute_dtype=dtype)

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data; what says no more than a default did not exist in the first formats is left out."""
        found: dict[str, object] = {f"load_in_{self.bits}bit": True}
        if self.load_in_4bit:
            found |= {
                "bnb_4bit_quant_type": self.bnb_4bit_quant_type,
                "bnb_4bit_use_double_quant": self.bnb_4bit_use_double_quant,
            }
            if self.bnb_4bit_compute_dtype is not None:
                found["bnb_4bit_compute_dtype"] = self.bnb_4bit_compute_dtype
            if self.bnb_4bit_quant_storage != "uint8":
                found["bnb_4bit_quant_storage"] = self.bnb_4bit_quant_storage
        elif self.llm_int8_threshold != OUTLIER_THRESHOLD:
            found["llm_int8_threshold"] = self.llm_int8_threshold
        if self.llm_int8_skip_modules:
            found["llm_int8_skip_modules"] = list(self.llm_int8_skip_modules)
        return found

    def __str__(self) -> str:
        if self.load_in_8bit:
            return "8-bit (LLM.int8)"
        return f"4-bit ({self.bnb_4bit_quant_type}{', double quantization' * self.bnb_4bit_use_double_quant})"
