"""What the reports of all evaluations share."""

from __future__ import annotations

REPORT = "report.json"  #: name of the file that holds all of an evaluation
