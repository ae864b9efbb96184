"""Network architectures and the transfer of weights between them."""
