"""Writes docs/methods.md from the registry of losses and the docstrings of their functions."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preftune import DPOConfig
from preftune.losses import LOSSES, Loss
from preftune.losses.group_relative import group_advantages, group_loss, leave_one_out
from preftune.losses.surrogates import Cispo, Clipped, Sapo, Vespo
from preftune.losses.unpaired import UNPAIRED

EQUAL_TO_TRL = {
    "sigmoid", "robust", "hinge", "ipo", "sigmoid_norm", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero",
    "apo_down", "discopop", "aot", "aot_unpaired", "simpo", "alphapo", "cpo", "orpo", "sft", "tpo", "tpo_l",
}  # fmt: skip
"""Losses that are compared with TRL 1.16 over whole runs."""

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"

_HEAD = """\
# Methods

Every loss of pairs that `preftune dpo --loss_type NAME` and `DPOConfig(loss_type=NAME)` train with. Made from
`preftune.losses.registry` by `python benchmarks/methods_page.py`.

Several losses are one objective: `loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.1]`. `beta` and `learning_rate`
default to what the authors of the (first) loss use; an adapter takes ten times the learning rate of full fine-tuning.
Symbols: a and b are log policy - log reference of the chosen and the rejected answer, A and B are beta times these (the
implicit rewards), and `logits` is A - B - margin. Without a reference, p_w and p_l are the policy's probabilities.
Weights of rows hold for every loss, margins where the table says so. Losses without a reference compute none: no
reference pass, no second model, no cache.

Losses of lists (`plackett_luce`, `lipo`, `info_nca`, `nca`) take all ranked or scored answers of a prompt together:
rows with lists of answers and `scores` or `ranks`, answers from best to worst, or pairs whose two ratings are columns
(see [data](data.md#lists)). A prompt with K answers is one list, and each answer is computed once; a pair without
ratings is a list of two. The batch size counts lists, a row's weight is a factor of its list, `rewards/chosen` and
`rewards/rejected` are those of the best and the worst answer, and `rewards/accuracies` is over all ordered pairs of a
list. A list is never split, so max_tokens_per_batch should hold the longest. r is an answer's implicit reward.

**How each is tested.** Every loss: a value computed by hand from its paper, a float64 gradient check and extreme values
(`tests/losses/test_pairwise.py`, `test_listwise.py`); the float64 oracle's value through model, engine and trainer, and
an update that depends neither on micro-batches nor on a token budget (`tests/training/trainers/test_every_loss.py`).
Those marked equal agree with TRL 1.16 over whole runs to 1e-4, ORPO but for the prompt's tokens in its likelihood
(`test_trl_parity.py`, `test_reference_free.py`). Where implementations disagree, `tests/losses/test_disagreements.py`
has both numbers. Losses whose value depends on all pairs of the step: `aot`, `aot_unpaired` (they sort them),
`beta_dpo`, `alpha_dpo` (they follow moments; `test_whole_step_losses.py`), `sft` and `gold` (means of all tokens).

"""


_WEIGHTING = """\
## WPO: `use_weighting`

With any loss of pairs, `use_weighting=True` makes a pair count as much as both its answers are likely under the policy:
`exp` of the sum of the two answers' means over tokens of `log p - log sum p^2`, without gradient and at most 1; the sum
is over the vocabulary, exact, and out of the forward pass that is there anyway. WPO, Zhou et al. 2024
([arXiv:2406.11827](https://arxiv.org/abs/2406.11827)): beta 0.01, learning rate 5e-7. **When:** Pairs that another
model wrote. **Traps:** TRL does not bound the weight, its authors do. The likelihood term (`sft`) is not weighed,
in TRL it is. Losses become small where answers are unlikely: compare runs by their rewards."""


_UNPAIRED = """\
## Single answers: `preftune kto`

`KTOTrainer` and `preftune kto` train on answers that are good or bad by themselves: rows of `prompt`, `completion`
and `label`, conversations with a `label`, thumbs. Preference pairs are a good and a bad answer each, so `kto` takes
them too, and mixtures of both. A row's `weight` is a factor of its loss, `desirable_weight` and `undesirable_weight`
are factors of all good and all bad answers; their ratio times that of the counts should lie in 1 to 4/3, and advice
says what makes it so. beta 0.1, learning rate 5e-7 (5e-6 for an adapter).

KTO's baseline z is the mean of log policy - log reference over prompts with the answer to another prompt, at least 0
and without gradient. It is taken over the whole optimiser step and all ranks, so that neither the batch size nor
gradient accumulation changes the update; TRL takes it per micro-batch of fixed rows, and therefore reads the rows in
order. Costs one more forward pass of policy and reference. With full fine-tuning the reference is a copy of the
weights. APO-zero and BCO cost neither.

BCO's delta is the mean of the rewards of all steps before (TRL's counts the batch at hand too); it is in checkpoints.
Its weights that match the prompts of good and bad answers are left out: give rows a `weight`. `BCOTrainer` and
`BCOConfig` are TRL's names for `KTOConfig(loss_type="bco")`."""


_GROUPS = """\
## Rewarded answers: `preftune grpo`, `preftune rloo`

`GRPOTrainer` and `RLOOTrainer` sample `num_generations` answers to each prompt and train on how much better each is
rewarded than the others. `reward_funcs` are functions as TRL takes them (`prompts`, `completions`, `completion_ids`
and the other columns in, a list of numbers out, `async` or not; `trainer_state` and `log_metric(name, value)` if they
ask for them), functions of one prompt, answer and row, reward models or their names, or a list of these, summed with
`reward_weights`. Batch sizes count answers. The prompt of a group is computed once for all its answers.

Rewards that ship: `exact` (1 for the row's expected answer), `key-fact`, `length:WORDS` (0 up to that many words,
falling to -1 at twice as many), `format:REGEX` (1 where the whole answer matches). PPO's `reward_model` takes them too.

An `eval_dataset` of held-out prompts is answered `num_generations_eval` times each, with the same draws at every
evaluation, and its rewards are logged (`eval_reward`). A reward that is trained on says how far the policy went along
it, not whether answers are better: that is for `preftune eval`, with another judge.

| to get | options |
|---|---|
| GRPO as in the paper | `loss_type=grpo`, `beta=0.04` |
| Dr. GRPO | `loss_type=dr_grpo`, `scale_rewards=none` |
| CISPO (arXiv:2506.13585) | `loss_type=cispo`: the weight of every token, at most `epsilon_high` (5), has no gradient |
| SAPO (arXiv:2511.20347) | `loss_type=sapo`: a smooth gate with two temperatures in place of clipping |
| LUSPO (arXiv:2602.05261) | `loss_type=luspo`, `importance_sampling_level=sequence`: GSPO, times the length |
| VESPO (arXiv:2602.10693) | `loss_type=vespo`: a gamma density of the whole answer's ratio as the weight |
| DAPO | `epsilon_high=0.28`, `dynamic_sampling`, `mask_truncated_completions` |
| GSPO | `importance_sampling_level=sequence`, `epsilon=3e-4`, `epsilon_high=4e-4` |

`loss_type` says what the loss is a mean over. `dapo` (the default, as TRL's) and `bnpo` are the mean over all tokens of
the optimiser step; TRL takes `bnpo` per micro-batch. With `beta=0` there is no reference, and none is kept."""


_JUDGED = """\
## Compared answers: `preftune online`, `preftune xpo`, `preftune nash-md`

`OnlineDPOTrainer`, `XPOTrainer` and `NashMDTrainer` sample answers and have a judge compare them: any `judge`, or
`reward_model`, or TRL's `reward_funcs`. Batch sizes count prompts. The answers of a prompt share its computation.

**Online DPO** (Guo et al. 2024, [arXiv:2402.04792](https://arxiv.org/abs/2402.04792)): any loss of pairs on the
preferences between `num_generations` answers of the policy. **When:** the pairs that exist were written by other
models. beta 0.1, learning rate 5e-7.

**XPO** (Xie et al. 2024, [arXiv:2405.21046](https://arxiv.org/abs/2405.21046), algorithm 1): one answer y is the
policy's and one, y', the reference's; the loss is DPO's on the two plus `alpha * log pi(y')`, which makes the
reference's answers less likely whether they won or not. **When:** online DPO stops finding anything new. **Traps:**
the second term has no lower bound; `alpha` (1e-5; a list has one value for each pass over the prompts) is small for
that reason. TRL's XPO (until 1.10) samples y' from `get_base_model()`, in which an adapter is still active; here the
adapter is off. `loss/dpo` and `loss/xpo` are the two terms, `judge/win_rate` is the policy's over the reference.

**Nash-MD** (Munos et al. 2023, [arXiv:2312.00886](https://arxiv.org/abs/2312.00886), section 7): y is the policy's,
y' comes from the geometric mixture of policy and reference, normalised token by token (`mixture_coef` is the
reference's weight, 0.5); the gradient is `grad log pi(y) (P(y > y') - 1/2 - beta (log pi(y) - log pi_ref(y)))`. P is
1, 1/2 or 0 by a judge that compares, and the sigmoid of the difference by scores, so scores should be in the units of
Bradley and Terry. **When:** preferences are not a ranking (a over b over c over a). **Traps:** one answer to a prompt,
so its variance is high: use many prompts in a step. TRL takes the KL of each token as the cost of that token alone,
which is not the gradient of the KL: what a token does to the KL of later ones is left out
(`tests/training/online/test_two_players.py` has both numbers). beta 0.1, learning rate 5e-7.

Neither evaluates held-out prompts during training, and neither samples with vLLM."""


_RACE = """\
## Raced where the reward is known

`preftune compare --methods dpo,ipo,simpo,kto,...` races methods on your own data ([rlhf.md](rlhf.md)). This is the race
of [examples/sentiment](../examples/sentiment/README.md#the-race-more-methods): a language model of 2.6 million
parameters, a classifier as the gold reward, each method at its authors' strength and one learning rate for all, so it
says how far each goes there, not which is best.

[examples/pandalm](../examples/pandalm/README.md#six-methods-racejson) has six methods on human judgements: their
held-out accuracy, compared with choosing the longer answer.

"""


def _race() -> str:
    """The section that race_page.py wrote."""
    text = (PAGE.parent.parent / "examples" / "sentiment" / "README.md").read_text(encoding="utf-8")
    _, rest = text.split("<!-- written by race_page.py from results/race.json -->")
    found, _ = rest.split("<!-- end of the race -->")
    return _RACE + found.strip().replace("](results/", "](../examples/sentiment/results/")


def page() -> str:
    """The whole document."""
    header = (
        "| `loss_type` | method | data | reference | margins | TRL | beta | learning rate | options |\n"
        "|---|---|---|---|---|---|--:|--:|---|\n"
    )
    sections = [*map(_section, LOSSES.values()), _WEIGHTING, _UNPAIRED, *(_of(loss) for loss in UNPAIRED.values())]
    sections += [
        _GROUPS,
        *map(_of, (group_advantages, leave_one_out, group_loss, Clipped, Cispo, Sapo, Vespo)),
        _JUDGED,
        _race(),
    ]
    return _HEAD + header + "\n".join(map(_row, LOSSES.values())) + "\n\n" + "\n\n".join(sections) + "\n"


def _row(loss: Loss) -> str:
    margins = "needed" if loss.needs_margins else "yes" if loss.margins else "no"
    beta = f"{loss.beta:g}" if loss.has_beta else ""
    data, reference = "lists" if loss.lists else "pairs", "yes" if loss.reference else "no"
    trl = "equal" if loss.name in EQUAL_TO_TRL else ""
    cells = [f"[`{loss.name}`](#{_anchor(loss)})", loss.title, data, reference, margins, trl, beta]
    return f"| {' | '.join([*cells, _rate(loss.learning_rate), ', '.join(f'`{name}`' for name in _options(loss))])} |"


def _section(loss: Loss) -> str:
    paper = f"[arXiv:{loss.paper}](https://arxiv.org/abs/{loss.paper})" if loss.paper[0].isdigit() else loss.paper
    parts = [f"## {loss.title}: `{loss.name}`", _text(loss.function), f"**Paper:** {paper}. **When:** {loss.use}"]
    if loss.traps:
        parts.append(f"**Traps:** {loss.traps}")
    if loss.has_beta:
        low, high = loss.betas
        parts.append(f"beta {loss.beta:g} (usual {low:g} to {high:g}), learning rate {_rate(loss.learning_rate)}.")
    helps = {name: DPOConfig.__dataclass_fields__[name].metadata["help"] for name in _options(loss)}
    listing = "\n".join(f"- `{name}`: {words}" for name, words in helps.items())
    return "\n\n".join([*parts, *([listing] if listing else [])])


def _of(loss: Callable[..., Any]) -> str:
    return f"### `{loss.__name__}`\n\n{_text(loss)}"


def _text(function: Callable[..., Any]) -> str:
    return inspect.cleandoc(function.__doc__ or "").split("\nArgs:")[0].strip()


def _options(loss: Loss) -> list[str]:
    names = [*loss.options, *loss.step_options, *([loss.likelihood] if isinstance(loss.likelihood, str) else [])]
    return [name for name in names if name in DPOConfig.__dataclass_fields__]


def _anchor(loss: Loss) -> str:
    return re.sub(r"[^\w\- ]", "", f"{loss.title}: {loss.name}".lower()).replace(" ", "-")


def _rate(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
