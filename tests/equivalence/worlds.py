"""Adapters of every method over tiny bases of every architecture, and what each way to use one makes of a text.

An adapter is made and saved by plain PEFT, its trained values drawn at random. `active` is the reference: plain PEFT
over plain transformers. Every other way goes through what a user calls.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from packaging.version import Version

from adapterhub import load
from adapterhub.bases import BaseRecord, BaseStore, read_base
from adapterhub.catalog.method_targets import with_default_modules
from adapterhub.catalog.methods import METHODS, check_hyperparameters
from adapterhub.catalog.own_methods import OWN_TYPES
from adapterhub.catalog.tasks import TASKS
from adapterhub.engine import adapters
from adapterhub.engine.base import LoadedBase, choose_device, without_future_warnings
from adapterhub.environment import find_environment
from adapterhub.errors import AdapterHubError
from adapterhub.ops.install import install, plan_install
from adapterhub.ops.merge import merge, plan_merge
from adapterhub.ops.publish import plan_publish, publish
from adapterhub.package import derive_manifest, write_manifest
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from tests.catalog.family_configs import tiny_config
from tests.engine.test_methods import CASES as TRAINED
from tests.factory import VOCAB, write_tokenizer

# Word → transformers' model type, task.
ARCHITECTURES: Mapping[str, tuple[str, str]] = {
    "llama": ("llama", "CAUSAL_LM"),
    "gpt2": ("gpt2", "CAUSAL_LM"),
    "bert": ("bert", "FEATURE_EXTRACTION"),
    "t5": ("t5", "SEQ_2_SEQ_LM"),
    "bloom": ("bloom", "CAUSAL_LM"),
    "neox": ("gpt_neox", "CAUSAL_LM"),
    "moe": ("mixtral", "CAUSAL_LM"),
}
# Two layers would say no more, and take twice the time.
_ONE_LAYER: Mapping[str, Mapping[str, int]] = {
    **{name: {"num_hidden_layers": 1} for name in ("llama", "bert", "mixtral")},
    # Its attention has no groups, and PEFT believes a config that says so.
    "gpt_neox": {"num_hidden_layers": 1, "num_key_value_heads": 4},
    **{name: {"n_layer": 1} for name in ("gpt2", "bloom")},
    "t5": {"num_layers": 1, "num_decoder_layers": 1},
}
PATHS = ("loaded", "concatenated", "merged", "exported")
TOKENS = (97, 101, 110, 116, 257)
WEIGHTS = (0.7, -0.4)
_SPREAD = 0.1
# Where our tables name no module, or sizes do not fit: by case and model type.
_NORMS = ("input_layernorm", "post_attention_layernorm")
_GIVEN: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("ia3", "mixtral"): {"target_modules": ["k_proj", "v_proj", "o_proj"], "feedforward_modules": ["o_proj"]},
    ("ln_tuning", "bert"): {"target_modules": ["LayerNorm"]},
    ("ln_tuning", "gpt_neox"): {"target_modules": [*_NORMS, "final_layer_norm"]},
    ("ln_tuning", "mixtral"): {"target_modules": [*_NORMS, "norm"]},
    ("beft", "gpt2"): {"target_modules": ["c_attn"]},
    ("beft", "bloom"): {"target_modules": ["query_key_value"]},
    ("beft", "gpt_neox"): {"target_modules": ["query_key_value"]},
    ("delora", "*"): {"rank_pattern": {}, "lambda_pattern": {}},
    ("fourierft", "*"): {"n_frequency_pattern": {}},
    ("c3a", "*"): {"block_size_pattern": {}},
    ("shira", "*"): {"r": 2},
}
# Rows that are more than a method at its plainest: what is given to PEFT's config.
_MORE: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "lora, two": ("lora", {"r": 4, "lora_alpha": 6}),
    "lora, rsLoRA": ("lora", {"r": 4, "use_rslora": True}),
    "lora, all-linear": ("lora", {"r": 3, "target_modules": "all-linear"}),
    "lora, biases": ("lora", {"r": 4, "bias": "all"}),
    "lora, experts": ("lora", {"r": 2, "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
    "bottleneck": ("bottleneck", {}),
    "bitfit": ("bitfit", {}),
}
_OF_METHODS = {method: given for case, (method, given) in TRAINED.items() if case == method}
CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    **{method: (method, given) for method, given in _OF_METHODS.items()},
    **_MORE,
}
# Stacks of several methods, by the rows that their members have above; each at weight 1, in this order.
MIXED: Mapping[str, tuple[str, ...]] = {
    "lora, ia3": ("lora", "ia3"),
    "ia3, lora": ("ia3", "lora"),
    "lora, dora": ("lora", "dora"),
    "lora, biases, loha": ("lora, biases", "loha"),
    "lora, hra": ("lora", "hra"),
    "lora, prompt_tuning": ("lora", "prompt_tuning"),
    "dora, prefix_tuning": ("dora", "prefix_tuning"),
    "lora, bottleneck": ("lora", "bottleneck"),
}

ROWS: tuple[str, ...] = (*CASES, *MIXED)


class NotHere(Exception):
    """The adapter cannot be made: PEFT does not put the method on the architecture, or it finds nothing to train."""


def refusal(error: BaseException) -> str:
    """Return an error's class and all that it says, to be matched with what is expected."""
    details = getattr(error, "details", ())
    return " | ".join((f"{type(error).__name__}: {error}", *details))


def spread(parameters: Sequence[Any], seed: int, scale: float = _SPREAD) -> None:
    """Move every value off where it began."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


@dataclass
class World:
    """One architecture: its base, adapters over it, and a project that has them installed."""

    root: Path
    word: str
    dtype: str = "float32"
    rows: int = 2
    seed: int = 0
    made: dict[str, tuple[Path, ...] | NotHere] = field(default_factory=dict)

    @property
    def model_type(self) -> str:
        return ARCHITECTURES[self.word][0]

    @property
    def task(self) -> str:
        return ARCHITECTURES[self.word][1]

    @property
    def base_id(self) -> str:
        return f"tiny-{self.word}"

    @cached_property
    def settings(self) -> Settings:
        return Settings(home=self.root / "home", threads=1)

    @cached_property
    def record(self) -> BaseRecord:
        """Write a base of random weights, biases and norms as well, and add it to the base store."""
        import torch

        folder = self.root / "base"
        torch.manual_seed(self.seed)
        config = tiny_config(self.model_type, vocab_size=VOCAB, **_ONE_LAYER[self.model_type])
        model = self.auto_class.from_config(config)
        spread(list(model.parameters()), self.seed)
        model.to(self.torch_dtype).save_pretrained(folder)
        write_tokenizer(folder)
        record = read_base(folder, BaseModelRef(id=self.base_id), "folder")
        BaseStore(self.settings).add(record)
        return record

    @property
    def torch_dtype(self) -> Any:
        import torch

        return getattr(torch, self.dtype)

    @property
    def auto_class(self) -> Any:
        import transformers

        return getattr(transformers, TASKS[self.task].auto_class)

    def plain(self, folder: Path) -> Any:
        """Load a checkpoint as any script does."""
        return self.auto_class.from_pretrained(str(folder), dtype=self.torch_dtype, local_files_only=True).eval()

    @cached_property
    def _base(self) -> Any:
        return self.plain(self.record.path)

    def base(self, dtype: Any = None) -> Any:
        """Return the base, as it was."""
        model = copy.deepcopy(self._base)
        return model if dtype is None else model.to(dtype)

    @cached_property
    def ids(self) -> Any:
        """Rows of twelve tokens, trained ones among them."""
        import torch

        ids = torch.randint(1, 250, (self.rows, 12), generator=torch.Generator().manual_seed(1))
        ids[0, 3:8] = torch.tensor(TOKENS)
        return ids

    def output(self, model: Any) -> Any:
        """Return logits, or the last states of a model without a head, at the text's positions, in float32."""
        import torch

        inputs = {"input_ids": self.ids, "attention_mask": torch.ones_like(self.ids)}
        if self.task == "SEQ_2_SEQ_LM":
            inputs["decoder_input_ids"] = self.ids.flip(0)
        with torch.no_grad():
            found = model(**inputs)
        values = found.logits if hasattr(found, "logits") else found.last_hidden_state
        return values[:, -self.ids.shape[1] :].float()

    # Adapters.

    def adapter(self, case: str, *, seed: int = 0, over: Any = None) -> Any:
        """Return PEFT's model of a case over the base, its values moved; ours for a method that PEFT has not.

        over: a model to put it on instead of the base.
        """
        import torch
        from peft import get_peft_model

        method, given = CASES[case]
        row = METHODS[method]
        given = {**given, **_GIVEN.get((method, "*"), {}), **_GIVEN.get((method, self.model_type), {})}
        # What recipes do not offer, and PEFT makes all the same.
        besides = {name: value for name, value in given.items() if row.hyperparameter(name) is None}
        offered = check_hyperparameters(row, {name: given[name] for name in given if name not in besides}, where=case)
        filled = {**with_default_modules(row, offered, self.model_type, where=case), **besides}
        torch.manual_seed(seed)
        model = self.base() if over is None else over
        names = [name for name, _ in model.named_parameters()]
        if missing := [name for name in given.get("target_parameters", ()) if not any(n.endswith(name) for n in names)]:
            raise ValueError(f"no parameter is named {', '.join(missing)}")
        if row.peft_type in OWN_TYPES:
            base = LoadedBase(model=model, tokenizer=None, device=choose_device("cpu"), dtype=torch.float32)  # type: ignore[arg-type]
            adapted: Any = adapters.attach(base, filled, task=self.task, seed=seed, method=method)
        else:
            config = adapters.peft_config(
                filled,
                task=self.task,
                method=method,
                model_type=self.model_type,
                steps=9,
                layers=getattr(model.config, "num_hidden_layers", None),
            )
            with without_future_warnings():
                adapted = get_peft_model(model, config)
        trained = [item for item in adapted.parameters() if item.requires_grad and item.is_floating_point()]
        if not trained:
            raise ValueError("nothing to train")
        spread(trained, seed + 7)
        return adapted.eval()

    def make(self, case: str) -> tuple[Path, ...]:
        """Return the packages of a case, each saved once.

        Raises:
            NotHere: the method does not go on this architecture.
        """
        if case in MIXED:
            return tuple(self.make(part)[0] for part in MIXED[case])
        if case not in self.made:
            count = len(WEIGHTS) if case.endswith(", two") else 1
            try:
                self.made[case] = tuple(self._save(case, count * self.seed + i) for i in range(count))
            except (AdapterHubError, AttributeError, TypeError, ValueError, NotImplementedError) as error:
                self.made[case] = NotHere(refusal(error))
        made = self.made[case]
        if isinstance(made, NotHere):
            raise made
        return made

    @cached_property
    def project(self) -> Path:
        """Publish every adapter to a folder registry and install them all into one project."""
        project = self.root / "project"
        project.mkdir()
        listed = project / "adapters.yaml"
        head = f'project_version: "1.0"\nbase_model: {self.base_id}\nregistries: {{"*": ../registry}}\n'
        listed.write_text(head)
        environment = find_environment(project, self.settings)
        names = []
        for case in CASES:
            with suppress(NotHere):
                for folder in self.make(case):
                    publish(plan_publish(folder, f"acme/{folder.name}", environment=environment, cwd=project))
                    names.append(folder.name)
        listed.write_text(head + "adapters:\n" + "".join(f"  {name}: acme/{name}\n" for name in names))
        install(plan_install(None, environment=find_environment(project, self.settings), cwd=project))
        return project

    def _save(self, case: str, seed: int) -> Path:
        folder = self.root / "built" / f"{slug(case)}-{seed}"
        model = self.adapter(case, seed=seed)
        if METHODS[CASES[case][0]].peft_type in OWN_TYPES:
            folder.mkdir(parents=True)
            adapters.save(model, folder, base_id=self.base_id, base_revision=None)
        else:
            model.active_peft_config.base_model_name_or_path = self.base_id
            model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)
        manifest = derive_manifest(folder, base=self.record.ref)
        write_manifest(
            folder, replace(manifest, name=folder.name, version=Version("1.0.0"), summary=f"{case} over {self.word}")
        )
        return folder

    # Ways to use them.

    @cached_property
    def bare(self) -> Any:
        return self.output(self._base)

    def stack(self, folders: Sequence[Path], case: str) -> str:
        if len(folders) == 1 or case in MIXED:
            return ",".join(map(str, folders))
        return ",".join(f"{folder}={weight}" for folder, weight in zip(folders, WEIGHTS, strict=True))

    def peft(self, folders: Sequence[Path], dtype: Any = None) -> Any:
        """Return plain PEFT's model with all of the adapters active, each by its weight."""
        from peft import PeftModel

        with without_future_warnings():
            model = PeftModel.from_pretrained(self.base(dtype), str(folders[0]), adapter_name="ad0x")
        if len(folders) > 1:
            model.load_adapter(str(folders[1]), adapter_name="ad1x")
            # PeftModel.set_adapter takes one name; the tuner below it takes several.
            model.base_model.set_adapter(["ad0x", "ad1x"])
            for module in model.modules():
                if isinstance(scaling := getattr(module, "scaling", None), dict):
                    for name, weight in zip(("ad0x", "ad1x"), WEIGHTS, strict=True):
                        scaling[name] *= weight
        return model.eval()

    def mixed(self, case: str) -> Any:
        """Return a stack of several methods by plain PEFT: each merged, and the next loaded over the result."""
        from peft import PeftModel

        model = self.base()
        for part in MIXED[case]:
            method = METHODS[CASES[part][0]]
            if method.peft_type in OWN_TYPES:
                return self.adapter(part, over=model)
            with without_future_warnings():
                model = PeftModel.from_pretrained(model, str(self.make(part)[0]))
            model = model.merge_and_unload() if method.foldable else model
        return model.eval()

    def active(self, case: str) -> Any:
        """The reference: plain PEFT; for a method that it has not, the model that the adapter was made on."""
        if case in MIXED:
            return self.output(self.mixed(case))
        if METHODS[CASES[case][0]].peft_type in OWN_TYPES:
            return self.output(self.adapter(case))
        return self.output(self.peft(self.make(case)))

    def load(self, folders: Sequence[Path], case: str) -> Any:
        where = {"settings": self.settings, "cwd": self.root, "base": self.base_id}
        return load(self.stack(folders, case), dtype=self.dtype, device="cpu", **where).model  # type: ignore[arg-type]

    def loaded(self, case: str) -> Any:
        return self.output(self.load(self.make(case), case))

    def concatenated(self, case: str) -> Any:
        out, stack = self.root / "one" / slug(case), self.stack(self.make(case), case)
        merge(plan_merge(out, stack=stack, as_adapter=True, settings=self.settings, cwd=self.root))
        return self.output(self.peft((out,)))

    def merged(self, case: str) -> Any:
        out = self.root / "merged" / slug(case)
        merge(plan_merge(out, stack=self.stack(self.make(case), case), settings=self.settings, cwd=self.root))
        return self.output(self.plain(out))

    def exported(self, case: str) -> Any:
        found = [self.project / ".adapters" / folder.name for folder in self.make(case)]
        # PEFT knows neither our own methods nor stacks of several: what is installed is opened by what installed it.
        ours = case in MIXED or METHODS[CASES[case][0]].peft_type in OWN_TYPES
        return self.output(self.load(found, case) if ours else self.peft(found))

    def outcome(self, path: str, case: str) -> Any:
        """Return what a way to use a case gives, or the error it ends with."""
        way: Callable[[str], Any] = getattr(self, path)
        try:
            return way(case)
        except AdapterHubError as error:
            return error


def slug(case: str) -> str:
    return case.replace(", ", "-").replace("_", "-").lower()


def difference(one: Any, other: Any) -> float:
    """Return the largest difference as a share of the largest value of the second."""
    return float((one - other).abs().max() / other.abs().max())
