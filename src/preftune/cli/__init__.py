"""The command line: parse, call, print.

`main` names the commands and imports a command when it is called, so `preftune --help` needs no torch.

    commands  commands that do not train
    deploy    commands on a finished model
    display   tables and progress on the terminal
    flags     flags, recipes, messages
    main      the entry point
    recipes   recipes of other tools
    train     commands that train
"""

__all__ = ["main"]
