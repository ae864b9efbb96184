"""Building blocks of a static report: pages, tables, charts and pictures of planes."""
