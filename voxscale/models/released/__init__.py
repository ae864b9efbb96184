"""Released weights of other projects: read safely, renamed, and every name's fate reported."""
