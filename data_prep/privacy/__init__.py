"""The privacy gate: what leaves a file, and what its pixels may show."""
