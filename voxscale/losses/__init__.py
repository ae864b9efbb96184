"""Loss functions, each a pure function of what a network says and what is true."""
