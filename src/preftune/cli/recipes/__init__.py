"""Commands on recipes and settings: recipes converted, settings searched, trainings forecast and prepared.

A dialect maps keys and values; what it cannot carry over is named with the reason.

    axolotl         Axolotl's YAML (rl: dpo, ipo, kto, orpo, simpo)
    carried         what a dialect makes of a recipe
    convert_recipe  preftune convert-recipe
    launch          preftune launch
    llama_factory   LLaMA-Factory's YAML (stage, pref_loss, pref_beta, ...)
    plan            preftune plan
    score           preftune score
    sweep           preftune sweep
"""

__all__ = ["convert_recipe", "launch", "plan", "score", "sweep"]
