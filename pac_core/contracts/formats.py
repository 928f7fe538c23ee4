"""How the weights of a backbone are held. Imports no torch."""

from __future__ import annotations

from typing import Literal

WeightFormat = Literal["native", "int8"]
"""How the matrices of a backbone's layers are held: in its dtype, or as int8 (see `pac_core.int8`). Embeddings, norms,
biases and heads are in its dtype either way, and so is what layers compute."""
