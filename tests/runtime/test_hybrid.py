"""Runs whose plan has stages: they end with one device's weights, in both ways to fill, and go on after a stop."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from pac_core.errors import BadInput, RunFailed
from pac_core.events import StepDone

from .test_devices import at, left_behind, members, no_dropout, place  # noqa: F401  # fixtures
