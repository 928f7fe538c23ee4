"""Errors a user can act on: the command line prints one line and exits with 2 (`BadInput`) or 1 (`RunFailed`)."""


class PacError(Exception):
    """Root of every error that PAC raises on purpose; its text is one line that names what, where and the way out."""

    exit_code = 1


class BadInput(PacError):
    """What the user gave cannot be used: a file, a value, a name, a model. Nothing was written."""

    exit_code = 2


class RunFailed(PacError):
    """A run that had started could not go on; what it wrote before is whole."""


class StoreFull(RunFailed):
    """A store has no room left: its byte budget or the disk is used up. Entries already written stay readable."""


class UnknownPlugin(BadInput):
    """A plugin name that nobody registered."""


class PluginConflict(BadInput):
    """Two distributions registered the same name for the same kind of plugin."""


class NeedsInnerStore(BadInput):
    """A wrapping store was asked for without the store it is to wrap."""
