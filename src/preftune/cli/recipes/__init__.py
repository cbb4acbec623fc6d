"""Commands on recipes and settings: recipes converted, settings searched, trainings forecast and prepared.

A dialect maps keys and values; what it cannot carry over is named with the reason.

    axolotl             Axolotl's YAML (rl: dpo, ipo, kto, orpo, simpo)
    axolotl_data        its datasets and the columns of each
    carried             what a dialect makes of a recipe
    convert_recipe      preftune convert-recipe
    launch              preftune launch
    llama_factory       LLaMA-Factory's YAML (stage, pref_loss, pref_beta, ...)
    llama_factory_data  its datasets by name, and the columns of each
    plan                preftune plan
    score               preftune score
    sources             the datasets of a recipe, written as preftune's
    sweep               preftune sweep
"""

__all__ = ["convert_recipe", "launch", "plan", "score", "sweep"]
