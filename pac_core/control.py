"""What a leader and its workers say to each other before and beside a run: small messages, each checked on arrival.

A worker that has come says `Hello`. The leader answers with `Welcome`, or with `Refusal`. For a run it sends `Call`,
which the worker answers with `Offer`, or with `Busy`; then `Job`, answered with `Ready` once the worker's process is
about to connect with the others, and with `Ended` in the end. `End` asks for the end before. `Probe` is answered with
`Echo`, to measure the link. A worker that is stopped says `Leaving`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from pac_core.facts import DeviceFacts

Text = Annotated[str, Field(max_length=1000)]
JobName = Annotated[str, Field(min_length=1, max_length=100)]

Purpose = Literal["train", "profile"]
"""What a job is for: a run of `pac finetune`, or measuring devices."""

MOST_THREADS = 4096
"""That a device may be asked to compute with."""


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Hello(_Said):
    """A worker presents itself; ``clock`` is its time in seconds since 1970."""

    kind: Literal["hello"] = "hello"
    version: Text
    clock: float
    facts: DeviceFacts


class Welcome(_Said):
    """The leader of this name takes the worker."""

    kind: Literal["welcome"] = "welcome"
    leader: Text


class Refusal(_Said):
    """The leader cannot work with this worker, ever."""

    kind: Literal["refusal"] = "refusal"
    reason: Text


class Call(_Said):
    """Keep yourself free for this job; ``address`` is where to listen for the other devices, or empty."""

    kind: Literal["call"] = "call"
    job: JobName
    address: Text


class Offer(_Said):
    """The worker is free, and will listen at this address."""

    kind: Literal["offer"] = "offer"
    job: JobName
    address: Text


class Busy(_Said):
    """The worker has a job of another leader, or of this one."""

    kind: Literal["busy"] = "busy"
    job: JobName
    reason: Text


class PeerAddress(_Said):
    """Where a device listens for the others, and its public key."""

    address: Text
    key: Text


class Job(_Said):
    """Take part in a run.

    Attributes:
        config: `RunConfig.plain`.
        rank: number of the device that the worker is.
        peers: every device, by rank.
        threads: for computing; 0 for the worker's own choice.
        transport: name of the transport between the devices.
        blocked: plugins to leave out.
        purpose: what the job is for; of a profile, ``config`` says how adapter and cache are to be.
    """

    kind: Literal["job"] = "job"
    job: JobName
    config: dict[str, JsonValue]
    rank: int = Field(ge=0)
    peers: list[PeerAddress]
    threads: int = Field(ge=0, le=MOST_THREADS)
    transport: Text
    blocked: list[Text]
    purpose: Purpose = "train"


class End(_Said):
    """End the job now."""

    kind: Literal["end"] = "end"
    job: JobName
    reason: Text


class Ready(_Said):
    """The worker's process has loaded, and connects with the other devices."""

    kind: Literal["ready"] = "ready"
    job: JobName


class Ended(_Said):
    """The worker's process has ended: with the exit code of ``pac``, or minus the signal that killed it."""

    kind: Literal["ended"] = "ended"
    job: JobName
    code: int
    reason: Text


class Leaving(_Said):
    """The worker is about to leave."""

    kind: Literal["leaving"] = "leaving"
    reason: Text


class Probe(_Said):
    """Answer with its number."""

    kind: Literal["probe"] = "probe"
    number: int
    data: bytes


class Echo(_Said):
    """The answer to a `Probe`."""

    kind: Literal["echo"] = "echo"
    number: int


Message = Hello | Welcome | Refusal | Call | Offer | Busy | Job | End | Ready | Ended | Leaving | Probe | Echo

_MESSAGES: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def write(message: Message) -> dict[str, Any]:
    """A message as a mapping that a `Meeting` can send."""
    return message.model_dump()


def read(message: Mapping[str, Any]) -> Message | None:
    """The message in a mapping; None if it is none, as one of another version may be."""
    try:
        return _MESSAGES.validate_python(message)
    except (ValidationError, RecursionError):
        return None


def readable(text: object) -> str:
    """A stranger's text, short and without what a terminal would act on."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:300])


def own_version() -> str:
    """The version of PAC that is installed."""
    return metadata.version("pac-core")
