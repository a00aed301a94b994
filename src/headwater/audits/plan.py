"""How `verify` spends its budget: declared before the first run, so that stopping early is valid.

Half of the budget checks components in the order of the estimate, half closes random subsets. Both
are spent in three stages, each followed by a look, and the error rate is split evenly over the
looks (Bonferroni): whichever look ends the procedure, the whole of it is wrong at most that often.
"""

from __future__ import annotations

from dataclasses import dataclass

from headwater.audits.bound import FEWEST_BLOCKS, blocks_of

LOOKS = 3

TIMES_PER_STAGE = 4
"""Runs of each stage that close each component."""


@dataclass(frozen=True)
class Plan:
    """A budget in stages; depends on counts only, never on what the runs show."""

    budget: int
    """Exact runs: components checked and subsets closed together."""
    depth: int
    """Rounds it takes to deal every component once."""
    blocks: int
    """Blocks of each round; 0 if the budget leaves no room for subset runs."""

    @classmethod
    def of(cls, budget: int, unknown: int, depth: int) -> Plan:
        """Return the plan for a number of components of which nothing exact is known.

        Blocks hold four components on average at least: smaller ones would cost as much as checks.
        """
        blocks = blocks_of(budget // 2, LOOKS * TIMES_PER_STAGE * depth)
        blocks = min(blocks, max(FEWEST_BLOCKS, unknown // (4 * depth)))
        return cls(budget, depth, blocks if blocks >= FEWEST_BLOCKS else 0)

    @staticmethod
    def least_budget(depth: int) -> int:
        """Return the budget from which on there is room for subset runs."""
        return 2 * LOOKS * TIMES_PER_STAGE * depth * (FEWEST_BLOCKS + 1)

    @property
    def rounds(self) -> int:
        """Rounds of subset runs in a stage."""
        return TIMES_PER_STAGE * self.depth if self.blocks else 0

    @property
    def subset_runs(self) -> int:
        """Most subset runs of a stage: every block of each round, and one union."""
        return self.rounds * (self.blocks + 1)

    @property
    def checks(self) -> int:
        """Components checked in a stage."""
        return (self.budget - LOOKS * self.subset_runs) // LOOKS

    @property
    def stage_runs(self) -> int:
        """Exact runs of a stage."""
        return self.checks + self.subset_runs

    def just_check(self, unknown: int, left: int) -> bool:
        """Whether to check every unknown component now: certain, and hardly dearer than a stage."""
        return unknown <= left and unknown <= 2 * self.stage_runs
