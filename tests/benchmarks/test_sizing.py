"""Sizing from a bench report: plain arithmetic that must come out right."""

import pytest

from tests.benchmarks.bench_cases import report
from vocabseg.benchmarks.sizing import LOAD, best_rate, sizing_table
