"""Messages as bytes: a msgpack header and the tensors' own memory.

A message is sent in pieces, each a list of frames: the first frame of a piece is a head, a msgpack array that begins
with its `Kind`; the others are raw memory of the tensors in their order, little-endian, a frame never crossing from one
tensor into the next. Numbers, names and sizes in a head are checked before anything is made of them, and memory is
taken for what has arrived, not for what a head announces. Nothing is unpickled.
"""

from pac_core.wire.arriving import Incoming as Incoming
from pac_core.wire.heads import HEAD_BYTES as HEAD_BYTES
from pac_core.wire.heads import PIECE_BYTES as PIECE_BYTES
from pac_core.wire.heads import PIECE_FRAMES as PIECE_FRAMES
from pac_core.wire.heads import PROTOCOL as PROTOCOL
from pac_core.wire.heads import Buffer as Buffer
from pac_core.wire.heads import Kind as Kind
from pac_core.wire.heads import WireError as WireError
from pac_core.wire.heads import check_tag as check_tag
from pac_core.wire.heads import pack_head as pack_head
from pac_core.wire.heads import read_tag as read_tag
from pac_core.wire.heads import take as take
from pac_core.wire.heads import unpack_head as unpack_head
from pac_core.wire.sending import Packed as Packed
from pac_core.wire.sending import pack_message as pack_message
