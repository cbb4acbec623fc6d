"""Work over blocks of rows on several workers: actors of a Ray cluster.

A team computes blocks in any order. The caller hands them out and keeps the results by key, so that a stopped command
continues, and writes its output in the order of the rows.

    actor     what runs on a worker
    ray_pool  the cluster, and teams of actors on it
    team      the protocols of a pool and of a team
"""

from preftune.workers.team import Pool, Team

__all__ = ["Pool", "Team", "actor", "ray_pool", "team"]
