"""DPO against reward model and PPO on the same model, data, budget and judge: what `preftune compare` does."""
