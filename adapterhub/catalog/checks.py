"""Everything `adapt validate` can say: one row a check. The codes are stable; docs and help are made from this table.

ADP0xx the package's files · ADP1xx its config and manifest · ADP2xx its base model · ADP3xx its weights against both ·
ADP4xx what cannot be answered from headers and config alone. A row's severity and exit code are those of a fault; what
could not be looked at is reported under the same code with the severity `not-checked`, which is never a pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from adapterhub.errors import ExitCode
from adapterhub.spec.report import Finding, Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that is looked at: its code, what a fault means (`why`), and what to do about it (`hint`)."""

    code: str
    title: str
    severity: Severity
    exit_code: ExitCode
    hint: str
    why: str

    def found(self, where: str, message: str, *, hint: str | None = None) -> Finding:
        """Return a fault of this check; `hint` replaces the row's where a better one is known."""
        return Finding(
            code=self.code,
            severity=self.severity,
            where=where,
            message=message,
            hint=hint or self.hint,
            exit_code=self.exit_code if self.severity is Severity.ERROR else ExitCode.OK,
        )

    def not_checked(self, where: str, reason: str, *, hint: str | None = None) -> Finding:
        """Return the finding that this check could not be made, and why."""
        return Finding(
            code=self.code,
            severity=Severity.NOT_CHECKED,
            where=where,
            message=f"{self.title}: not checked, {reason}",
            hint=hint,
            exit_code=ExitCode.UNDECIDED,
        )


def _error(code: str, exit_code: ExitCode, title: str, why: str, hint: str) -> Check:
    return Check(code=code, title=title, severity=Severity.ERROR, exit_code=exit_code, hint=hint, why=why)


def _warning(code: str, title: str, why: str, hint: str) -> Check:
    return Check(code=code, title=title, severity=Severity.WARNING, exit_code=ExitCode.OK, hint=hint, why=why)


_INVALID, _DAMAGED, _UNFIT = ExitCode.USAGE, ExitCode.INTEGRITY, ExitCode.INCOMPATIBLE
_REBUILD = "ask the adapter's author for a complete one, or train it again"

_FILES = (
    _error(
        "ADP001",
        _INVALID,
        "the package's files can be read",
        "Without a config and weights there is no adapter.",
        "name a folder that holds adapter_config.json and adapter_model.safetensors",
    ),
    _error(
        "ADP002",
        _INVALID,
        "weights are safetensors, not a pickle",
        "Loading a pickle runs whatever code it carries; a pickle renamed .safetensors is still one.",
        "ask the author for safetensors, or, where you trust them, load it with PEFT in a sandbox and save it again",
    ),
    _error(
        "ADP003",
        _DAMAGED,
        "the weights' header adds up",
        "A header with gaps, overlaps or a wrong size is damage, or an attack on whoever reads it.",
        "fetch the file again",
    ),
    _error(
        "ADP004",
        _DAMAGED,
        "every listed file is there",
        "The manifest lists what belongs to the package.",
        "install it again: adapt install; where it was not installed, fetch it again",
    ),
    _error(
        "ADP005",
        _DAMAGED,
        "every listed file has its recorded size and digest",
        "An edited lora_alpha or a flipped bit loads silently and changes what the adapter does.",
        "install it again: adapt install; if you changed it on purpose: adapt pack DIR --force",
    ),
    _error(
        "ADP006",
        _INVALID,
        "file names are safe",
        "Links, devices and names that climb out of the folder, or that another platform cannot store, are refused.",
        "rename the file, or put a regular file in its place",
    ),
    _error(
        "ADP007",
        _DAMAGED,
        "the provenance is about this manifest",
        "Its subject is the manifest's digest; another subject says nothing about this package.",
        "fetch the package again, or delete adapter_provenance.json",
    ),
    _warning(
        "ADP008",
        "every file of the folder is listed",
        "A file that the manifest does not list is neither verified nor published.",
        "remove it, or list it: adapt pack DIR --force",
    ),
)

_CONFIG = (
    _error(
        "ADP101",
        _INVALID,
        "the manifest is valid",
        "It breaks a rule of docs/format.md.",
        "correct adapter_manifest.json, or write it again: adapt pack DIR --force",
    ),
    _error(
        "ADP102",
        _INVALID,
        "adapter_config.json is valid",
        "PEFT would stop, or guess.",
        "correct adapter_config.json by the method's page in PEFT's docs",
    ),
    _error(
        "ADP103",
        _INVALID,
        "peft_type is known",
        "PEFT stops with a bare KeyError at a method it does not know.",
        "upgrade adapterhub and peft if the method is new",
    ),
    _error(
        "ADP104",
        _INVALID,
        "no setting is unknown",
        "PEFT drops settings it does not know with a warning; one that is set changes what the adapter computes.",
        "upgrade adapterhub and peft to at least the version that wrote the adapter",
    ),
    _error(
        "ADP105",
        _INVALID,
        "manifest and adapter_config.json agree",
        "PEFT reads the one, adapterhub's tables and search the other.",
        "write the manifest again from the config: adapt pack DIR --force",
    ),
    _error(
        "ADP106",
        _INVALID,
        "no code is asked for",
        "auto_map and trust_remote_code make loaders import Python files of the repository; adapterhub never does.",
        "remove the field; an adapter's weights need no code",
    ),
    _error(
        "ADP107",
        _INVALID,
        "text holds no control characters",
        "Escape sequences in a name or summary rewrite what a terminal shows.",
        "remove the characters",
    ),
    _warning(
        "ADP108",
        "task_type is set",
        "Without it PEFT does not save a task's head, and picks a bare PeftModel at load.",
        "set task_type in adapter_config.json to one of PEFT's",
    ),
    _warning(
        "ADP109",
        "the name is safe as a PEFT adapter name",
        "PEFT puts adapter names into parameter names: a dot, or a piece of `lora_`, makes it mistake keys.",
        "adapterhub uses names of its own; elsewhere pass another adapter_name to PEFT",
    ),
    _warning(
        "ADP110",
        "the start of training left the base as it is",
        "PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ change the base's weights first: loading repeats that, and is only "
        "right on bit-equal weights and library versions.",
        "convert it in PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...)",
    ),
    _warning(
        "ADP111",
        "the adapter was trained on a base as it is run",
        "Trained on a quantized base, it also corrects the quantization's error; on other weights quality shifts.",
        "compare the results on your own data",
    ),
)

_BASE = (
    _error(
        "ADP201",
        _UNFIT,
        "the base model is the one it was trained on",
        "Another base of the same shapes loads silently and gives worse text than no adapter.",
        "name the right base: adapt validate PACKAGE --base NAME (adapt base list shows what is here)",
    ),
    _warning(
        "ADP202",
        "the base's revision is the one it was trained on",
        "Another revision of the same base may have other weights.",
        "pin the revision when you add the base",
    ),
    _warning(
        "ADP203",
        "the base is not a relative of the one it was trained on",
        "Base and instruct siblings take each other's adapters, with other results.",
        "use the base the adapter names, or compare the results on your own data",
    ),
    _warning(
        "ADP204",
        "the base can be told from others",
        "Where nothing of the base was recorded, only names and shapes can be compared.",
        "record it: adapt pack DIR --base NAME, for a base of adapt base list",
    ),
    _warning(
        "ADP205",
        "the base is named by its canonical id",
        "A local path, a mirror or a pre-quantized copy is found by nobody else.",
        "set base_model_name_or_path to the original's id, and record it: adapt pack DIR --base NAME",
    ),
    _warning(
        "ADP206",
        "the tokenizer is the one it was trained with",
        "Other token ids mean other words.",
        "use the tokenizer that comes with the adapter, if there is one",
    ),
    _warning(
        "ADP207",
        "the chat template is the one it was trained with",
        "Another template, or another end of turn, degrades answers silently.",
        "use the template that comes with the adapter, if there is one",
    ),
    _error(
        "ADP208",
        _UNFIT,
        "the vocabulary has the base's size",
        "Embedding rows that differ from the base's crash at load, or give garbage.",
        "resize the base's embeddings as the adapter's author did, or use the base they used",
    ),
    _warning(
        "ADP209",
        "the tokenizer fills the embeddings",
        "Some families (Qwen) have more embedding rows than tokens; tools that shrink them to fit break the adapter.",
        "do not call resize_token_embeddings to shrink",
    ),
)

_WEIGHTS = (
    _error(
        "ADP301",
        _UNFIT,
        "no weight is left over",
        "PEFT drops keys that the base has no module for, silently: half an adapter.",
        "use the base the adapter was trained on",
    ),
    _error("ADP302", _UNFIT, "no weight is missing", "PEFT fills in what is missing with fresh weights.", _REBUILD),
    _error(
        "ADP303",
        _UNFIT,
        "target_modules covers every weight",
        "PEFT drops the weights of modules that the config does not target, silently.",
        "add the modules to target_modules in adapter_config.json",
    ),
    _warning(
        "ADP304",
        "every entry of target_modules matches a module",
        "PEFT stops only when none matches; a typing error in one goes unseen.",
        "correct or remove the entry in adapter_config.json",
    ),
    _error("ADP305", _UNFIT, "shapes fit the base", "PEFT stops while loading.", "use the base it was trained on"),
    _error(
        "ADP306",
        _UNFIT,
        "ranks are those of r and rank_pattern",
        "The scaling is lora_alpha / r: with another r than the weights', the adapter is too strong or too weak.",
        "correct r or rank_pattern in adapter_config.json",
    ),
    _error(
        "ADP307",
        _UNFIT,
        "names carry the base's prefix",
        "With another prefix (`language_model.`, `model.`) nothing matches, and engines silently serve the bare base.",
        "rename the keys to the base's module paths, or use the model class it was trained with",
    ),
    _error(
        "ADP308",
        _UNFIT,
        "the task's head is there",
        "A classifier whose head was not saved gets a random one at load.",
        "train again with task_type set, or with the head in modules_to_save",
    ),
    _warning(
        "ADP309",
        "tied embeddings are left alone",
        "With tie_word_embeddings, LoRA on embeddings or lm_head gives other results merged than unmerged.",
        "untie them before a merge: adapt merge refuses it",
    ),
    _error(
        "ADP310",
        _UNFIT,
        "every weight is one of the method's",
        "A key that belongs to no parameter of the method (often one with an adapter's name left in) is dropped.",
        "save the adapter with PEFT's save_pretrained, which takes the adapter's name out of the keys",
    ),
    _error(
        "ADP311",
        _UNFIT,
        "A and B come in pairs of one rank",
        "One without the other is no delta.",
        _REBUILD,
    ),
    _error(
        "ADP312",
        _UNFIT,
        "DoRA's magnitudes match use_dora",
        "Without its magnitudes DoRA is another function; magnitudes without use_dora are dropped.",
        "set use_dora in adapter_config.json as it was in training",
    ),
    _error(
        "ADP313",
        _UNFIT,
        "B's biases match lora_bias",
        "A bias the config does not announce is dropped; one that is missing is made new.",
        "set lora_bias in adapter_config.json as it was in training",
    ),
    _error(
        "ADP314",
        _UNFIT,
        "the adapter does something on this base",
        "When no weight meets a module, an engine serves the bare base and says nothing.",
        "use the base the adapter was trained on",
    ),
    _error(
        "ADP315",
        _UNFIT,
        "weights are floating-point numbers",
        "Integer or boolean adapter weights are no adapter that PEFT wrote.",
        _REBUILD,
    ),
)

_DEEP = (
    _error(
        "ADP401",
        _INVALID,
        "no weight is NaN or infinite",
        "One NaN makes every answer NaN.",
        _REBUILD,
    ),
    _warning(
        "ADP402",
        "the weights change something",
        "An adapter whose B is zero, or whose factors are all one, was never trained and changes nothing.",
        _REBUILD,
    ),
    _error(
        "ADP403",
        _UNFIT,
        "fused and replicated modules are met",
        "Fused experts, replicated layers and LoRA on bare parameters exist only in the built model, not in the files.",
        "adapt validate PACKAGE --meta",
    ),
    _error(
        "ADP404",
        _UNFIT,
        "weights of other methods fit",
        "Headers tell the names and shapes of LoRA's weights and our own methods'; those of others, the built model.",
        "adapt validate PACKAGE --meta",
    ),
)

_DOCUMENTS = (
    _error(
        "ADP501",
        _INVALID,
        "the document follows its format",
        "A key that is misspelt or out of bounds would mean something else than was meant.",
        "see docs/format.md",
    ),
)

CHECKS: Mapping[str, Check] = MappingProxyType(
    {check.code: check for check in (*_FILES, *_CONFIG, *_BASE, *_WEIGHTS, *_DEEP, *_DOCUMENTS)}
)
