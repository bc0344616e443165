"""Scripts for users, developers and CI; the folders hold what produces the figures in docs/."""
