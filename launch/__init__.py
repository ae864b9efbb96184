"""Starting stages on this machine or on a Slurm cluster, and the whole chain with its report."""
