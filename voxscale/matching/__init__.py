"""Second-order graph matching on edge lists: graphs, affinities, a batched solver, losses on its answer."""
