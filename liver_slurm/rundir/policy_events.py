"""The events of what the policy decides, and of what it was offered. Pure."""

from __future__ import annotations

import msgspec

from liver_slurm.rundir.event_base import EventBase


class Offered(msgspec.Struct, frozen=True, kw_only=True):
    """What was on offer when a policy was asked, what was known of it, and what was done."""

    id: str = ""
    """``RUN:NUMBER``, as in its ``decision_window`` events; empty: there are none, as the policy states no chance."""
    jobs: tuple[str, ...]
    """Standby jobs whose workers could be added."""
    action: str
    """``take``, or ``leave``."""
    propensity: float | None = None
    """Chance that the policy gave this action; None: it states none."""
    step: int
    """Steps completed."""
    features_version: int
    features: dict[str, float | None]
    """What was known, by name, see :mod:`liver_slurm.policy.features`; None: it was not."""


class DecisionWindow(EventBase, frozen=True, kw_only=True):
    """A window after a decision on an offer has ended: what was gained since then.

    What is lost later does not change it; so much of a decision is gone from the metrics when a run restarts.
    """

    offer: str
    """Id of the decision, of :class:`Offered`."""
    window_s: float
    """Length of the window."""
    after_s: float
    """Seconds since the decision; more than the window where the coordinator was away at its end."""
    step: int
    """Steps completed."""
    gained_s: float
    """Time that the steps since the decision would have taken at the speed of before it, less the time that went by."""
    layout: str
    """Of the live world; empty: there is none."""


class PolicyDecided(EventBase, frozen=True, kw_only=True):
    """The policy was asked and its word is new: what was decided, from what, and why.

    Written when the decision or its reason changes, not at each look; figures in the reason may change unsaid. An
    explicit request and members that leave are decided on before any policy is asked: then ``request`` or ``leaving``
    says so.
    """

    policy: str
    """Name in the job file."""
    decision: str
    """``stay``, ``wait``, ``change``, ``fulfilled``, or ``leave``: standby jobs are given back."""
    to: str | None
    """Layout of the next world; None: there is to be none."""
    chosen: int
    """Members of the next world."""
    until: float | None
    """When the policy wants to be asked again, seconds since the epoch; None: when something changes."""
    reason: str
    layout: str
    """Of the live world."""
    available: int
    """Workers that could be in the next world."""
    ready: int
    """Those of them that are in no world."""
    leaving: int
    """Members of the live world that will go away."""
    step_seconds: float
    """Of a step in the live world; 0.0: not known yet."""
    steps_left: int
    automatic: bool
    """The run may grow without being asked."""
    request: int | None
    """Number of the explicit request whose turn it is."""
    offer: Offered | msgspec.UnsetType = msgspec.UNSET
    """What was on offer; left out: nothing that would make a step faster."""


class ResizeGivenUp(EventBase, frozen=True, kw_only=True):
    """An explicit request is not fulfilled."""

    request: int
    wanted: str
    reason: str
