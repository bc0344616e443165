"""What users, developers and CI run; in the folders, what makes the figures of docs/."""
