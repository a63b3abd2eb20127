"""Sizing from a bench report: plain arithmetic that must come out right."""


