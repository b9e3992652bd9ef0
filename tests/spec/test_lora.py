from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterhub.errors import InvalidFileError, UsageError
from adapterhub.spec.lora import LoraSpec

MODULES = (
    *(
        f"model.layers.{layer}.{name}"
        for layer in (0, 1, 11)
        for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj", "experts.3.down_proj", "input_layernorm")
    ),
    *("model.embed_tokens", "lm_head", "q_proj", "transformer.h.2.attn.c_attn", "model.layers.x.q_proj"),
)


def read(**data: object) -> LoraSpec:
    return LoraSpec.from_hyperparameters(data)


def test_defaults_are_pefts() -> None:
    spec = read()
    assert (spec.r, spec.lora_alpha, spec.scaling_of("q_proj")) == (8, 8, 1.0)
    assert spec == read(rank_pattern=None, modules_to_save=None, use_dora=None, target_modules=None)


def test_scaling_of_plain_and_rank_stabilised() -> None:
    assert read(r=4, lora_alpha=8).scaling_of("x") == 2.0
    assert read(r=4, lora_alpha=8, use_rslora=True).scaling_of("x") == 4.0


def test_the_first_pattern_that_matches_wins() -> None:
    spec = read(r=4, lora_alpha=4, rank_pattern={"q_proj": 2, "self_attn.q_proj": 16}, alpha_pattern={"layers.1.*": 32})
    assert spec.rank_of("model.layers.0.self_attn.q_proj") == 2
    assert spec.scaling_of("model.layers.1.self_attn.q_proj") == 16.0
    assert spec.rank_of("model.layers.0.self_attn.my_q_proj") == 4  # whole names only
    assert read(r=4, rank_pattern={"^q_proj": 2}).rank_of("model.q_proj") == 4


def test_targets_by_name_by_path_and_by_expression() -> None:
    assert read(target_modules=["q_proj"]).targets(["a.q_proj", "aq_proj", "q_proj", "q_proj.x"]) == (
        "a.q_proj",
        "q_proj",
    )
    assert read(target_modules=r".*\.[qv]_proj").targets(["a.q_proj", "v_proj"]) == ("a.q_proj",)
    assert read(target_modules="all-linear").targets(["a.q", "lm_head"], head="lm_head") == ("a.q",)
    assert read(target_modules=["q"], exclude_modules=["0.q"]).targets(["h.0.q", "h.1.q"]) == ("h.1.q",)
    assert read(target_modules=["q"], modules_to_save=["h.0"]).targets(["h.0.q", "h.1.q"]) == ("h.1.q",)


def test_layers_to_transform_reads_the_first_number_and_spares_full_paths() -> None:
    spec = read(target_modules=["down_proj", "model.layers.11.self_attn.q_proj"], layers_to_transform=[0])
    assert spec.targets(MODULES) == (
        "model.layers.0.mlp.down_proj",
        "model.layers.0.experts.3.down_proj",
        "model.layers.11.self_attn.q_proj",
    )
    assert read(target_modules=["c_attn"], layers_to_transform=2, layers_pattern="h").targets(MODULES)
    assert not read(target_modules=["c_attn"], layers_to_transform=2, layers_pattern="layers").targets(MODULES)


def test_targets_of_null_need_a_table() -> None:
    with pytest.raises(UsageError, match="target_modules is not set"):
        read().targets(MODULES)


def test_every_fault_at_once() -> None:
    with pytest.raises(InvalidFileError) as caught:
        read(r=0, lora_alpha="x", bias="some", rank_pattern={"(": 4, "q": 0}, layers_to_transform=[1.5], use_dora=1)
    text = str(caught.value)
    for field in (
        "r:",
        "lora_alpha:",
        "bias:",
        "rank_pattern.(:",
        "rank_pattern.q:",
        "layers_to_transform:",
        "use_dora:",
    ):
        assert field in text, field


def test_layers_with_one_expression_are_refused_as_in_peft() -> None:
    with pytest.raises(InvalidFileError, match="one expression"):
        read(target_modules="q", layers_to_transform=[1])


def test_variants_are_named() -> None:
    assert read(use_bdlora={"x": 1}, arrow_config=None, alora_invocation_tokens=[]).variants == ("use_bdlora",)
    assert read(layer_replication=[[0, 2], [1, 3]]).layer_replication == ((0, 2), (1, 3))


def test_alpha_without_a_rank_is_no_division_by_zero() -> None:
    assert math.isclose(read(lora_alpha=0).scaling_of("x"), 0.0)


names = st.lists(
    st.sampled_from(["q_proj", "v_proj", "down_proj", "self_attn.q_proj", "embed_tokens", *MODULES]), min_size=1
)
expressions = st.sampled_from(
    [r".*q_proj", "q_proj", r".*\.layers\.[01]\..*", r"model\..*down_proj", "", r"(lm_head|.*v_proj)"]
)
patterns = st.sampled_from(["q_proj", "^q_proj", r"layers.1.*", r".*down_proj", "self_attn.v_proj", "proj", "lm_head"])


@pytest.mark.engine
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    targets=st.one_of(names, expressions),
    exclude=st.one_of(st.none(), names, expressions),
    layers=st.one_of(st.none(), st.integers(0, 11), st.lists(st.sampled_from([0, 1, 2, 11]))),
    container=st.one_of(st.none(), st.just([]), st.sampled_from(["layers", "h", ["h", "layers"]])),
    save=st.one_of(st.none(), st.lists(st.sampled_from(["lm_head", "mlp", "layers.0"]))),
)
def test_matching_agrees_with_peft(targets, exclude, layers, container, save) -> None:  # type: ignore[no-untyped-def]
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

    if isinstance(targets, str):
        layers = container = None
    if layers is None:
        container = None
    data = {
        "target_modules": targets,
        "exclude_modules": exclude,
        "layers_to_transform": layers,
        "layers_pattern": container,
        "modules_to_save": save,
    }
    config, spec = LoraConfig(**data), LoraSpec.from_hyperparameters(data)
    for module in MODULES:
        theirs = check_target_module_exists(config, module)
        assert spec.matches(module) == (bool(theirs) and not isinstance(theirs, _ExcludedModule)), module


@pytest.mark.engine
@settings(max_examples=200, deadline=None)
@given(
    ranks=st.dictionaries(patterns, st.integers(1, 64)),
    alphas=st.dictionaries(patterns, st.integers(1, 64)),
    rslora=st.booleans(),
)
def test_rank_and_scaling_agree_with_peft(ranks, alphas, rslora) -> None:  # type: ignore[no-untyped-def]
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = torch.nn.ModuleDict(
                {"self_attn": torch.nn.ModuleDict({n: torch.nn.Linear(4, 4) for n in ("q_proj", "v_proj")})}
            )
            self.layers = torch.nn.ModuleList([layer, torch.nn.ModuleDict({"down_proj": torch.nn.Linear(4, 4)})])
            self.lm_head = torch.nn.Linear(4, 4)

    targets = ["q_proj", "v_proj", "down_proj", "lm_head"]
    data = {"target_modules": targets, "r": 3, "lora_alpha": 5, "use_rslora": rslora}
    data |= {"rank_pattern": ranks, "alpha_pattern": alphas}
    model = inject_adapter_in_model(LoraConfig(**data), Net())
    spec = LoraSpec.from_hyperparameters(data)
    seen = 0
    for name, module in model.named_modules():
        if hasattr(module, "scaling"):
            seen += 1
            assert spec.rank_of(name) == module.r["default"]
            assert math.isclose(spec.scaling_of(name), module.scaling["default"], rel_tol=1e-15)
    assert seen == 4
