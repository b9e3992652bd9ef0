"""Every method that can be built: trained for a few steps, saved, opened by plain PEFT with the same outputs."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adapterhub.catalog import hyperparameters as rows
from adapterhub.catalog.method_targets import IA3_MODULES, NORMS, VALUES, with_default_modules
from adapterhub.catalog.methods import METHODS, Method, check_hyperparameters, method_named
from adapterhub.catalog.own_methods import OWN_TYPES
from adapterhub.engine import adapters
from adapterhub.engine.data import pad
from adapterhub.engine.loss import token_losses
from adapterhub.engine.train import train
from adapterhub.errors import IncompatibleError
from adapterhub.spec.recipe import TrainingSpec
from tests.engine.tiny import Recorder, examples, load
from tests.factory import read_tensors, tiny_gpt2, tiny_llama

pytestmark = pytest.mark.engine

# What is not the default: small sizes, and every way to begin that has its own code. Names must be unlike.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"r": 4}),
    "rslora": ("lora", {"r": 4, "use_rslora": True}),
    "pissa": ("lora", {"r": 4, "init_lora_weights": "pissa"}),
    "pissa-niter": ("lora", {"r": 4, "init_lora_weights": "pissa_niter_4", "rank_pattern": {"v_proj": 2}}),
    "olora": ("lora", {"r": 4, "init_lora_weights": "olora", "use_rslora": True, "alpha_pattern": {"v_proj": 3}}),
    "dora": ("dora", {"r": 4}),
    "adalora": ("adalora", {"init_r": 6, "target_r": 3}),
    "loha": ("loha", {"r": 4, "alpha": 4}),
    "lokr": ("lokr", {"r": 4}),
    "oft": ("oft", {"oft_block_size": 8}),
    "oft-blocks": ("oft", {"r": 4, "oft_block_size": 0, "block_share": True, "use_cayley_neumann": False}),
    "boft": ("boft", {}),
    "vera": ("vera", {"r": 8}),
    "vera-drawn": ("vera", {"r": 8, "save_projection": False, "projection_prng_key": 7}),
    "ia3": ("ia3", {}),
    "ln_tuning": ("ln_tuning", {}),
    "trainable_tokens": ("trainable_tokens", {"token_indices": [97, 101, 110, 116, 257]}),
    "prompt_tuning": ("prompt_tuning", {"num_virtual_tokens": 4}),
    "prompt-text": (
        "prompt_tuning",
        {"num_virtual_tokens": 5, "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "In few words:"},
    ),
    "prompt-vocabulary": ("prompt_tuning", {"num_virtual_tokens": 3, "prompt_tuning_init": "SAMPLE_VOCAB"}),
    "p-lstm": ("p_tuning", {"num_virtual_tokens": 4, "encoder_reparameterization_type": "LSTM"}),
    "p_tuning": ("p_tuning", {"num_virtual_tokens": 4, "encoder_hidden_size": 16}),
    "prefix_tuning": ("prefix_tuning", {"num_virtual_tokens": 4}),
    "prefix-projection": ("prefix_tuning", {"num_virtual_tokens": 4, "prefix_projection": True}),
    "cartridge": ("cartridge", {"num_virtual_tokens": 4}),
    "adaption_prompt": ("adaption_prompt", {"adapter_len": 4}),
    "pvera": ("pvera", {"r": 8}),
    "vblora": ("vblora", {"r": 2, "num_vectors": 16, "vector_length": 16}),
    "vblora-topk": ("vblora", {"r": 2, "num_vectors": 16, "vector_length": 16, "save_only_topk_weights": True}),
    "randlora": ("randlora", {"r": 4}),
    "randlora-drawn": ("randlora", {"r": 4, "save_projection": False, "sparse": True, "randlora_alpha": 80}),
    "gralora": ("gralora", {"r": 4, "hybrid_r": 2}),
    "glora": ("glora", {"r": 4}),
    "glora-vectors": ("glora", {"config_A_B": "vector", "config_C": "none", "config_D_E": "vector"}),
    "hira": ("hira", {"r": 4}),
    "unilora": ("unilora", {"r": 4}),
    "unilora-indices": ("unilora", {"r": 4, "save_indices": True}),
    "tinylora": ("tinylora", {}),
    "tinylora-tied": ("tinylora", {"weight_tying": 1.0, "save_projection": False, "init_weights": "uniform"}),
    "miss": ("miss", {"r": 4}),
    "miss-bat": ("miss", {"r": 8, "init_weights": "bat"}),
    "miss-mini": ("miss", {"r": 4, "init_weights": "mini", "mini_r": 2}),
    "delora": ("delora", {"r": 4, "rank_pattern": {"v_proj": 2}, "lambda_pattern": {"q_proj": 5}}),
    "deft": ("deft", {"r": 4}),
    "deft-para": ("deft", {"r": 4, "para": True, "decomposition_method": "qr"}),
    "peanut": ("peanut", {"r": 4, "depth": 1, "act_fn": "gelu"}),
    "supertuning": ("supertuning", {"sparsity": 0.9}),
    "supra": ("supertuning", {"sparsity": 0.9, "r": 2, "lora_alpha": 3}),
    "road": ("road", {"group_size": 16}),
    "road-4": ("road", {"group_size": 16, "variant": "road_4"}),
    "beft": ("beft", {}),
    "hra": ("hra", {"r": 4}),
    "hra-orthogonal": ("hra", {"r": 4, "apply_GS": True, "init_weights": False}),
    "osf": ("osf", {"effective_rank": 0.25}),
    "fourierft": ("fourierft", {"n_frequency": 64, "n_frequency_pattern": {"v_proj": 32}}),
    "waveft": ("waveft", {"n_frequency": 64, "wavelet_family": "sym4"}),
    "waveft-shares": ("waveft", {"n_frequency": 64, "proportional_parameters": True, "use_idwt": False}),
    "c3a": ("c3a", {"block_size": 16, "block_size_pattern": {"v_proj": 8}}),
    "shira": ("shira", {"r": 2}),
    "shadow": ("shadow", {"r": 4}),
    "shadow-narrow": ("shadow", {"r": 4, "shadow_hidden_size": 16, "shadow_num_attention_heads": 2}),
}
# Other operations than in training: a difference of products; ranks that are gone; an LSTM over rows side by side;
# weights of a softmax that are made again of those which were saved.
_ROUNDED = ("pissa", "pissa-niter", "olora", "adalora", "p-lstm", "vblora-topk")
PEFTS = [row for row in METHODS.values() if row.buildable and row.peft_type not in OWN_TYPES]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """An adapter after a few steps: where it is saved, its logits, the loss before and after."""

    folder: Path
    logits: Any
    before: float
    after: float


class Shelf:
    """A base and the adapters trained over it, each once."""

    def __init__(self, root: Path) -> None:
        self.root, self.base = root, tiny_llama(root / "tiny")
        self._loaded = load(self.base)
        self._examples = examples(self._loaded)
        self.batch = pad(self._examples, pad_id=256)
        self.ids = self.batch["input_ids"][:3]
        self._trained: dict[str, Trained] = {}

    def load(self) -> Any:
        """Return the base, as it was."""
        return dataclasses.replace(self._loaded, model=copy.deepcopy(self._loaded.model))

    def train(self, case: str, out: Path, *, steps: int = 3) -> Any:
        """Train a case for a few steps and save it; return the model and the loss before."""
        import torch

        base = self.load()
        model = attach(base, case, steps=steps)
        with torch.no_grad():
            before = token_losses(model.eval(), self.batch).mean().item()
        start = adapters.start_of(model)
        spec = TrainingSpec(max_steps=steps, per_device_train_batch_size=4, learning_rate=3e-2, seed=1)
        out.mkdir(parents=True, exist_ok=True)
        train(model.train(), base, self._examples, spec, pad_id=256, log=out / "log.jsonl", progress=Recorder.new())
        adapters.save(model, out, base_id="org/tiny", base_revision=None, start=start)
        return model.eval(), before

    def __getitem__(self, case: str) -> Trained:
        """Return a case, trained for three steps."""
        import torch

        if case not in self._trained:
            model, before = self.train(case, self.root / case)
            with torch.no_grad():
                after = token_losses(model, self.batch).mean().item()
            self._trained[case] = Trained(
                folder=self.root / case, logits=logits(model, self.ids), before=before, after=after
            )
        return self._trained[case]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    import peft  # noqa: F401
    from transformers import Trainer  # noqa: F401

    # Every training ends with a full collection of garbage, which what these libraries hold makes half a second long.
    gc.collect()
    gc.freeze()
    yield Shelf(tmp_path_factory.mktemp("shelf"))
    gc.unfreeze()


@pytest.fixture(scope="module")
def folder(shelf: Shelf) -> Path:
    return shelf.base


def filled(method: str, given: dict[str, Any], model_type: str | None = "llama") -> Any:
    row = method_named(method)
    return with_default_modules(row, check_hyperparameters(row, given, where="test"), model_type, where="test")


def attach(base: Any, case: str, *, seed: int = 0, steps: int = 3) -> Any:
    method, given = CASES[case]
    return adapters.attach(base, filled(method, given), task="CAUSAL_LM", seed=seed, method=method, steps=steps)


def logits(model: Any, ids: Any) -> Any:
    """Return the logits of the text's positions; trained prompts come before them."""
    import torch

    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits[:, -ids.shape[1] :]


def test_every_buildable_method_of_peft_is_tried() -> None:
    assert {method for method, _ in CASES.values()} == {row.name for row in PEFTS}


@pytest.mark.parametrize("case", list(CASES))
def test_a_trained_adapter_lowers_the_loss_and_peft_opens_it_with_the_same_outputs(shelf: Shelf, case: str) -> None:
    import torch
    from peft import PeftModel

    trained, row = shelf[case], METHODS[CASES[case][0]]
    assert trained.after < trained.before
    bare = logits(shelf.load().model, shelf.ids)
    opened = PeftModel.from_pretrained(shelf.load().model, str(trained.folder)).eval()
    theirs = logits(opened, shelf.ids)
    assert torch.allclose(trained.logits, theirs, atol=1e-5 if case in _ROUNDED else 0, rtol=0)
    assert (theirs - bare).abs().max() > 1e-3
    # What is said of a text depends neither on what comes later nor on the other rows.
    alone = logits(opened, shelf.ids[:1, :20])
    assert torch.allclose(alone, theirs[:1, :20], atol=1e-4)
    assert _merges(opened, theirs, bare, shelf.ids) == row.foldable
    config = json.loads((trained.folder / "adapter_config.json").read_text())
    assert config["peft_type"] == row.peft_type
    assert str(shelf.root) not in json.dumps(config)
    assert {path.name for path in trained.folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "log.jsonl",
    }


def _merges(opened: Any, expected: Any, bare: Any, ids: Any) -> bool:
    """Say whether PEFT writes an adapter into the base's weights; where it does, the outputs have to stay."""
    try:
        merged = opened.merge_and_unload(safe_merge=True)
    except (NotImplementedError, AttributeError, ValueError):
        return False
    assert (logits(merged, ids) - expected).abs().max() < 1e-3 * (expected - bare).abs().max()
    return True


_OPENED_BY_PLAIN_PEFT = """
import copy, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

base, ids, out, *folders = sys.argv[1:]
ids = load_file(ids)["ids"]
model = AutoModelForCausalLM.from_pretrained(base).eval()
found = {}
with torch.no_grad():
    for folder in folders:
        adapted = PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
        found[Path(folder).name] = adapted(input_ids=ids, use_cache=False).logits[:, -ids.shape[1] :].contiguous()
save_file(found, out)
"""


def test_a_fresh_process_opens_every_method_by_plain_peft_with_the_same_outputs(shelf: Shelf) -> None:
    """What a method draws by a seed, or in the order of a set, has to be the same there."""
    from safetensors.torch import load_file, save_file

    ids, out = shelf.root / "ids.safetensors", shelf.root / "logits.safetensors"
    save_file({"ids": shelf.ids}, ids)
    folders = [str(shelf[case].folder) for case in CASES]
    script = [sys.executable, "-c", _OPENED_BY_PLAIN_PEFT, str(shelf.base), str(ids), str(out), *folders]
    subprocess.run(script, check=True, capture_output=True, timeout=300)
    found = load_file(out)
    worst = {case: (found[case] - shelf[case].logits).abs().max().item() for case in CASES}
    assert {case: error for case, error in worst.items() if not error < 1e-5} == {}


# One of each kind: random matrices, ranks, rotations, networks that are not saved, starts from the base, places drawn.
@pytest.mark.parametrize(
    "case", ["vera", "adalora", "boft", "p_tuning", "pissa-niter", "shira", "vblora", "shadow", "fourierft"]
)
def test_the_same_training_gives_the_same_bytes(shelf: Shelf, tmp_path: Path, case: str) -> None:
    shelf.train(case, tmp_path)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / name).read_bytes() == (shelf[case].folder / name).read_bytes()


@pytest.mark.parametrize("case", ["prompt_tuning", "prefix_tuning", "cartridge", "ia3", "shadow", "lora"])
def test_the_loss_of_labelled_tokens_is_the_one_that_transformers_computes(shelf: Shelf, case: str) -> None:
    import torch

    model = attach(shelf.load(), case).eval()
    batch = {key: value[:4] for key, value in shelf.batch.items()}
    with torch.no_grad():
        ours = token_losses(model, batch).mean()
        theirs = model(**{key: batch[key] for key in ("input_ids", "attention_mask", "labels")}).loss
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)


def test_adalora_ends_with_its_budget_of_ranks_and_holds_its_factors_to_orthogonality(
    shelf: Shelf, folder: Path, tmp_path: Path
) -> None:
    import torch

    shelf.train("adalora", tmp_path, steps=6)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["total_step"] == 6
    left = [sum(kept) for kept in config["rank_pattern"].values()]
    assert sum(left) == 3 * len(left)
    ranks = [t.shape[0] for n, t in read_tensors(tmp_path / "adapter_model.safetensors").items() if "lora_E" in n]
    assert sorted(ranks) == sorted(left)
    # The penalty is PEFT's, which it adds where transformers computes the loss.
    base = load(folder)
    fresh = attach(base, "adalora")
    batch = pad(examples(base)[:2], pad_id=256)
    with torch.no_grad():
        plain = token_losses(fresh, batch).mean()
        whole = fresh(**{key: batch[key] for key in ("input_ids", "attention_mask", "labels")}).loss
        assert (whole - plain).item() == pytest.approx(adapters.penalty(fresh).item(), abs=1e-5)
        assert adapters.penalty(fresh).item() > 0.1
    assert adapters.penalty(attach(load(folder), "lora")) is None


@pytest.mark.parametrize("case", ["pissa", "pissa-niter", "olora"])
def test_what_began_in_the_base_s_weights_is_saved_as_a_plain_lora_of_the_base(shelf: Shelf, case: str) -> None:
    out = shelf[case].folder
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == (8, True)
    assert config["rank_pattern"] == ({"v_proj": 4} if case == "pissa-niter" else {})
    ranks = {
        n.split(".")[-3]: t.shape[0]
        for n, t in read_tensors(out / "adapter_model.safetensors").items()
        if "lora_A" in n
    }
    assert ranks["q_proj"] == 8
    assert ranks["v_proj"] == (4 if case == "pissa-niter" else 8)


def test_a_start_that_changes_the_base_is_not_saved_without_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="start"):
        adapters.save(attach(load(folder), "pissa"), tmp_path, base_id="tiny", base_revision=None)
    assert not list(tmp_path.iterdir())


_KNOW_CONV1D = (
    *("vera", "pvera", "vblora", "randlora", "gralora", "hira", "unilora", "tinylora", "deft", "fourierft"),
    *("waveft", "adaption_prompt", "shadow", "cartridge", "ia3", "ln_tuning", "adalora", "trainable_tokens", "lora"),
    *("dora", "prompt_tuning", "p_tuning", "prefix_tuning"),
)


@pytest.mark.parametrize("method", [row.name for row in PEFTS])
def test_gpt2_s_transposed_weights_are_adapted_or_the_method_says_that_it_cannot(gpt2: Any, method: str) -> None:
    base = dataclasses.replace(gpt2, model=copy.deepcopy(gpt2.model))
    given = {
        "trainable_tokens": {"token_indices": [97]},
        "beft": {"target_modules": ["c_attn"]},
        "vblora": {"vector_length": 32},
        "waveft": {"n_frequency": 64},
    }.get(method, {})
    values = filled(method, given, "gpt2")
    if method in _KNOW_CONV1D:
        model = adapters.attach(base, values, task="CAUSAL_LM", seed=0, method=method, steps=9)
        assert adapters.trainable_parameters(model) > 0
    else:
        with pytest.raises(IncompatibleError, match=r"PEFT cannot put this adapter|nothing to train"):
            adapters.attach(base, values, task="CAUSAL_LM", seed=0, method=method)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tiny_gpt2(tmp_path_factory.mktemp("gpt2") / "base"))


@pytest.fixture(scope="module")
def opt(shelf: Shelf) -> Any:
    """A base with biases."""
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = OPTConfig(**sizes, vocab_size=264, max_position_embeddings=256, word_embed_proj_dim=32)
    return dataclasses.replace(shelf.load(), model=OPTForCausalLM(config).eval())


@pytest.mark.parametrize("row", [row for row in PEFTS if row.hyperparameter("bias")], ids=lambda row: row.name)
@pytest.mark.parametrize("which", ["all", "own"])
def test_biases_trained_along_are_saved(shelf: Shelf, opt: Any, tmp_path: Path, row: Method, which: str) -> None:
    import torch
    from peft import PeftModel

    bias = row.hyperparameter("bias")
    assert bias is not None
    word, count = ("all", 17) if which == "all" else (bias.choices[2], 4)
    small = next(given for method, given in CASES.values() if method == row.name)
    patterns = {name: {} for name in small if name.endswith("_pattern")}
    given = {**small, **patterns, "bias": word, "target_modules": ["q_proj", "v_proj"]}
    base = dataclasses.replace(opt, model=copy.deepcopy(opt.model))
    model = adapters.attach(base, filled(row.name, given, "opt"), task="CAUSAL_LM", seed=0, method=row.name)
    trained = [item for name, item in model.named_parameters() if name.endswith(".bias") and item.requires_grad]
    assert len(trained) == count
    with torch.no_grad():
        for item in trained:
            item.add_(0.5)
    adapters.save(model.eval(), tmp_path, base_id="tiny", base_revision=None)
    ours = logits(model, shelf.ids)
    theirs = logits(PeftModel.from_pretrained(copy.deepcopy(opt.model), str(tmp_path)).eval(), shelf.ids)
    assert torch.equal(ours, theirs)


def test_names_that_no_module_has_are_refused_for_norms_too(folder: Path) -> None:
    given = filled("ln_tuning", {"target_modules": ["norm", "ln_f"]})
    with pytest.raises(IncompatibleError, match="ln_f") as caught:
        adapters.attach(load(folder), given, task="CAUSAL_LM", seed=0, method="ln_tuning")
    assert "post_attention_layernorm" in str(caught.value.hint)


@pytest.mark.parametrize("row", PEFTS, ids=lambda row: row.name)
def test_every_field_of_peft_s_config_is_a_row_or_left_out_with_a_reason(row: Method) -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    fields = {item.name for item in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[row.peft_type])}
    ours = {item.name for item in row.hyperparameters}
    left_out = set(rows.LEFT_OUT.get(row.name, {}))
    assert ours <= fields and left_out <= fields
    assert not ours & left_out
    assert fields == ours | left_out | (rows.BOOKKEEPING & fields)


# Where our default is not PEFT's: sizes that do something, what PEFT leaves to everybody, what a method asks for, a
# loss that is not computed here.
_OTHER_DEFAULTS = {
    "lora": {"r": 8, "lora_alpha": 8},
    "dora": {"r": 8, "lora_alpha": 8, "use_dora": False},
    "adalora": {"lora_alpha": 8},
    "adaption_prompt": {"adapter_len": None},
    "shadow": {"auxiliary_loss_weight": 0.05},
    **{name: {"num_virtual_tokens": None} for name in ("prompt_tuning", "prefix_tuning", "p_tuning", "cartridge")},
}


@pytest.mark.parametrize("row", PEFTS, ids=lambda row: row.name)
def test_defaults_are_peft_s_own_or_named_here(row: Method) -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    config = PEFT_TYPE_TO_CONFIG_MAPPING[row.peft_type]
    other = {}
    for item in dataclasses.fields(config):
        if (ours := row.hyperparameter(item.name)) is None:
            continue
        theirs = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        theirs = getattr(theirs, "value", theirs)
        # An empty pattern, an empty list and null say the same; 0 and false do not.
        empty = theirs is None or theirs in ({}, [], ())
        same = ours.default is None or ours.default in ({}, ()) if empty else ours.default == theirs
        if not same or isinstance(ours.default, bool) != isinstance(theirs, bool):
            other[item.name] = theirs
    assert other == _OTHER_DEFAULTS.get(row.name, {})


def test_words_that_are_patterns_are_all_that_peft_knows() -> None:
    import re

    from peft.tuners.waveft.constants import WAVELET_REDUCTIONS
    from transformers.activations import ACT2FN

    row = METHODS["waveft"].hyperparameter("wavelet_family")
    assert row is not None and row.pattern is not None
    every = {f"{kind}{number}" for kind in ("db", "sym", "coif", "haar") for number in range(60)}
    assert {name for name in every if re.fullmatch(row.pattern, name)} == set(WAVELET_REDUCTIONS)
    functions = METHODS["peanut"].hyperparameter("act_fn")
    assert functions is not None and set(functions.choices) <= set(ACT2FN)


def test_default_modules_are_peft_s_own() -> None:
    from peft.utils import constants

    for model_type, (targets, forward) in IA3_MODULES.items():
        assert list(targets) == constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[model_type]
        assert list(forward) == constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[model_type]
    for model_type, values in VALUES.items():
        assert list(values) == constants.TRANSFORMERS_MODELS_TO_BEFT_TARGET_MODULES_MAPPING[model_type]
    for model_type, norms in NORMS.items():
        assert list(norms) == constants.TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING[model_type]
