"""Which record of which shard holds a key: the disk store's index, in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pac_plugins.stores.shard import Record, Shard, scan


class Place(NamedTuple):
    """Where an entry is."""

    shard: Shard
    record: Record


class Index:
    """Keys and their places, with the bytes that are live in each shard.

    Two processes may have written one key; the further copies are remembered, so that deleting the key deletes all.

    Attributes:
        shards: every shard known, by file name.
        raw_bytes: bytes of all values, one copy each.
    """

    def __init__(self) -> None:
        self.shards: dict[str, Shard] = {}
        self.raw_bytes = 0
        self._places: dict[bytes, Place] = {}
        self._spare: dict[bytes, list[Place]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[bytes]:
        return iter(list(self._places))

    def get(self, key: bytes) -> Place | None:
        """Where ``key`` is, None if it is not known."""
        return self._places.get(key)

    def places_in(self, shard: Shard) -> list[tuple[bytes, Place]]:
        """Keys that are read from ``shard``."""
        return [(key, place) for key, place in self._places.items() if place.shard is shard]

    @property
    def live_bytes(self) -> int:
        """Bytes of live records in all shards, headers and padding included."""
        return sum(shard.live for shard in self.shards.values())

    @property
    def file_bytes(self) -> int:
        """Bytes of all shards, deleted records included."""
        return sum(shard.end for shard in self.shards.values())

    def add(self, shard: Shard, record: Record) -> None:
        """Note a live record; the first copy of a key is the one that is read."""
        shard.live += record.size
        if record.key in self._places:
            self._spare.setdefault(record.key, []).append(Place(shard, record))
        else:
            self._places[record.key] = Place(shard, record)
            self.raw_bytes += record.length

    def read_on(self, shard: Shard) -> None:
        """Note what has been appended to a shard since it was last read."""
        for record in scan(shard):
            self.add(shard, record)

    def move(self, shard: Shard, record: Record) -> None:
        """Read a key from this new copy from now on; the old one still counts until its shard is lost."""
        shard.live += record.size
        self._places[record.key] = Place(shard, record)

    def remove(self, key: bytes) -> list[Place]:
        """Forget a key; returns all its places."""
        if key not in self._places:
            return []
        places = [self._places.pop(key), *self._spare.pop(key, [])]
        self.raw_bytes -= places[0].record.length
        for place in places:
            place.shard.live -= place.record.size
        return places

    def lose(self, shard: Shard) -> None:
        """Forget a shard that is no more; keys with a copy elsewhere keep that."""
        self.shards.pop(shard.path.name, None)
        affected = [key for key, _ in self.places_in(shard)]
        affected += [key for key, places in self._spare.items() if any(place.shard is shard for place in places)]
        for key in affected:
            for place in self.remove(key):
                if place.shard is not shard:
                    self.add(place.shard, place.record)
