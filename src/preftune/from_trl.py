"""Names of TRL that preftune does not have, for the error of their import. docs/from-trl.md has the same table."""

from __future__ import annotations

INSTEAD = {
    name: instead
    for names, instead in (
        (
            "TrlParser ScriptArguments ModelConfig get_peft_config",
            "Use `preftune dpo --config recipe.yaml` with flags of the same names; in a program, pass `DPOConfig(...)` "
            "and `peft_config=LoraConfig(...)`.",
        ),
        (
            "get_quantization_config get_kbit_device_map",
            "Use `load_model(NAME, load_in_4bit=True)`.",
        ),
        (
            "setup_chat_format clone_chat_template",
            "Use `SFTConfig(chat_template_path=...)`, a Jinja file or a model with the template.",
        ),
        (
            "apply_chat_template maybe_apply_chat_template is_conversational extract_prompt maybe_extract_prompt "
            "unpair_preference_dataset maybe_unpair_preference_dataset pack_dataset truncate_dataset "
            "DataCollatorForCompletionOnlyLM DPODataCollatorWithPadding",
            "Pass the rows unchanged: trainers apply the template, find the prompt, read both sides of pairs, shorten "
            "and pack.",
        ),
        (
            "create_reference_model",
            "Leave `ref_model` out: the reference is the model as received.",
        ),
        (
            "AutoModelForCausalLMWithValueHead AutoModelForSeq2SeqLMWithValueHead",
            "Pass a causal model to `PPOTrainer`, which adds the value function itself.",
        ),
        (
            "accuracy_reward think_format_reward get_soft_overlong_punishment",
            'Use `reward_funcs=["exact", "format:REGEX", "length:WORDS"]`, or functions of your own.',
        ),
        (
            "SyncRefModelCallback",
            "Use `sync_ref_model=True`.",
        ),
        (
            "LogCompletionsCallback",
            'Use `guard="warn"`, which keeps answers during the training in samples.jsonl.',
        ),
        (
            "WinRateCallback",
            "Use `eval_judge`, the name of a judge.",
        ),
        (
            "BasePairwiseJudge HfPairwiseJudge OpenAIPairwiseJudge PairRMJudge",
            "Use `OnlineDPOConfig(judge=...)` with the name of a judge, such as `local:MODEL` or "
            "`openai:MODEL@BASE_URL`; or pass a function of your own as `judge=...` to the trainer.",
        ),
        (
            "BestOfNSampler",
            "Use `preftune sample`, then `preftune label` with a reward model.",
        ),
        (
            "GKDTrainer PRMTrainer IterativeSFTTrainer DDPOTrainer",
            "This method is not part of preftune: use TRL for it.",
        ),
    )
    for name in names.split()
}
"""Name -> a sentence on what to use instead."""
