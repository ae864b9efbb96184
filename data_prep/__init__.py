"""Data preparation: raw scans to a checked store, a store to shards."""
