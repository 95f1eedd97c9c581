"""What an agent process imports: claim a task, say that it is alive, hand in a result, let go.

Standard library, ``filelock``, ``coordinator.domain`` and ``coordinator.kit.lock`` only, and quick to import. Agents in
other languages do the same with files (``agents/PROTOCOL.md``). ::

    from coordinator.sdk import Agent

    claim = Agent(name="mine").claim_next()
    if claim is not None:  # None: nothing is ready
        with claim:
            tree = claim.prepare_worktree()
            claim.progress("reading the brief")
            ...
            claim.result(Outcome.DONE, summary="added the missing test")
"""

from coordinator.domain.attempt import ClaimRecord, Order, Outcome, Result
from coordinator.domain.errors import ClaimHeld, PermanentError, StaleGeneration, ToolFailed, UnknownTask
from coordinator.sdk.agent import Agent
from coordinator.sdk.claim import Claim
from coordinator.sdk.layout import Layout

__all__ = [
    "Agent",
    "Claim",
    "ClaimHeld",
    "ClaimRecord",
    "Layout",
    "Order",
    "Outcome",
    "PermanentError",
    "Result",
    "StaleGeneration",
    "ToolFailed",
    "UnknownTask",
]
