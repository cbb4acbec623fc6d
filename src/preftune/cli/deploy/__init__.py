"""The commands around a model that is finished: merging, exporting, verifying, serving.

export  a run in the forms that servers load
merge   an adapter folded into its base
"""
