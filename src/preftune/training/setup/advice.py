"""Advice before training, one line each, on settings outside of the usual ranges. Advice never stops a run."""

from __future__ import annotations

from preftune.amounts import counted
from preftune.data.chat.end_marks import closing_token
from preftune.errors import ConfigError
from preftune.log import say
from preftune.losses import Loss, get_loss
from preftune.training.config.dpo import DPOConfig
from preftune.training.protocol import DPOTrainerView
from preftune.training.setup.broken import ends_unlearned


def say_advice(trainer: DPOTrainerView) -> None:
    """Log the advice on a trainer's configuration, model and data."""
    args, data = trainer.args, trainer.train_dataset
    per_step = args.rows_per_step
    epochs = args.max_steps * per_step / len(data) if args.max_steps > 0 else args.num_train_epochs
    template = bool(getattr(trainer.processing_class, "chat_template", None))
    if template and ends_unlearned(trainer, closing_token(trainer.processing_class)):
        say(
            "advice: the model hardly ever ends an answer with the mark of its chat template: it is probably a base "
            "model with a chat template. Start from an instruction-tuned model, or run preftune sft first."
        )
    for line in advise(args, pairs=data.pairs, has_chat_template=template, full=trainer.full, epochs=round(epochs, 2)):
        say(f"advice: {line}")


DESTRUCTIVE = 1e-2
"""A learning rate with which AdamW destroys every language model."""


def check_margins(trainer: DPOTrainerView) -> None:
    """Raises: ConfigError where the rows have margins that the loss does not use, or lack those that it needs."""
    objective, names = trainer.objective, ", ".join(trainer.args.loss_type)
    if trainer.train_dataset.has_margins and not objective.uses_margins:
        raise ConfigError(
            f"the rows have margins, which loss_type={names} does not use. Leave the column margin (or "
            "margin_from_scores) out, or use a loss that has a margin: sigmoid, ipo, hinge, simpo."
        )
    if not trainer.train_dataset.has_margins and objective.needs_margins:
        raise ConfigError(
            f"loss_type={names} fits the rewards to the differences of the ratings, but no row has ratings. Give "
            "margin_from_scores=1.0 (with rated data) or a column margin."
        )


def _rate_of_adapter(rate: float, usual: float, *, few: bool) -> list[str]:
    """Advice on an adapter's learning rate outside of the usual range, whose upper end is six times as high with few
    pairs.

    Args:
        usual: the method's learning rate for full fine-tuning.
    """
    low, high = (float(f"{times * usual:.3g}") for times in (10, 100))
    if rate < low:
        return [
            f"learning_rate={rate:g} is low for an adapter ({_rate(low)} to {_rate(high)} is usual, ten times that of "
            "full fine-tuning): it may have no effect."
        ]
    if DESTRUCTIVE > rate > (6 * high if few else high):
        return [
            f"learning_rate={rate:g} is high for an adapter ({_rate(low)} to {_rate(high)} is usual, up to "
            f"{_rate(6 * high)} for a few hundred pairs): if answers become repetitive, halve it first."
        ]
    return []


def _rate(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-")


def about_rate(rate: float | None, usual: float, *, full: bool, few: bool) -> list[str]:
    """Advice on a learning rate outside of the usual range; empty within it.

    Args:
        rate: the learning rate; None or 0 gets no advice.
        usual: the learning rate of the method's authors for full fine-tuning.
        full: full fine-tuning, as opposed to an adapter.
        few: fewer than a thousand rows.
    """
    lines: list[str] = []
    if rate and rate >= DESTRUCTIVE:
        lines.append(
            f"learning_rate={rate:g} destroys a language model within a few steps. Usual are {_rate(usual)} to "
            f"{_rate(10 * usual)} for full fine-tuning and {_rate(10 * usual)} to {_rate(100 * usual)} for an adapter."
        )
    elif rate and full and not usual <= rate <= 10 * usual:
        what = "may damage the model" if rate > 10 * usual else "may have no effect"
        lines.append(
            f"learning_rate={rate:g} is outside {_rate(usual)}..{_rate(10 * usual)}, the usual range for full "
            f"fine-tuning: it {what}."
        )
    elif rate and not full:
        lines += _rate_of_adapter(rate, usual, few=few)
    return lines


def about_beta(beta: float, *, title: str, usual: float, low: float, high: float) -> list[str]:
    """Advice on a beta outside of `low` to `high`, the usual range of a method; empty within it."""
    if low <= beta <= high:
        return []
    what = f"the policy {'will hardly leave' if beta > high else 'may drift far from'} the reference"
    return [f"beta={beta:g} is outside {low:g}..{high:g}, the usual range of {title}: {what}. {usual:g} is usual."]


def _about_beta(config: DPOConfig, loss: Loss) -> list[str]:
    """Advice on the beta of a loss of pairs, in more detail for DPO."""
    low, high = loss.betas
    if not loss.has_beta:
        return []
    if loss.name != "sigmoid":
        return about_beta(config.beta, title=loss.title, usual=loss.beta, low=low, high=high)
    lines: list[str] = []
    if config.beta > high:
        lines.append(
            f"beta={config.beta:g} is above 0.5: the policy will hardly leave the reference. 0.1 is a usual start."
        )
    elif config.beta < low:
        lines.append(
            f"beta={config.beta:g} is below 0.05: the policy may drift far from the reference and lose general "
            "abilities or become repetitive. 0.1 is a usual start; 0.2 to 0.5 if answers become repetitive (a higher "
            "beta stays closer to the reference)."
        )
    return lines


def advise(config: DPOConfig, *, pairs: int, has_chat_template: bool, full: bool, epochs: float) -> list[str]:
    """Advice on a configuration, one line each.

    Args:
        pairs: training pairs, without dropped rows.
        has_chat_template: whether the tokenizer has a chat template; without one, the model was probably never
            instruction-tuned.
        full: full fine-tuning, as opposed to an adapter.
        epochs: passes over the data.
    """
    loss = get_loss(config.loss)
    usual = loss.learning_rate
    lines = _about_beta(config, loss)
    lines += about_rate(config.learning_rate, usual, full=full, few=pairs < 1000)
    what = "list" if loss.lists else "pair"
    if pairs < 1000:
        lines.append(
            f"{counted(pairs, f'{what} is few', f'{what}s are few')}: about 1,000 good ones make a difference in one "
            "domain, 10,000 in general. Judge the result by win rate, not by the training accuracy."
        )
    elif pairs < 10_000:
        lines.append(f"{pairs:,} {what}s are enough for one domain; 10,000 or more are recommended for general use.")
    if not has_chat_template:
        lines.append(
            "the tokenizer has no chat template, so this model was probably never instruction-tuned. DPO is meant to "
            "follow supervised fine-tuning."
        )
    if epochs > 1:
        lines.append(
            f"{epochs:g} epochs: one epoch is usually enough for DPO; watch the held-out margin for overfitting."
        )
    return lines
