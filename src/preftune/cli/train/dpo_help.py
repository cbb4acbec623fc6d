"""The help page of `preftune dpo`: the flags that matter, as text, so that it comes at once. A test holds it true."""

HELP = """\
usage: preftune dpo --model NAME_OR_PATH --data FILE_OR_HUB_ID [options]

Direct Preference Optimization. Every field of DPOConfig and of transformers'
TrainingArguments is a flag (--learning_rate or --learning-rate). A YAML recipe
holds the same names; flags override it.

model
  --model NAME               path or hub id (also --model_name_or_path)
  --dtype TYPE               auto, bfloat16, float16, float32 (as stored)
  --use_peft                 train a LoRA adapter instead of all weights
  --lora_r, --lora_alpha     its rank and scale (16, 32)
  --lora_target_modules      layers that get one (all-linear)
  --load_in_4bit             QLoRA: the frozen base in 4 bits

data
  --data NAME                jsonl, json, csv, parquet (also .gz), a folder, a
                             hub id, - for stdin (also --dataset_name)
  --format                   openai, sharegpt, ultrafeedback, kto, ... where the
                             shape does not tell
  --columns                  renames: chosen=good rejected=bad
  --as_chat                  plain prompts and answers become chat messages
  --dataset_train_split      which split (train); slices too: 'train[:1000]'
  --eval_fraction            hold out this share of the prompts, such as 0.05
  --eval_dataset_name        or evaluate on these pairs
  --max_length               longest prompt plus completion, in tokens (1024)
  --max_prompt_length        longest prompt, in tokens
  --truncation               longer rows: truncate, drop, error (truncate)

training
  --beta                     KL penalty (0.1); higher stays near the reference
  --loss_type                sigmoid, ipo, hinge, robust (sigmoid)
  --learning_rate            if left out: 5e-7 full, 5e-6 LoRA
  --num_train_epochs         how long (3), or --max_steps
  --per_device_train_batch_size, --gradient_accumulation_steps
                             pairs per optimiser step (8 x 1)
  --max_tokens_per_batch     most tokens computed at a time; the same update.
                             Out of memory, it is halved by itself
  --group_by_prompt          pairs of one prompt train as one group
  --eval_strategy            no, steps (with --eval_steps), epoch (no)
  --early_stopping_patience  evaluations without improvement before it stops
  --guard                    off, warn, stop or rollback when the run goes
                             wrong (warn)
  --guard_budget             most of the time that it may take (0.05)
  --guard_prompts            how many prompts it asks (8), or a file of them

output
  --output_dir FOLDER        the run directory (runs/dpo): adapter or model,
                             run.json, metrics.jsonl, checkpoints
  --resume [CHECKPOINT]      go on from the last checkpoint, or from this one;
                             auto: start if there is none
  --no_report                without report.html at the end
  --push_to_hub              upload the result, to --hub_model_id
  --report_to                wandb, tensorboard, trackio, ... (none)

  --config RECIPE.yaml       fields from a file
  --verbose                  all notes, which run.json has anyway
  --help-all                 every flag
  --traceback                the whole traceback of an error
"""
