"""Every loss of pairs by its name: what it needs, its options, its authors' settings. A new loss needs a function and
an entry in this table; the configuration, the checks, the help and docs/methods.md read it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from preftune.errors import ConfigError, did_you_mean
from preftune.losses import listwise, moments
from preftune.losses import pairwise as p
from preftune.losses import reference_free as free


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss of pairs and what the configuration must know about it."""

    name: str
    function: Callable[..., Tensor]
    title: str
    """Its name in papers."""
    paper: str
    """arXiv id, or where it was published."""
    use: str
    """When to use it, in a sentence."""
    traps: str = ""
    """Common errors, and differences between implementations."""
    options: tuple[str, ...] = ()
    """Fields of `DPOConfig` that the function takes by name, besides beta."""
    step_options: tuple[str, ...] = ()
    """Fields of `DPOConfig` that affect the whole step."""
    gap: Callable[..., Tensor] | None = None
    """Differences of pairs whose running moments it needs."""
    reference: bool = True
    """Whether it compares with a reference model."""
    margins: bool = True
    """Whether it uses the margins of rows."""
    step_margins: Callable[..., tuple[Tensor, Tensor]] | None = None
    """Computes its margins from all pairs of the optimiser step."""
    lists: bool = False
    """Whether it takes all ranked or scored completions of a prompt together."""
    needs_margins: bool = False
    """Whether it requires margins."""
    per_token: bool = False
    """Whether a loss without a reference takes log-probabilities per token; logged rewards are then per token too."""
    has_beta: bool = True
    beta: float = 0.1
    """The authors' beta, which is the default."""
    betas: tuple[float, float] = (0.05, 0.5)
    """The range of beta in published results."""
    learning_rate: float = 5e-7
    """Learning rate of full fine-tuning; adapters take ten times as much."""
    smoothing: tuple[float, float] = (0.0, 0.5)
    """The valid range of `label_smoothing`, both ends included."""
    likelihood: str | float = 0.0
    """Weight of the likelihood term (the loss `sft`) that belongs to the method, or the field that holds it."""

    imitates: str = "sft"
    """The loss of its likelihood term: of the chosen answer, or of a third, gold answer."""

    @property
    def needs_gold(self) -> bool:
        """Whether its data have a third answer, which is imitated."""
        return self.imitates == "gold"

    @property
    def sorts(self) -> bool:
        return self.step_margins is not None

    @property
    def is_smoothed(self) -> bool:
        return "label_smoothing" in self.options


_DIVERGENCE = ("f_divergence_type", "f_alpha_divergence_coef")
_ALL = ("label_smoothing", *_DIVERGENCE)

_WITH_REFERENCE = (
    Loss(
        "sigmoid", p.sigmoid, "DPO", "2305.18290",
        "The default, for clean pairs and an instruction-tuned model. With label_smoothing it is cDPO.",
        "It sums over tokens, so long answers weigh more. TRL 1.16 ignores label_smoothing here.", _ALL,
    ),
    Loss(
        "robust", p.robust, "Robust DPO", "2403.00409",
        "For labels that are wrong with a known probability, which is label_smoothing.",
        "The loss may be negative and has no lower bound.", _ALL, smoothing=(0.0, 0.4999),
    ),
    Loss(
        "hinge", p.hinge, "RSO's hinge", "2309.06657",
        "If pairs that are already won should no longer have an effect.",
        ("Often called SLiC; the real SLiC has no reference and is the "
        "loss slic."), _DIVERGENCE, beta=0.05, betas=(0.01, 0.5),
    ),
    Loss(
        "ipo", p.ipo, "IPO", "2310.12036",
        "For deterministic or few labels, where DPO never stops increasing the margin: IPO has a target distance.",
        "Log-ratios are means over tokens, as in TRL, LLaMA-Factory and HALOs; OpenRLHF sums them (ipo_sum).",
        _DIVERGENCE, betas=(0.01, 1.0),
    ),
    Loss(
        "ipo_sum", p.ipo_sum, "IPO, summed", "2310.12036",
        "To reproduce results of OpenRLHF, or the paper's formula as written.",
        "The target 1 / (2 beta) applies to whole answers: at beta 0.1 it is 5 nats for any length.",
        _DIVERGENCE, betas=(0.001, 1.0),
    ),
    Loss(
        "sigmoid_norm", p.sigmoid_norm, "DPO per token", "2411.15124",
        "For answers of very different lengths; Tulu 3 was trained with it.",
        "Its beta is about 5; with DPO's 0.1 the model hardly changes.", _ALL, beta=5.0, betas=(1.0, 20.0),
    ),
    Loss(
        "exo_pair", p.exo_pair, "EXO", "2402.00856",
        "The reverse KL to the labels: it concentrates on the better answers instead of covering all.",
        "label_smoothing must be above 0; the authors' code corresponds to 4.5e-5, ms-swift sets 1e-3.", _ALL,
        smoothing=(1e-6, 0.5),
    ),
    Loss(
        "nca_pair", p.nca_pair, "NCA", "2402.05369",
        "If the likelihood of the chosen answers must not fall, as in mathematics.", "", margins=False, beta=0.01,
        betas=(0.001, 0.1), learning_rate=5e-6,
    ),
    Loss(
        "bco_pair", p.bco_pair, "BCO", "2404.04656",
        "Moves good and bad answers to opposite sides of a running mean of the rewards; a part of MPO.",
        "TRL 1.16 and Liger leave out the running mean: bco_running_mean=False.", ("bco_running_mean", "delta"),
        margins=False, beta=0.01, betas=(0.005, 0.5),
    ),
    Loss(
        "sppo_hard", p.sppo_hard, "SPPO", "2405.00675",
        "For self-play with pairs of the model's own answers.",
        "Its beta is about 0.001; at 0.1 it behaves differently. The authors use soft labels, and halve the squares.",
        margins=False, beta=1e-3, betas=(1e-4, 0.01),
    ),
    Loss(
        "apo_zero", p.apo_zero, "APO-zero", "2408.06266",
        "For chosen answers that are better than the model's own: chosen likelihoods rise, rejected ones fall.",
        "It saturates: with too high a learning rate training stalls.", margins=False, learning_rate=2e-7,
    ),
    Loss(
        "apo_down", p.apo_down, "APO-down", "2408.06266",
        "For chosen answers that are worse than the model's own: both likelihoods fall, the rejected one by more.",
        "It saturates: with too high a learning rate training stalls.", margins=False, learning_rate=2e-7,
    ),
    Loss(
        "discopop", p.discopop, "DiscoPOP", "2406.08414",
        "A loss found by a language model; about as good as DPO in its authors' experiments.",
        "It is not convex and has a local minimum.", ("discopop_tau", *_DIVERGENCE), beta=0.05, betas=(0.01, 0.5),
    ),
    Loss(
        "aot", p.aot, "AOT", "2406.05882",
        "For noisy pairs: it moves the distribution of differences as a whole, not each pair.",
        "It sorts all pairs of the optimiser step, in one more forward pass; TRL sorts those of a micro-batch on one "
        "device, and an evaluation those of a batch. With one pair it is DPO.", ("label_smoothing",), margins=False,
        beta=0.01, betas=(0.005, 0.5), step_margins=p.aot_pair_margins,
    ),
    Loss(
        "aot_unpaired", p.aot_unpaired, "AOT, unpaired", "2406.05882",
        "As aot, for unpaired chosen and rejected answers: the rewards of the chosen answers should dominate those "
        "of the rejected answers.",
        "It sorts all answers of the optimiser step, in one more forward pass; TRL sorts those of a micro-batch on one "
        "device, and an evaluation those of a batch. With one pair it is DPO.", ("label_smoothing",), margins=False,
        beta=0.01, betas=(0.005, 0.5), step_margins=p.aot_unpaired_margins,
    ),
    Loss(
        "beta_dpo", moments.beta_dpo, "beta-DPO", "2407.08639",
        "For pairs of mixed quality: beta grows with the step's mean difference, and outlying pairs are left out.",
        "One more forward pass measures the step. Small steps make beta noisy. Its running moments are unbiased from "
        "the first step; those of the authors' code start at 0. An evaluation uses the plain beta and all pairs.",
        ("step_beta",), step_options=("beta_dpo_alpha", "beta_dpo_filter"), gap=moments.gap,
    ),
    Loss(
        "alpha_dpo", moments.alpha_dpo, "alpha-DPO", "2410.10148",
        "SimPO with a reference: the margin of each pair depends on its lead over the reference.",
        "The authors use simpo_gamma "
        "1.5 at beta 2.5 "
        "(gamma_beta_ratio 0.6). It "
        "needs running moments and one "
        "more forward pass, as "
        "beta_dpo.", ("simpo_gamma", "alpha_dpo_alpha", "label_smoothing", "gap_mean", "gap_std"),
        gap=moments.gap_per_token, beta=2.5, betas=(1.0, 20.0), learning_rate=1e-6,
    ),
    Loss(
        "rdpo", p.rdpo, "R-DPO", "2403.19159",
        "For data in which chosen answers are mostly longer: pairs with a longer chosen side have less effect.",
        "The term is added; the repository of alpha-DPO subtracts it.", ("rdpo_alpha",),
    ),
    Loss(
        "dpop", p.dpop, "DPO-Positive", "2402.13228",
        "For sides that differ in a few tokens: it penalises a chosen answer that becomes less likely.",
        ("lambda is multiplied by beta, and a value of 50 dominates where the chosen "
        "answer becomes less likely."), ("dpop_lambda",), beta=0.3,
    ),
    Loss(
        "cal_dpo", p.cal_dpo, "Cal-DPO", "NeurIPS 2024",
        "For rewards on an absolute scale, so that chosen likelihoods do not fall.",
        "The first term has no beta. The authors' code halves the squares.", margins=False, beta=1e-3,
        betas=(1e-4, 0.05),
    ),
    Loss(
        "reward_aware", p.reward_aware, "Reward-aware RPO", "2406.11704",
        "For rated answers: the difference of the rewards is fitted to that of the ratings (margin_from_scores).",
        "Three methods are called RPO; the others are sigmoid with rpo_alpha.", ("rpo_distance",), needs_margins=True,
        betas=(0.01, 0.5),
    ),
)  # fmt: skip

_OF_LISTS = (
    Loss(
        "plackett_luce", listwise.plackett_luce, "Plackett-Luce DPO", "2305.18290",
        "For rankings of several answers: each answer is computed once, whereas all pairs would compute it K - 1 "
        "times.",
        "Only the order counts, and the top of a long list weighs most. For two answers it is DPO.", margins=False,
        lists=True,
    ),
    Loss(
        "lipo", listwise.lipo, "LiPO-lambda", "2402.01878",
        "For rankings whose top matters most: pairs are weighted by the DCG lost if their places were exchanged.",
        "Labels are the shares of the other answers beaten, in 0..1 as in the "
        "authors' work; lipo_labels=scores uses the scores unchanged, with the gain "
        "2^score: ratings of 1 to 5 weigh 30 times as much.", ("lipo_labels",), margins=False,
        lists=True, beta=0.05, betas=(0.01, 0.5),
    ),
    Loss(
        "info_nca", listwise.info_nca, "InfoNCA", "2402.05369",
        "For scored answers: the softmax of the scores is the label.",
        "At the authors' nca_tau of 1e-4 only the best answer is the label, independent of the other "
        "scores; 1 suits ratings of 1 to 5. Their code adds 0.01 to the score of the first answer.", ("nca_tau",),
        margins=False, lists=True, beta=0.01, betas=(0.001, 0.5), learning_rate=5e-6,
    ),
    Loss(
        "nca", listwise.nca, "NCA of lists", "2402.05369",
        "As info_nca, if the likelihood of the best answers must not fall.",
        "nca_tau is used as in info_nca. With two answers and a small tau it is nca_pair.", ("nca_tau",), margins=False,
        lists=True, beta=0.01, betas=(0.001, 0.1), learning_rate=5e-6,
    ),
)  # fmt: skip

_WITHOUT_REFERENCE = (
    Loss(
        "simpo", free.simpo, "SimPO", "2405.14734",
        "Needs no reference model: half the computation, and its rewards are what generation maximises.",
        "It is sensitive to the learning rate and may forget abilities. TRL's CPOTrainer adds a likelihood term "
        "unless cpo_alpha=0, and its default beta of 0.1 does not suit SimPO. The authors' gamma_beta_ratio is "
        "simpo_gamma / beta.",
        ("simpo_gamma", "label_smoothing"), reference=False, per_token=True, beta=2.0,
        betas=(1.0, 20.0),
    ),
    Loss(
        "alphapo", free.alphapo, "AlphaPO", "2501.03884",
        "SimPO with a differently shaped reward, which keeps likelihoods high.",
        "It uses the log-probability per token; on whole answers it would overflow.", ("simpo_gamma", "alphapo_alpha"),
        reference=False, per_token=True, beta=2.5, betas=(1.0, 20.0),
    ),
    Loss(
        "cpo", free.cpo, "CPO", "2401.08417",
        "For translation and other tasks with good chosen answers, together with their likelihood.",
        "The likelihood is a mean over the tokens of the step; in TRL, of a micro-batch.", ("label_smoothing",),
        reference=False, likelihood="cpo_alpha", learning_rate=1e-6,
    ),
    Loss(
        "tpo", free.tpo, "TPO", "2405.16681",
        "For pairs with a gold answer, such as the best of several answers: one stage, without fine-tuning before.",
        "The rows need a third column, reference. beta is 0.01, on whole "
        "answers. The likelihood is a mean over the gold tokens of the step; "
        "in TRL, of a micro-batch.", ("label_smoothing",), reference=False,
        likelihood="tpo_alpha", imitates="gold", beta=0.01, betas=(0.005, 0.5),
    ),
    Loss(
        "tpo_l", free.tpo_l, "TPO-L", "2405.16681",
        "TPO with rewards per token, for gold answers whose length differs from that of the sides.",
        "As tpo. TRL calls it tpo-l, with the same default beta of 0.01, at which the model hardly changes.",
        ("tpo_l_gamma", "label_smoothing"), reference=False, per_token=True, likelihood="tpo_alpha", imitates="gold",
        beta=2.0, betas=(1.0, 20.0),
    ),
    Loss(
        "orpo", free.odds_ratio, "ORPO", "2403.07691",
        "For a base model, in one stage: it replaces supervised fine-tuning and DPO.",
        "Do not use it on a model that is already fine-tuned. TRL's likelihood covers the prompt too, "
        "LLaMA-Factory's and preftune's only the answer. beta is the paper's lambda: 0.1, or 1 in the authors' "
        "script.",
        reference=False, per_token=True, margins=False, betas=(0.01, 1.0), learning_rate=5e-6, likelihood=1.0,
    ),
    Loss(
        "simper", free.simper, "SimPER", "2502.00883",
        "Has no hyperparameter to tune besides the learning rate.",
        "Answers of one token dominate. Others did not reproduce the reported AlpacaEval numbers.",
        reference=False, per_token=True, margins=False, has_beta=False,
    ),
    Loss(
        "slic", free.slic, "SLiC-HF", "2305.10425",
        "A margin on log-probabilities, with the likelihood of the chosen answer to preserve the language model.",
        "TRL's hinge is a different loss.", ("slic_delta",), reference=False, has_beta=False, likelihood="slic_lambda",
    ),
    Loss(
        "sft", free.likelihood, "Likelihood of the chosen answer", "2411.10442",
        "As a second loss, with loss_weights or rpo_alpha: it keeps chosen answers likely (MPO, RPO, pref_ftx).",
        "It is a mean over the chosen tokens of the whole step. TRL uses the mean of a micro-batch, LLaMA-Factory "
        "that of each answer (sft_mean=completions).",
        ("tokens_per_pair",), reference=False, margins=False, has_beta=False,
    ),
    Loss(
        "gold", free.gold_likelihood, "Likelihood of a gold answer", "2405.16681",
        "As a second loss: it imitates a third answer of each row, the column reference.",
        ("It is a mean over the gold tokens of the whole "
        "step."), ("gold_tokens_per_pair",), reference=False, margins=False,
        has_beta=False, imitates="gold",
    ),
)  # fmt: skip

LOSSES: dict[str, Loss] = {loss.name: loss for loss in (*_WITH_REFERENCE, *_OF_LISTS, *_WITHOUT_REFERENCE)}


def get_loss(name: str) -> Loss:
    """The loss called `name`. Raises: ConfigError that suggests the nearest name."""
    if name in LOSSES:
        return LOSSES[name]
    known = ", ".join(LOSSES)
    hint = did_you_mean(str(name), LOSSES, cutoff=0.5, otherwise="Check the spelling.")
    raise ConfigError(f"loss_type={name!r} is not a loss. Use one of: {known}. {hint}")
