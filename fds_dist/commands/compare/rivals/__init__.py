"""The methods of the comparison, each behind the interface `Rival`."""

from __future__ import annotations

from fds_dist.commands.compare.rivals.black_box import BlackBox
from fds_dist.commands.compare.rivals.curves import Curve
from fds_dist.commands.compare.rivals.gradient import Fds, Greedy
from fds_dist.commands.compare.rivals.recipe import Buckets
from fds_dist.commands.compare.rivals.refined import Refined
from fds_dist.commands.compare.rivals.rival import Rival
from fds_dist.commands.compare.rivals.schedule_free import ScheduleFree
from fds_dist.commands.compare.rivals.staircase import Staircase
from fds_dist.commands.compare.rivals.study import Kind

RIVALS: dict[str, Rival] = {
    "fds": Fds(),
    "greedy": Greedy(),
    "cosine": BlackBox("cosine", "tuned cosine", Curve("cosine")),
    "linear": BlackBox("linear", "tuned linear decay", Curve("linear")),
    "refined": Refined(),
    "schedule_free": BlackBox("schedule_free", "tuned schedule-free", ScheduleFree()),
    "cosine_buckets": BlackBox("cosine_buckets", "tuned cosine in buckets", Staircase()),
    "random": BlackBox("random", "random search", Buckets(), Kind()),
    "tpe": BlackBox("tpe", "TPE", Buckets()),
    "hyperband": BlackBox("hyperband", "Hyperband", Buckets(), Kind(pruned=True)),
    "bohb": BlackBox("bohb", "BOHB", Buckets(), Kind(guided=True, pruned=True)),
}
"""Name in `compare.methods` → the method."""

CURVES = ("cosine", "linear", "refined", "schedule_free")
"""The methods that search a few numbers of a schedule with a value at every step, instead of the config's buckets."""
