"""The guard: looks at a run while it trains, and says what goes wrong, why, and the one change that mends it.

figures.py    what is known of the run: training figures at every step for nothing, looks that cost time
tally.py      sums of a step's pairs on the device; one transfer when they are read
rules/        figures -> alarms; pure, one small function per alarm
schedule.py   when to look, from measured costs and the budget
samples.py    prompts, the reference's answers before the first step, the policy's now, held-out pairs
rollback.py   the last good weights
callback.py   the thin part: transformers calls it
replay.py     the rules over a recorded run directory
"""
