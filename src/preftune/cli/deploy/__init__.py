"""The commands around a model that is finished: merging, exporting, verifying, serving.

export  preftune export
merge   preftune merge
push    preftune push
serve   preftune serve
verify  preftune verify
"""
