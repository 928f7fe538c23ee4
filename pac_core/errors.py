"""Errors a user can act on: the command line prints one line and exits with 2 (`BadInput`) or 1 (`RunFailed`)."""

RESUME = "what was written is whole, and the same command with --resume goes on from there"
"""The end of what is said of a run that could not go on."""

AGAIN = "nothing was written; give the same command again"
"""The same of devices that were to be measured."""


class PacError(Exception):
    """Root of every error that PAC raises on purpose; its text is one line that names what, where and the way out."""

    exit_code = 1


class BadInput(PacError):
    """What the user gave cannot be used: a file, a value, a name, a model. Nothing was written."""

    exit_code = 2


class RunFailed(PacError):
    """A run that had started could not go on; what it wrote before is whole."""


class Followed(RunFailed):
    """A run that another device leads has ended there, and this one has nothing to add: the command line says nothing
    of it."""


class StoreFull(RunFailed):
    """A store has no room left: its byte budget or the disk is used up. Entries already written stay readable."""


class UnknownPlugin(BadInput):
    """A plugin name that nobody registered."""


class PluginConflict(BadInput):
    """Two distributions registered the same name for the same kind of plugin."""


class NeedsInnerStore(BadInput):
    """A wrapping store was asked for without the store it is to wrap."""


class TransportError(RunFailed):
    """Something failed between devices. The transport is to be closed; a run goes on with a new one."""


class PeerLost(TransportError):
    """A peer is gone: its process ended, its connection broke, it fell silent, or it broke the protocol.

    Attributes:
        rank: which one.
    """

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(f"lost device {rank}: {reason}")
        self.rank = rank


class TransportTimeout(TransportError):
    """A send, a receive or a collective did not end in time, though no peer is known to be lost. It is still under way,
    and may be waited for again."""


class Refused(BadInput):
    """A peer will not work with this device, and says why: its key, its version, its model."""
