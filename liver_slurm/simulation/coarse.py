"""A job in which one worker stands for several that come and go together: a large run is simulated in minutes so.

The coordinator hears of each worker several times in each change. Where every layout has whole tensor parallel groups
on a node, such as tp8 on nodes of 8 GPUs, the workers of a group are alike in all that it hears, and one speaks for
them: the job has tp1 on nodes of one worker then. Steps take what they take in the whole layout, and devices are
counted in full. What is not the same: where the coordinator's cost model compares layouts, it does not know what tensor
parallelism costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from liver_slurm.base.errors import BadInput
from liver_slurm.config.layouts import feasible_layouts
from liver_slurm.config.schema import JobConfig
from liver_slurm.config.units import standby_units
from liver_slurm.parallel.layout import Layout
from liver_slurm.simulation.costs import Costs, StepTimes
from liver_slurm.simulation.setting import most_devices


def group_size(config: JobConfig) -> int:
    """Return how many workers one can stand for.

    Raises:
        BadInput: none can: a layout or a node is not made of whole groups.
    """
    layouts = [*feasible_layouts(config, most_devices(config))]
    on_nodes = [component.tasks_per_node for component in config.live.component]
    on_nodes += [unit.tasks_per_node for unit in standby_units(config.standby)]
    group = math.gcd(*(layout.tp for layout in layouts), *on_nodes)
    if other := next((layout for layout in layouts if layout.etp != layout.tp), None):
        raise BadInput(f"--by-node: {other} cuts experts otherwise than tp, across groups; leave --by-node out")
    if group < 2:
        raise BadInput(
            "--by-node: all layouts of elastic.layouts, and tasks_per_node, must have a tensor parallel size in common,"
            " such as tp8 on nodes of 8; leave --by-node out"
        )
    return group


def coarse(config: JobConfig, costs: Costs, group: int) -> tuple[JobConfig, Costs]:
    """Return the job and its costs with one worker for each ``group``; see :func:`group_size`."""
    layouts = feasible_layouts(config, most_devices(config))
    times = StepTimes(config, costs.step_s)
    elastic, standby, live = config.elastic, config.standby, config.live
    made = replace(
        config,
        elastic=replace(
            elastic,
            layouts=tuple(str(_reduced(layout, group)) for layout in _in_order(config, layouts)),
            initial=str(_reduced(Layout.parse(elastic.initial), group)) if elastic.initial is not None else None,
            max_workers=elastic.max_workers // group if elastic.max_workers is not None else None,
        ),
        standby=replace(_on_node(standby, group), unit=tuple(_on_node(unit, group) for unit in standby.unit)),
        live=replace(live, component=tuple(_on_node(component, group) for component in live.component)),
    )
    return made, replace(costs, step_s={str(_reduced(layout, group)): times(layout) for layout in layouts})


def _in_order(config: JobConfig, layouts: Sequence[Layout]) -> list[Layout]:
    """Return layouts in the order of the job file, which decides among equals."""
    if config.elastic.layouts == "auto":
        return list(layouts)
    listed = [Layout.parse(text) for text in config.elastic.layouts]
    return [layout for layout in listed if layout in layouts]


def _reduced(layout: Layout, group: int) -> Layout:
    return replace(layout, tp=layout.tp // group, etp=0)


def _on_node(section: Any, group: int) -> Any:
    """Return a section of the job file with a ``group``-th of the workers on a node."""
    tasks = section.tasks_per_node
    return section if tasks is None else replace(section, tasks_per_node=tasks // group)
