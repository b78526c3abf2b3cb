"""The values of hyperparameters that are learned per parameter group, as one value per weight.

Shapes: D = weights, S = those in the columns at hand (all D, unless they are sharded), G = parameter groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fds_dist.flat import FlatLayout
from fds_dist.groups import assigned, name_in


@dataclass(frozen=True)
class WeightGroups:
    """The group of each weight in some columns of the flat vector."""

    names: tuple[str, ...]  # [G]
    of_weight: Tensor  # [S] positions in `names`; 32 bits, since there is one per weight

    @classmethod
    def of(
        cls, patterns: Mapping[str, str], layout: FlatLayout, columns: slice, device: torch.device | str
    ) -> WeightGroups:
        """The groups with these `patterns` on the weights of `layout` in `columns`.

        Raises:
            UserError: the patterns do not fit the names of the parameters.
        """
        group, names = assigned(patterns, layout.names), tuple(patterns)
        of_parameter = torch.tensor([names.index(group[name]) for name in layout.names], dtype=torch.int32)
        return cls(names, of_parameter.repeat_interleave(torch.tensor(layout.sizes))[columns].to(device))

    def stacked(self, base: str, values: Mapping[str, Tensor]) -> Tensor:
        """The copies of the hyperparameter `base` in `values` (by name, [] each) as one tensor [G]."""
        return torch.stack([values[name_in(base, group)] for group in self.names])

    def per_weight(self, value: Tensor) -> Tensor:
        """A value of all weights [] as it is, values of the groups [G] as one per weight [S].

        By `index_select`: indexing with brackets takes four times as long, and its reverse mode on a GPU is a sort.
        """
        return value if value.dim() == 0 else value.index_select(0, self.of_weight)
