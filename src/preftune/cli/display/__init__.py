"""The output of commands on a terminal, during the work and at the end.

audit_table  findings of an audit
eval_table   the verdict of an evaluation
live_table   a training run as a live table
plan_table   a plan
progress     a training run as lines or as the table
terminal     the console
"""

__all__ = ["audit_table", "eval_table", "plan_table", "progress", "terminal"]
