"""Presets: functions that return a config; their docstrings state command, cost and expected result."""
