"""One row a method: PEFT's name for it, its paper, what it adapts, and why it is not built where it is not."""

from __future__ import annotations

from dataclasses import dataclass, replace

from adapterhub.catalog import hyperparameters as rows
from adapterhub.catalog.hyperparameters import Hyperparameter


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to adapt a base model.

    peft_type: the word for it in adapter_config.json, PEFT's or our own (own_methods.OWN_TYPES); None for what is no
    adapter. group: `low-rank`, `scaling`, `orthogonal`, `sparse`, `prompt`, `mixture`, `other`, or `baseline` (no
    adapter at all). targets: the modules it adapts: `linear`, `scaled` (linear ones, some of them by their input),
    `values` (value projections), `norms`, `embedding`, or `` for none that a recipe names. model_types: the only ones
    it works on, () for any. buildable: `adapt build` trains it; why_not: why it does not. foldable: its change can be
    written into the base's weights.
    """

    name: str
    peft_type: str | None
    title: str
    paper: str
    group: str
    targets: str = ""
    model_types: tuple[str, ...] = ()
    hyperparameters: tuple[Hyperparameter, ...] = ()
    buildable: bool = False
    why_not: str = ""
    foldable: bool = False

    def hyperparameter(self, name: str) -> Hyperparameter | None:
        """Return the row of one hyperparameter."""
        return next((row for row in self.hyperparameters if row.name == name), None)


def _row(
    name: str,
    title: str,
    paper: str,
    group: str,
    *,
    targets: str = "linear",
    model_types: tuple[str, ...] = (),
    foldable: bool = True,
    why_not: str = "",
) -> Method:
    """Make the row of a method of PEFT's; `paper` is an arXiv number, a URL, or '' for PEFT's docs.

    It is built as soon as there is a table of its hyperparameters.
    """
    docs = f"https://huggingface.co/docs/peft/package_reference/{name}"
    url = paper if "/" in paper else f"https://arxiv.org/abs/{paper}" if paper else docs
    built = name in rows.TABLES
    return Method(
        name=name,
        peft_type=name.upper(),
        title=title,
        paper=url,
        group=group,
        targets=targets if built else "",
        model_types=model_types,
        hyperparameters=rows.TABLES.get(name, ()),
        buildable=built,
        why_not=why_not,
        foldable=foldable,
    )


LORA = _row("lora", "Low-Rank Adaptation", "2106.09685", "low-rank")
DORA = replace(_row("dora", "Weight-Decomposed Low-Rank Adaptation", "2402.09353", "low-rank"), peft_type="LORA")

# Why PEFT's methods that are not built are not (peft 0.21.2).
_NOT_SAVED = "PEFT does not save the parts of the base that its numbers belong to, and computes them anew to load it: "

# Every method of PEFT's PeftType; papers as its docs and sources name them.
NAMED: tuple[Method, ...] = (
    _row("adalora", "AdaLoRA", "2303.10512", "low-rank"),
    _row("loha", "Low-Rank Hadamard Product", "2108.06098", "low-rank"),
    _row("lokr", "Low-Rank Kronecker Product", "2309.14859", "low-rank"),
    _row("vera", "Vector-based Random Matrix Adaptation", "2310.11454", "low-rank"),
    _row("pvera", "Probabilistic Vector-based Random Matrix Adaptation", "2512.07703", "low-rank"),
    _row("vblora", "VB-LoRA", "2405.15179", "low-rank"),
    _row("randlora", "RandLoRA", "2502.00987", "low-rank"),
    _row("gralora", "Granular LoRA", "2505.20355", "low-rank"),
    _row("glora", "Generalized LoRA", "2306.07967", "low-rank"),
    _row("hira", "Hadamard High-Rank Adaptation", "https://openreview.net/forum?id=TwJrTz9cRS", "low-rank"),
    _row(
        "lily",
        "Lily",
        "2407.09946",
        "low-rank",
        foldable=False,
        why_not="PEFT's router averages over a batch: a text's answer would depend on its own end and on other texts",
    ),
    _row("unilora", "Uni-LoRA", "2506.00799", "low-rank"),
    _row("tinylora", "TinyLoRA", "2602.04118", "low-rank"),
    _row("miss", "Matrix Shard Sharing", "2409.15371", "low-rank"),
    _row("delora", "Decoupled Low-Rank Adaptation", "2503.18225", "low-rank"),
    _row(
        "adamss",
        "Adaptive Multi-Subspaces",
        "",
        "low-rank",
        why_not="PEFT clusters the base's weights with scikit-learn for it, which adapterhub does not bring along",
    ),
    _row("deft", "Decompositional Efficient Fine-Tuning", "", "low-rank"),
    _row(
        "frod",
        "FRoD",
        "https://doi.org/10.1609/aaai.v40i31.39813",
        "low-rank",
        why_not=f"{_NOT_SAVED}with another number of threads or another dtype the adapter is another one",
    ),
    _row("supertuning", "SuperTuning", "2607.09287", "low-rank"),
    _row("peanut", "PEANuT", "2410.01870", "low-rank"),
    _row("ia3", "(IA)³", "2205.05638", "scaling", targets="scaled"),
    _row("road", "RoAd", "2409.00119", "scaling"),
    _row("ln_tuning", "LayerNorm tuning", "2312.11420", "scaling", targets="norms"),
    _row("beft", "Bias-Efficient Fine-Tuning", "2509.15974", "scaling", targets="values", foldable=False),
    _row("oft", "Orthogonal Finetuning", "2306.07280", "orthogonal"),
    _row("boft", "Butterfly Orthogonal Finetuning", "2311.06243", "orthogonal"),
    _row("hra", "Householder Reflection Adaptation", "2405.17484", "orthogonal"),
    _row(
        "psoft",
        "Principal Subspace OFT",
        "https://openreview.net/forum?id=FSHrinMArK",
        "orthogonal",
        why_not=f"{_NOT_SAVED}on a base in another dtype the adapter is another one",
    ),
    _row("osf", "Orthogonal Subspace Fine-tuning", "", "orthogonal"),
    _row("fourierft", "FourierFT", "2405.03003", "sparse"),
    _row("waveft", "Wavelet Fine-Tuning", "", "sparse"),
    _row("c3a", "Circular Convolution Adaptation", "2407.19342", "sparse"),
    _row("shira", "Sparse High-Rank Adapters", "2406.13175", "sparse"),
    _row("trainable_tokens", "trainable token embeddings", "", "sparse", targets="embedding"),
    _row("prompt_tuning", "prompt tuning", "2104.08691", "prompt", targets="", foldable=False),
    _row("prefix_tuning", "prefix tuning", "2101.00190", "prompt", targets="", foldable=False),
    _row("p_tuning", "P-tuning", "2103.10385", "prompt", targets="", foldable=False),
    _row(
        "multitask_prompt_tuning",
        "multitask prompt tuning",
        "2303.02861",
        "prompt",
        foldable=False,
        why_not="it trains one prompt over several tasks, and the rows of a recipe do not say of which task they are",
    ),
    _row(
        "cpt",
        "Context-aware Prompt Tuning",
        "2410.17222",
        "prompt",
        foldable=False,
        why_not="it trains examples given as tokens with their roles, by a loss over them that a recipe does not have",
    ),
    _row("cartridge", "Cartridges", "2506.06266", "prompt", targets="", foldable=False),
    _row(
        "adaption_prompt",
        "LLaMA-Adapter",
        "2303.16199",
        "prompt",
        targets="",
        model_types=("llama", "mistral", "gpt2"),
        foldable=False,
    ),
    _row(
        "poly",
        "Polytropon",
        "2202.13914",
        "mixture",
        foldable=False,
        why_not="it routes every row by its task, and the rows of a recipe do not say of which task they are",
    ),
    _row(
        "xlora",
        "X-LoRA",
        "2402.07148",
        "mixture",
        foldable=False,
        why_not="it mixes adapters that exist already, and a recipe trains a new one",
    ),
    _row("shadow", "ShadowPEFT", "", "other", targets="", foldable=False),
)
