"""The demo.

The main job on an embedded dataset, on a laptop CPU.

    pairs  the embedded dataset
    run    the demo
    table  its table
"""

__all__ = ["pairs", "run", "table"]
