"""Every method that can be built: trained for a few steps, saved, opened by plain PEFT with the same outputs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub.catalog import hyperparameters as rows
from adapterhub.catalog.method_targets import IA3_MODULES, NORMS, with_default_modules
from adapterhub.catalog.methods import METHODS, check_hyperparameters, method_named
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
}
# Other operations than in training: a difference of products; ranks that are gone; an LSTM over rows side by side.
_ROUNDED = ("pissa", "pissa-niter", "olora", "adalora", "p-lstm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


def filled(method: str, given: dict[str, Any], model_type: str | None = "llama") -> Any:
    row = method_named(method)
    return with_default_modules(row, check_hyperparameters(row, given, where="test"), model_type, where="test")


def attach(base: Any, case: str, *, seed: int = 0, steps: int = 3) -> Any:
    method, given = CASES[case]
    return adapters.attach(base, filled(method, given), task="CAUSAL_LM", seed=seed, method=method, steps=steps)


def trained(folder: Path, case: str, out: Path, *, steps: int = 3) -> Any:
    """Train a case for a few steps and save it; return the model."""
    base = load(folder)
    model = attach(base, case, steps=steps)
    start = adapters.start_of(model)
    spec = TrainingSpec(max_steps=steps, per_device_train_batch_size=4, learning_rate=3e-2, seed=1)
    out.mkdir(exist_ok=True)
    train(model, base, examples(base), spec, pad_id=256, log=out / "log.jsonl", progress=Recorder.new())
    adapters.save(model, out, base_id="org/tiny", base_revision=None, start=start)
    return model.eval()


def logits(model: Any, ids: Any) -> Any:
    """Return the logits of the text's positions; trained prompts come before them."""
    import torch

    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits[:, -ids.shape[1] :]


def test_every_buildable_method_is_tried() -> None:
    assert {method for method, _ in CASES.values()} == {row.name for row in METHODS.values() if row.buildable}


@pytest.mark.parametrize("case", list(CASES))
def test_a_trained_adapter_lowers_the_loss_and_peft_opens_it_with_the_same_outputs(
    folder: Path, tmp_path: Path, case: str
) -> None:
    import torch
    from peft import PeftModel

    base = load(folder)
    batch = pad(examples(base), pad_id=256)
    ids = batch["input_ids"][:3]
    fresh = attach(base, case).eval()
    with torch.no_grad():
        before = token_losses(fresh, batch).mean()
    model = trained(folder, case, tmp_path)
    with torch.no_grad():
        assert token_losses(model, batch).mean() < before
    ours, bare = logits(model, ids), logits(load(folder).model, ids)
    theirs = logits(PeftModel.from_pretrained(load(folder).model, str(tmp_path)).eval(), ids)
    assert torch.allclose(ours, theirs, atol=1e-5 if case in _ROUNDED else 0, rtol=0)
    assert (theirs - bare).abs().max() > 1e-3
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == METHODS[CASES[case][0]].peft_type
    assert str(folder) not in json.dumps(config)
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "log.jsonl",
    }


# One of each kind: random matrices, ranks, rotations, networks that are not saved, starts from the base.
@pytest.mark.parametrize("case", ["vera", "adalora", "boft", "p_tuning", "pissa-niter"])
def test_the_same_training_gives_the_same_bytes(folder: Path, tmp_path: Path, case: str) -> None:
    for name in ("one", "two"):
        trained(folder, case, tmp_path / name)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("case", ["prompt_tuning", "prefix_tuning", "ia3", "lora"])
def test_the_loss_of_labelled_tokens_is_the_one_that_transformers_computes(folder: Path, case: str) -> None:
    import torch

    base = load(folder)
    model = attach(base, case).eval()
    batch = pad(examples(base)[:4], pad_id=256)
    with torch.no_grad():
        ours = token_losses(model, batch).mean()
        theirs = model(**{key: batch[key] for key in ("input_ids", "attention_mask", "labels")}).loss
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)


def test_adalora_ends_with_its_budget_of_ranks_and_holds_its_factors_to_orthogonality(
    folder: Path, tmp_path: Path
) -> None:
    import torch

    trained(folder, "adalora", tmp_path, steps=6)
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
def test_what_began_in_the_base_s_weights_is_saved_as_a_plain_lora_of_the_base(
    folder: Path, tmp_path: Path, case: str
) -> None:
    trained(folder, case, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == (8, True)
    assert config["rank_pattern"] == ({"v_proj": 4} if case == "pissa-niter" else {})
    ranks = {
        n.split(".")[-3]: t.shape[0]
        for n, t in read_tensors(tmp_path / "adapter_model.safetensors").items()
        if "lora_A" in n
    }
    assert ranks["q_proj"] == 8
    assert ranks["v_proj"] == (4 if case == "pissa-niter" else 8)


def test_a_start_that_changes_the_base_is_not_saved_without_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="start"):
        adapters.save(attach(load(folder), "pissa"), tmp_path, base_id="tiny", base_revision=None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["loha", "lokr", "oft", "boft", "vera"])
def test_a_method_that_cannot_adapt_the_base_s_modules_says_so(tmp_path: Path, method: str) -> None:
    base = load(tiny_gpt2(tmp_path / "base"))
    given = filled(method, {}, "gpt2")
    if method == "vera":
        # VeRA knows Conv1D, and its matrices are shared between modules of unlike shapes.
        assert adapters.attach(base, given, task="CAUSAL_LM", seed=0, method=method)
        return
    with pytest.raises(IncompatibleError, match="PEFT cannot put this adapter"):
        adapters.attach(base, given, task="CAUSAL_LM", seed=0, method=method)


@pytest.mark.parametrize("method", ["ia3", "ln_tuning", "adalora", "trainable_tokens", "prefix_tuning"])
def test_gpt2_s_transposed_weights_are_adapted_too(tmp_path: Path, method: str) -> None:
    base = load(tiny_gpt2(tmp_path / "base"))
    given = {"trainable_tokens": {"token_indices": [97]}}.get(method, {})
    model = adapters.attach(base, filled(method, given, "gpt2"), task="CAUSAL_LM", seed=0, method=method, steps=9)
    assert adapters.trainable_parameters(model) > 0


def test_names_that_no_module_has_are_refused_for_norms_too(folder: Path) -> None:
    given = filled("ln_tuning", {"target_modules": ["norm", "ln_f"]})
    with pytest.raises(IncompatibleError, match="ln_f") as caught:
        adapters.attach(load(folder), given, task="CAUSAL_LM", seed=0, method="ln_tuning")
    assert "post_attention_layernorm" in str(caught.value.hint)


@pytest.mark.parametrize("method", [row.name for row in METHODS.values() if row.buildable])
def test_every_field_of_peft_s_config_is_a_row_or_left_out_with_a_reason(method: str) -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    fields = {item.name for item in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[METHODS[method].peft_type])}
    ours = {row.name for row in METHODS[method].hyperparameters}
    left_out = set(rows.LEFT_OUT.get(method, {}))
    assert ours <= fields and left_out <= fields
    assert not ours & left_out
    assert fields == ours | left_out | (rows.BOOKKEEPING & fields)


def test_default_modules_are_peft_s_own() -> None:
    from peft.utils import constants

    for model_type, (targets, forward) in IA3_MODULES.items():
        assert list(targets) == constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[model_type]
        assert list(forward) == constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[model_type]
    for model_type, norms in NORMS.items():
        assert list(norms) == constants.TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING[model_type]
