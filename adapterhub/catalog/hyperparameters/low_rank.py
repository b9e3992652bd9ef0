"""Changes of few numbers: low-rank, Hadamard and Kronecker products, shared random matrices, shared banks."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from adapterhub.catalog.hyperparameters.row import (
    ALPHAS,
    EXCLUDED,
    LAYERS,
    PROJECTION,
    RANKS,
    SAVED,
    START,
    TARGETS,
    WHERE,
    Hyperparameter,
    bias,
    by_module,
    choice,
    flag,
    number,
    rate,
    whole,
    word,
)

_LYCORIS: tuple[Hyperparameter, ...] = (
    whole("r", 8, "rank of the factors"),
    Hyperparameter(name="alpha", kind="float", default=8, minimum=0.0, help="the delta is scaled by alpha / r"),
    rate("rank_dropout", "share of the ranks left out of a step"),
    rate("module_dropout", "share of the adapted modules left out of a step"),
    flag("use_effective_conv2d", False, "factor kernels of convolutions wider than one"),
    TARGETS,
    EXCLUDED,
    *LAYERS,
    RANKS,
    ALPHAS,
    SAVED,
)
LOHA = (*_LYCORIS, START)
LOKR: tuple[Hyperparameter, ...] = (
    *_LYCORIS,
    Hyperparameter(
        name="init_weights",
        kind="any",
        default=True,
        choices=(True, False, "lycoris"),
        help="begin with an adapter that changes nothing (lycoris: as that library does); false draws it at random",
    ),
    flag("decompose_both", False, "factor the left matrix of the Kronecker product too"),
    whole("decompose_factor", -1, "size of the left matrix; -1 for the most even one", minimum=-1),
    flag("rank_dropout_scale", False, "scale what rank_dropout leaves"),
)

VERA: tuple[Hyperparameter, ...] = (
    whole("r", 256, "rank of the shared random matrices"),
    whole("projection_prng_key", 0, "seed of the shared random matrices", minimum=0),
    flag("save_projection", True, "save those matrices along, so that no library has to draw them again"),
    rate("vera_dropout", "dropout before the first matrix in training"),
    Hyperparameter(name="d_initial", kind="float", default=0.1, help="first value of the vector d"),
    TARGETS,
    bias("vera_only"),
    START,
    *LAYERS,
    SAVED,
)

PVERA: tuple[Hyperparameter, ...] = (
    whole("r", 256, "rank of the shared random matrices"),
    *PROJECTION,
    rate("pvera_dropout", "dropout before the first matrix in training"),
    number("d_initial", 0.1, "first value of the vector d", minimum=None),
    TARGETS,
    bias("pvera_only"),
    START,
    *LAYERS,
    SAVED,
)

RANDLORA: tuple[Hyperparameter, ...] = (
    whole("r", 32, "rank of each of the random pairs; the fewer, the more pairs a matrix has"),
    *PROJECTION,
    number("randlora_alpha", 640, "the change is scaled by randlora_alpha / r"),
    flag("sparse", False, "random matrices of -1, 0 and 1, a third of them not 0"),
    flag("very_sparse", False, "the same with fewer that are not 0"),
    rate("randlora_dropout", "dropout before the first matrix in training"),
    TARGETS,
    bias("randlora_only"),
    START,
    *LAYERS,
    SAVED,
)

VBLORA: tuple[Hyperparameter, ...] = (
    whole("r", 4, "rank of the change"),
    whole("num_vectors", 256, "vectors in the bank that all modules share"),
    whole("vector_length", 256, "their length; divides every input and output of the modules"),
    whole("topk", 2, "vectors that are mixed into each piece of a factor"),
    flag("save_only_topk_weights", False, "save no more than running needs: a smaller file"),
    rate("vblora_dropout", "dropout before the factors in training"),
    number("init_vector_bank_bound", 0.02, "the bank begins within it, at random", minimum=1e-6),
    number("init_logits_std", 0.1, "spread of what chooses the vectors, at the start"),
    bias("vblora_only"),
    *WHERE,
)

GRALORA: tuple[Hyperparameter, ...] = (
    whole("r", 32, "rank over all blocks; a multiple of gralora_k"),
    whole("hybrid_r", 0, "rank of a plain LoRA beside them", minimum=0),
    number("alpha", 64, "the change is scaled by alpha / (r + hybrid_r)"),
    whole("gralora_k", 2, "blocks a side; divides every input and output of the modules"),
    rate("gralora_dropout", "dropout before the factors in training"),
    TARGETS,
    bias("gralora_only"),
    START,
    *LAYERS,
    SAVED,
)

GLORA: tuple[Hyperparameter, ...] = (
    whole("r", 8, "rank of what is a product of two factors"),
    word(
        "config_A_B",
        "lora",
        ("lora", "vector", "constant", "none"),
        "form of A and B; the weight becomes W + W·A + B",
    ),
    word("config_C", "lora", ("lora", "vector", "none"), "form of C; W·C is added to the bias"),
    word("config_D_E", "constant", ("vector", "constant", "none"), "form of D and E; the bias b becomes b + b·D + E"),
    START,
    bias("glora_only"),
    TARGETS,
    SAVED,
)

HIRA: tuple[Hyperparameter, ...] = (
    whole("r", 32, "rank of the factors, whose product the weights are multiplied by, number by number"),
    rate("hira_dropout", "dropout before the factors in training"),
    choice(
        "init_weights",
        True,
        (True, False, "gaussian"),
        "begin with a change of nothing (gaussian: with another spread of the first factor); false draws it at random",
    ),
    RANKS,
    *WHERE,
)

UNILORA: tuple[Hyperparameter, ...] = (
    whole("r", 4, "rank of the change", maximum=4096),
    whole("theta_d_length", 256, "numbers that are trained, all modules together"),
    whole("proj_seed", 42, "seed of which number stands where", minimum=0),
    flag("save_indices", False, "save that along, so that no library has to draw it again"),
    rate("unilora_dropout", "dropout before the factors in training"),
    number("init_theta_d_bound", 0.02, "the numbers begin within it, at random", minimum=1e-6),
    flag("init_weights", True, "begin with a change of nothing; false draws it at random"),
    TARGETS,
    bias("unilora_only"),
    *LAYERS,
    SAVED,
)

TINYLORA: tuple[Hyperparameter, ...] = (
    whole("r", 2, "strongest directions of a matrix that are changed"),
    whole("u", 64, "numbers that are trained a module, or for all that share them"),
    number("weight_tying", 0.0, "how much modules share them: 0 not at all, 1 all of them", maximum=1.0),
    whole("projection_seed", 42, "seed of the random matrices", minimum=0),
    flag("save_projection", True, "save those matrices along, so that no library has to draw them again"),
    number("init_v_bound", 0.02, "the numbers begin within it with init_weights: uniform", minimum=1e-6),
    rate("tinylora_dropout", "dropout before the factors in training"),
    choice("init_weights", True, (True, "uniform"), "begin with a change of nothing, or at random"),
    TARGETS,
    bias("tinylora_only"),
    *LAYERS,
    SAVED,
)

MISS: tuple[Hyperparameter, ...] = (
    whole("r", 64, "rows of the shared shard"),
    whole("mini_r", 1, "parts of the outputs that share it, with init_weights: mini; divides every output"),
    choice(
        "init_weights",
        True,
        (True, False, "bat", "mini"),
        "the form of the change; bat multiplies it by the weights, whose sides r has to divide; mini has a smaller "
        "shard; false draws it at random",
    ),
    rate("miss_dropout", "dropout before the shard in training"),
    bias("MiSS_only"),
    *WHERE,
)

DELORA: tuple[Hyperparameter, ...] = (
    whole("r", 8, "rank of the change"),
    number("delora_lambda", 15, "bound of its strength at the start"),
    by_module("lambda_pattern", "other bounds, by module name", minimum=0.0),
    rate("module_dropout", "share of the adapted modules left out of a step"),
    RANKS,
    bias("delora_only"),
    START,
    *WHERE,
)

DEFT: tuple[Hyperparameter, ...] = (
    whole("r", 8, "rank of what is taken out of the weights and put in"),
    word("decomposition_method", "relu", ("relu", "qr"), "how the directions that are taken out are made orthogonal"),
    number("init_scale", 1.0, "spread of what is put in, at the start"),
    number("alpha", None, "what is put in is scaled by alpha / r; null for 1", minimum=1e-6),
    flag("para", False, "take out alone, put nothing in: the method PaRa"),
    rate("deft_dropout", "dropout of the input in training"),
    bias("deft_only"),
    START,
    *WHERE,
)

PEANUT: tuple[Hyperparameter, ...] = (
    whole("r", 32, "width of the network that makes the change out of the weights"),
    whole("depth", 0, "layers of it beside the first and the last", minimum=0, maximum=64),
    word("act_fn", "relu", ("relu", "gelu", "silu", "tanh", "sigmoid", "linear"), "what stands between its layers"),
    number("scaling", 1.0, "the change is multiplied by it"),
    START,
    *WHERE,
)

TABLES: Mapping[str, tuple[Hyperparameter, ...]] = {
    "loha": LOHA,
    "lokr": LOKR,
    "vera": VERA,
    "pvera": PVERA,
    "vblora": VBLORA,
    "randlora": RANDLORA,
    "gralora": GRALORA,
    "glora": GLORA,
    "hira": HIRA,
    "unilora": UNILORA,
    "tinylora": TINYLORA,
    "miss": MISS,
    "delora": DELORA,
    "deft": DEFT,
    "peanut": PEANUT,
}
LEFT_OUT: Mapping[str, Mapping[str, str]] = {
    "pvera": MappingProxyType(
        dict.fromkeys(("sample_at_inference", "generator_seed"), "would give other answers every time")
    ),
}
