"""What is swept: a search space in YAML -> points, each of them the configurations of its runs."""
