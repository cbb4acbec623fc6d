"""One module per command that does not train, with `run(argv) -> int`.

audit          preftune audit
cache          preftune cache
chat           preftune chat
chat_session   answers token by token
compare        preftune compare
convert        preftune convert
demo           preftune demo
env            preftune env
eval           preftune eval
eval_request   its flags, checked
eval_training  how its model was trained
judge_check    preftune judge-check
label          preftune label
report         preftune report
sample         preftune sample
"""
